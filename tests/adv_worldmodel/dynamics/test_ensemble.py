"""The batched ensemble is E plain networks; densities are torch.distributions'; draws are fair."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal
from torch.nn import functional as F

from adv_worldmodel.dynamics.ensemble import (
    Ensemble,
    MemberDraw,
    gaussian_log_density,
    mixture_log_density,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def torch_mixture(mean: Tensor, logvar: Tensor) -> MixtureSameFamily:
    """The uniform mixture over the first dimension of ``(E, B, D)``."""
    parts = Independent(Normal(mean.transpose(0, 1), (0.5 * logvar).exp().transpose(0, 1)), 1)
    return MixtureSameFamily(Categorical(logits=torch.zeros(mean.shape[1], mean.shape[0])), parts)


def plain_network(ensemble: Ensemble, member: int) -> nn.Sequential:
    """Member number ``member`` as ordinary layers."""
    layers: list[nn.Module] = []
    for weight, bias in zip(ensemble.weights, ensemble.biases, strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[2])
        with torch.no_grad():
            linear.weight.copy_(weight[member].T)
            linear.bias.copy_(bias[member, 0])
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


# ------------------------------------------------------------------------------- densities


def test_gaussian_log_density_is_that_of_torch() -> None:
    g = generator()
    y, mean = torch.randn(50, 4, generator=g), torch.randn(50, 4, generator=g)
    logvar = torch.randn(50, 4, generator=g)
    expected = Independent(Normal(mean, (0.5 * logvar).exp()), 1).log_prob(y)
    torch.testing.assert_close(gaussian_log_density(y, mean, logvar), expected)


def test_gaussian_log_density_by_hand() -> None:
    # Standard deviations 1 and 2, one of each away from the mean: -1/2 - 1/2 - log 2 - log 2 pi.
    found = gaussian_log_density(
        torch.tensor([1.0, 2.0]), torch.zeros(2), torch.tensor([0.0, math.log(4.0)])
    )
    assert float(found) == pytest.approx(-1.0 - math.log(2.0) - math.log(2.0 * math.pi), abs=1e-6)


def test_mixture_log_density_is_that_of_torch() -> None:
    g = generator(1)
    y, mean = torch.randn(50, 3, generator=g), torch.randn(5, 50, 3, generator=g)
    logvar = torch.randn(5, 50, 3, generator=g)
    expected = torch_mixture(mean, logvar).log_prob(y)
    torch.testing.assert_close(mixture_log_density(y, mean, logvar), expected)


@pytest.mark.parametrize(("distance", "naive"), [(0.0, math.inf), (3.0, -math.inf)])
def test_mixture_log_density_where_exponentials_overflow(distance: float, naive: float) -> None:
    # 40 dimensions of variance exp(-10): the density is e^163 at the mean, e^-4e6 at distance 3.
    mean, logvar = torch.zeros(5, 2, 40), torch.full((5, 2, 40), -10.0)
    y = torch.full((2, 40), distance)
    exponentials = gaussian_log_density(y, mean, logvar).exp().mean(0).log()
    assert exponentials.tolist() == [naive, naive]
    found = mixture_log_density(y, mean, logvar)
    assert bool(torch.isfinite(found).all())
    torch.testing.assert_close(found, torch_mixture(mean, logvar).log_prob(y), rtol=1e-5, atol=0.0)


def test_mixture_of_equal_members_is_the_member() -> None:
    g = generator(2)
    y, mean = torch.randn(20, 3, generator=g), torch.randn(1, 20, 3, generator=g)
    logvar = torch.randn(1, 20, 3, generator=g)
    found = mixture_log_density(y, mean.expand(4, -1, -1), logvar.expand(4, -1, -1))
    torch.testing.assert_close(found, gaussian_log_density(y, mean[0], logvar[0]))


# ------------------------------------------------------------------------------- networks


@pytest.mark.parametrize("hidden_sizes", [(), (8,), (8, 6, 7)])
def test_members_are_plain_networks(hidden_sizes: tuple[int, ...]) -> None:
    ensemble = Ensemble(3, 4, 2, hidden_sizes, generator())
    x = torch.randn(3, 11, 4, generator=generator(1))
    mean, logvar = ensemble(x)
    for member in range(3):
        out = plain_network(ensemble, member)(x[member])
        torch.testing.assert_close(mean[member], out[:, :2])
        bounded = 1.0 - F.softplus(1.0 - out[:, 2:])  # limits as in the reference: +1 and -6
        bounded = -6.0 + F.softplus(bounded + 6.0)
        torch.testing.assert_close(logvar[member], bounded)


def test_shared_rows_go_to_every_member_and_gradient_mode_changes_nothing() -> None:
    ensemble = Ensemble(3, 4, 2, (8, 8), generator())
    x = torch.randn(11, 4, generator=generator(1))
    kept = x.clone()
    shared = ensemble(x)
    repeated = ensemble(x.repeat(3, 1, 1))
    with torch.no_grad():
        without = ensemble(x)
    for a, b, c in zip(shared, repeated, without, strict=True):
        torch.testing.assert_close(a, b)
        torch.testing.assert_close(a, c)
    assert torch.equal(x, kept)


def test_logvar_stays_within_its_limits() -> None:
    ensemble = Ensemble(2, 1, 1, (), generator())
    with torch.no_grad():
        ensemble.weights[0][:, :, 1] = 100.0
    x = torch.tensor([[-5.0], [5.0]])
    _, logvar = ensemble(x)
    assert logvar[:, 0, 0].tolist() == pytest.approx([-6.0, -6.0], abs=1e-2)
    assert logvar[:, 1, 0].tolist() == pytest.approx([1.0, 1.0], abs=1e-2)


def test_select_copies_the_chosen_members_in_order() -> None:
    ensemble = Ensemble(4, 3, 2, (8,), generator())
    with torch.no_grad():
        ensemble.max_logvar.fill_(0.5)
    chosen = ensemble.select([2, 0])
    x = torch.randn(6, 3, generator=generator(1))
    for found, expected in zip(chosen(x), ensemble(x), strict=True):
        torch.testing.assert_close(found, expected[[2, 0]])
    before = ensemble.weights[0].clone()
    with torch.no_grad():
        chosen.weights[0].zero_()
    assert torch.equal(ensemble.weights[0], before)  # a copy, not a view


def test_equal_generators_give_equal_networks_that_differ_among_themselves() -> None:
    first, second = Ensemble(2, 3, 1, (4,), generator()), Ensemble(2, 3, 1, (4,), generator())
    assert torch.equal(first.weights[0], second.weights[0])
    assert not torch.equal(first.weights[0][0], first.weights[0][1])


# ------------------------------------------------------------------------------- draws


@pytest.mark.parametrize(("n_rows", "n_members"), [(10, 5), (11, 5), (3, 5), (1, 1), (256, 7)])
def test_gather_undoes_scatter(n_rows: int, n_members: int) -> None:
    draw = MemberDraw.draw(n_rows, n_members, generator())
    x = torch.arange(2.0 * n_rows).reshape(n_rows, 2)
    slabs = draw.scatter(x)
    assert slabs.shape == (n_members, math.ceil(n_rows / n_members), 2)
    assert torch.equal(draw.gather(slabs), x)


def test_drawn_evaluation_picks_from_the_evaluation_of_all() -> None:
    ensemble = Ensemble(5, 3, 2, (8,), generator())
    x = torch.randn(23, 3, generator=generator(1))
    draw = MemberDraw.draw(23, 5, generator(2))
    drawn = draw.gather(ensemble(draw.scatter(x))[0])
    everything = ensemble(x)[0]
    torch.testing.assert_close(drawn, everything[draw.member, torch.arange(23)])


def test_every_row_has_every_member_equally_often() -> None:
    n_rows, n_members, n_draws = 11, 5, 4000
    g = generator(3)
    counts = torch.zeros(n_rows, n_members)
    for _ in range(n_draws):
        member = MemberDraw.draw(n_rows, n_members, g).member
        counts[torch.arange(n_rows), member] += 1
        assert int(torch.bincount(member, minlength=n_members).max()) <= 3  # ceil(11 / 5)
    expected = n_draws / n_members
    chi_square = (counts - expected).square().sum(1) / expected
    # 4 degrees of freedom: 28.4 is exceeded once in 100,000 fair draws, so by none of 11 rows.
    assert float(chi_square.max()) < 28.4


def test_two_rows_share_a_member_as_often_as_a_fair_deal_makes_them() -> None:
    # Of the 5 x 3 places for 15 rows, a second row finds 2 of the 14 left in the first one's slab.
    g = generator(4)
    n_draws = 4000
    members = [MemberDraw.draw(15, 5, g).member for _ in range(n_draws)]
    share = sum(bool(m[0] == m[1]) for m in members) / n_draws
    p = 2 / 14
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / n_draws)


def test_redeal_leaves_the_other_rows_where_they_are() -> None:
    g = generator(5)
    draw = MemberDraw.draw(13, 5, g)
    x = torch.arange(13.0)
    rows = torch.arange(13) % 3 == 0
    changed = torch.zeros(13, dtype=torch.bool)
    for _ in range(20):
        before = draw.member
        draw = draw.redeal(rows, g)
        assert torch.equal(draw.member[~rows], before[~rows])
        assert torch.equal(draw.gather(draw.scatter(x)), x)
        assert int(torch.bincount(draw.member, minlength=5).max()) <= 3
        changed |= draw.member != before
    assert torch.equal(changed, rows)


def test_redealt_rows_share_the_members_that_they_had() -> None:
    """No place is empty: of three rows that end, two stay member 0's and one 1's."""
    g = generator(7)
    draw = MemberDraw.draw(10, 5, g)
    rows = draw.member == 0
    rows[(draw.member == 1).nonzero()[0]] = True
    for _ in range(20):
        draw = draw.redeal(rows, g)
        assert sorted(draw.member[rows].tolist()) == [0, 0, 1]


def test_rows_that_are_all_redealt_have_every_member_equally_often() -> None:
    g = generator(6)
    counts = torch.zeros(10, 5)
    rows = torch.ones(10, dtype=torch.bool)
    draw = MemberDraw.draw(10, 5, g)
    for _ in range(4000):
        draw = draw.redeal(rows, g)
        counts[torch.arange(10), draw.member] += 1
    chi_square = (counts - 800.0).square().sum(1) / 800.0
    assert float(chi_square.max()) < 28.4
