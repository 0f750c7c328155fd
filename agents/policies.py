"""RAMBO's networks: SB3's SAC policy with standardised states and stacked critics."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any, cast

import torch
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.sac.policies import Actor, SACPolicy
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from adv_worldmodel.checks import check_finite, check_whole
from adv_worldmodel.dynamics.world_model import SMALLEST_STD
from adv_worldmodel.graphs import Branches, hooks_of
from adv_worldmodel.products import add_product, begin_biases, comes_early

LAYER_NORM_EPS = 1e-5
#: Of a greedy step, between which Q decides.
PARTS_OF_STEP = (0.0, 0.25, 0.5, 1.0)


class Standardise(BaseFeaturesExtractor):
    """Fixed standardisation of raw states, so that a saved policy runs in the real environment.

    :param mean: of the data's states, length S.
    :param std: likewise; what hardly varies, as the
        world model sees it, is divided by one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, observation_space: spaces.Box, mean: list[float], std: list[float]) -> None:
        super().__init__(observation_space, features_dim=observation_space.shape[0])
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor([s if s >= SMALLEST_STD else 1.0 for s in std]))

    def forward(self, observations: Tensor) -> Tensor:
        """Raw states ``(B, S)`` to standardised ones."""
        return (observations - self.mean) / self.std


def last_layer(h: Tensor, weight: Tensor, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """Outputs ``(C, B)`` of ``h`` ``(C, B, H)``, weights ``(C, H, 1)`` and biases ``(C, 1, 1)``.

    :param out: memory of the size of ``h`` that may be written to.
    """
    if h.device.type == "cpu":  # one column: as a sum, five times as fast as by a matrix product
        return torch.mul(h, weight.transpose(1, 2), out=out).sum(-1) + bias.squeeze(-1)
    return torch.baddbmm(bias, h, weight).squeeze(-1)  # on a GPU one kernel instead of three


def affine(x: Tensor, layer: tuple[Tensor, Tensor]) -> Tensor:
    """An ``nn.Linear``'s output of ``x`` ``(B, in)``: weights ``(out, in)``, and biases."""
    weight, bias = layer
    if not in_halves(x):
        return torch.addmm(bias, x, weight.t())
    halves = x.reshape(2, -1, x.shape[1])
    return torch.baddbmm(bias, halves, weight.t().expand(2, -1, -1)).view(len(x), -1)


def add_affine(output: Tensor, layer: tuple[Tensor, Tensor], x: Tensor) -> Tensor:
    """The same into ``output`` ``(B, out)``, where :func:`begin_biases` has written the biases."""
    weight, bias = layer
    if not in_halves(x):
        return add_product(output, bias, x, weight.t())
    halves = [t.reshape(2, -1, t.shape[1]) for t in (output, x)]
    return add_product(halves[0], bias, halves[1], weight.t().expand(2, -1, -1)).view_as(output)


def in_halves(x: Tensor) -> bool:
    """Whether an even number of rows is multiplied as two batches: on a GPU.

    Of a product with few columns cuBLAS sums splits, in memory that it first has to clear: 15 of
    35 microseconds on an H100. Batched products are not split.
    """
    return x.device.type != "cpu" and len(x) % 2 == 0


def is_plain(actor: nn.Module) -> bool:
    """Whether it is SAC's own network of linear layers and activations, gSDE and hooks aside.

    Its linear layers then are x W + b and no more, of weights that are learnt as they stand.
    """
    return (
        type(actor) is Actor
        and not actor.use_sde
        and all(type(head) is nn.Linear for head in heads_of(actor))
        and all(
            isinstance(weight, nn.Parameter)
            for layer in (*actor.latent_pi, *heads_of(actor))
            if type(layer) is nn.Linear
            for weight in (layer.weight, layer.bias)
        )
        and not any(map(hooks_of, actor.modules()))
    )


def heads_of(actor: Actor) -> tuple[nn.Linear, nn.Linear]:
    """A plain actor's last layers, of mean and log deviation."""
    return cast(nn.Linear, actor.mu), cast(nn.Linear, actor.log_std)


def joint_heads(actor: Actor) -> tuple[Tensor, Tensor]:
    """Their weights ``(2 A, H)`` and biases as those of one layer."""
    heads = heads_of(actor)
    return torch.cat([head.weight for head in heads]), torch.cat([head.bias for head in heads])


def outputs_of(actor: Actor, obs: Tensor, *, mean_only: bool = False) -> Tensor:
    """Of a plain actor's heads, ``(B, 2 A)``: mean and log deviation; or ``(B, A)``, the mean."""
    head = heads_of(actor)[0]
    linear = [layer for layer in actor.latent_pi if type(layer) is nn.Linear]
    in_place = not torch.is_grad_enabled()
    begun = Branches(obs.device)
    with begun.beside():
        last = (head.weight, head.bias) if mean_only else joint_heads(actor)
        output = obs.new_empty(len(obs), len(last[1]))
        if in_place:
            begin_biases([output], [last[1]]).join()
    outputs = [obs.new_empty(len(obs), layer.out_features) for layer in linear * in_place]
    biases = begin_biases(outputs, [layer.bias for layer in linear * in_place])
    h: Tensor = actor.extract_features(obs, actor.features_extractor)
    biases.join()
    for layer in actor.latent_pi:
        if type(layer) is not nn.Linear:
            own = in_place and len(outputs) < len(linear)  # not the features
            h = h.relu_() if own and type(layer) is nn.ReLU else layer(h)
            continue
        parts = layer.weight, layer.bias
        h = add_affine(outputs.pop(0), parts, h) if in_place else affine(h, parts)
    begun.join()
    return add_affine(output, last, h) if in_place else affine(h, last)


class StackedCritic(BaseModel):
    """All Q-networks of SAC as one batched product per layer.

    :param n_critics: C.
    :param net_arch: widths of the hidden layers, ReLU between them.
    :param layer_norm: normalise each hidden layer before its ReLU (bounds how far Q extrapolates).
    :param share_features_extractor: the extractor is the actor's, which alone trains it.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        n_critics: int = 2,
        layer_norm: bool = False,
        share_features_extractor: bool = False,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
        )
        check_whole(at_least=1, n_critics=n_critics)
        self.n_critics, self.layer_norm = n_critics, layer_norm
        self.share_features_extractor = share_features_extractor
        sizes = [features_dim + get_action_dim(action_space), *net_arch, 1]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        self.gains = nn.ParameterList()
        self.shifts = nn.ParameterList()
        for layer, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
            bound = 1.0 / math.sqrt(fan_in)  # nn.Linear's initialisation, as in SB3
            weight = torch.empty(n_critics, fan_in, fan_out).uniform_(-bound, bound)
            bias = torch.empty(n_critics, 1, fan_out).uniform_(-bound, bound)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(bias))
            if layer_norm and layer < len(net_arch):
                self.gains.append(nn.Parameter(torch.ones(n_critics, 1, fan_out)))
                self.shifts.append(nn.Parameter(torch.zeros(n_critics, 1, fan_out)))

    def q_values(self, obs: Tensor, actions: Tensor, *, frozen: bool = False) -> Tensor:
        """Q of every critic, ``(C, B)``, of raw states and actions scaled to [-1, 1].

        :param frozen: no gradient for the critics' own parameters, only for the arguments; none
            ever reaches those of a shared features extractor.
        """
        return self.q_of_features(self.features(obs, frozen=frozen), actions, frozen=frozen)

    def features(self, obs: Tensor, *, frozen: bool = False) -> Tensor:
        """What the networks see of raw states."""
        extract: Any = self.features_extractor
        if frozen or self.share_features_extractor:
            held = {name: p.detach() for name, p in extract.named_parameters()}
            extract = partial(functional_call, extract, held)
        return self.extract_features(obs, extract)

    def q_of_features(self, features: Tensor, actions: Tensor, *, frozen: bool = False) -> Tensor:
        """:meth:`q_values` of what the features extractor has made of the states."""
        layers: list[tuple[Tensor, Tensor]] = list(zip(self.weights, self.biases, strict=True))
        norms: list[tuple[Tensor, Tensor]] = list(zip(self.gains, self.shifts, strict=True))
        if frozen:
            layers = [(weight.detach(), bias.detach()) for weight, bias in layers]
            norms = [(gain.detach(), shift.detach()) for gain, shift in norms]
        *hidden, last = layers
        in_place = not torch.is_grad_enabled()
        outputs = [
            features.new_empty(self.n_critics, len(features), weight.shape[2])
            for weight, _ in layers * in_place
        ]
        biases = begin_biases(outputs, [bias for _, bias in layers * in_place])
        h = torch.cat([features, actions], dim=1).expand(self.n_critics, -1, -1)
        biases.join()
        for i, (weight, bias) in enumerate(hidden):
            if in_place:
                h = add_product(outputs[i], bias, h, weight)
            else:
                h = torch.baddbmm(bias, h, weight)
            if norms:
                gain, shift = norms[i]
                h = torch.addcmul(shift, F.layer_norm(h, h.shape[-1:], eps=LAYER_NORM_EPS), gain)
            h = h.relu_()
        if in_place and comes_early(h):
            return add_product(outputs[-1], last[1], h, last[0]).squeeze(-1)
        return last_layer(h, *last, out=h if in_place and hidden else None)

    def forward(self, obs: Tensor, actions: Tensor) -> tuple[Tensor, ...]:
        """SB3's form: one ``(B, 1)`` per critic."""
        return tuple(q.unsqueeze(-1) for q in self.q_values(obs, actions))


class RAMBOPolicy(SACPolicy):
    """SB3's ``SACPolicy`` with :class:`StackedCritic`.

    :param layer_norm: in the critics.
    :param greedy_step: how far the deterministic action may go from the mean along Q's gradient,
        the root mean square over its components, in units of half the action range. Training, and
        actions that are drawn, do not know of it; 0 is SAC's own deterministic action.

    The other arguments are SB3's. ``activation_fn`` is the actor's, the critics' is ReLU.
    """

    critic: StackedCritic  # type: ignore[assignment]
    critic_target: StackedCritic  # type: ignore[assignment]

    def __init__(
        self, *args: Any, layer_norm: bool = False, greedy_step: float = 0.0, **kwargs: Any
    ) -> None:
        check_finite(greedy_step=greedy_step)
        self.layer_norm, self.greedy_step = layer_norm, greedy_step
        super().__init__(*args, **kwargs)

    def make_critic(  # type: ignore[override]
        self, features_extractor: BaseFeaturesExtractor | None = None
    ) -> StackedCritic:
        """Build the critics from the policy's settings."""
        settings = self._update_features_extractor(self.critic_kwargs, features_extractor)
        kept = (
            "net_arch", "features_extractor", "features_dim", "n_critics",
            "share_features_extractor",
        )  # fmt: skip
        spaces_ = (self.observation_space, self.action_space)
        critic = StackedCritic(
            *spaces_,  # type: ignore[arg-type]
            layer_norm=self.layer_norm,
            **{name: settings[name] for name in kept},
        )
        return critic.to(self.device)

    def deterministic_action(self, obs: Tensor) -> Tensor:
        """What is deployed, scaled to [-1, 1], ``(B, A)``, of raw states ``(B, S)``.

        The policy's mean action tanh(mu(s)), and from there ``greedy_step`` up the gradient of
        min_j Q_j(s, a) in a: on-the-fly policy extraction (OPEX; Park et al. 2024, "Is Value
        Learning Really the Main Bottleneck in Offline RL?"), with steps of one length, of which
        a row goes as far as its Q is highest: not at all, a part of the way, or all of it.
        """
        with torch.no_grad():
            mean: Tensor = self.actor(obs, deterministic=True)
        if self.greedy_step == 0.0:
            return mean
        with torch.inference_mode(False), torch.enable_grad():  # whatever mode the caller is in
            start = mean.clone().requires_grad_()
            q = self.critic.q_values(obs.clone(), start).amin(0)
            (gradient,) = torch.autograd.grad(q.sum(), start)
        length = self.greedy_step * math.sqrt(mean.shape[1])
        step = length * F.normalize(gradient, dim=1)
        with torch.no_grad():
            ways = torch.stack([(mean + part * step).clamp(-1.0, 1.0) for part in PARTS_OF_STEP])
            n = len(PARTS_OF_STEP)
            q = self.critic.q_values(obs.repeat(n, 1), ways.flatten(0, 1)).amin(0)
            best = q.view(n, -1).argmax(0)
            return ways[best, torch.arange(len(obs), device=obs.device)]

    def _predict(self, observation: Any, deterministic: bool = False) -> Tensor:
        if deterministic:
            return self.deterministic_action(observation)
        return super()._predict(observation, deterministic)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        own = {"layer_norm": self.layer_norm, "greedy_step": self.greedy_step}
        return {**super()._get_constructor_parameters(), **own}
