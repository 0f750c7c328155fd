"""Useful floating-point operations of each part, counted from the layers' sizes.

A product of ``(B, m)`` with ``(m, n)`` is 2 B m n operations. Only products count, and only those
that no implementation can leave out:

* forward: 2 B m n for each layer of each network;
* gradients of a layer's weights: the same again, where the weights are to be learnt;
* gradients of a layer's inputs: the same again, where something before it is to be learnt. A
  network's own first layer needs none, unless the gradient goes on into what it was given, and
  then only for those inputs.

A network's elementwise work (activations, densities, optimisers, target networks, draws) is no
part of the count: it is what the share of the machine's rate is lowered by. In the actor's gradient
one critic counts for each row, the one with the least Q.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from tests.benchmarks.configuration import Configuration

#: Operations by the width of the layers that they are done in.
Work = Counter[int]


@dataclass(frozen=True)
class Network:
    """Layers from ``sizes[0]`` inputs to ``sizes[-1]`` outputs, in ``copies`` networks alike."""

    sizes: tuple[int, ...]
    copies: int = 1

    def forward(self, rows: int) -> int:
        """Outputs of ``rows`` rows in each copy."""
        pairs = zip(self.sizes[:-1], self.sizes[1:], strict=True)
        return 2 * rows * self.copies * sum(m * n for m, n in pairs)

    def weight_gradients(self, rows: int) -> int:
        """Gradients of all weights: as many operations as forward."""
        return self.forward(rows)

    def input_gradients(self, rows: int, inputs: int = 0) -> int:
        """Gradients of the layers' inputs, and of ``inputs`` of the network's own."""
        inner = Network(self.sizes[1:], self.copies).forward(rows)
        return inner + 2 * rows * self.copies * inputs * self.sizes[1]

    def training(self, rows: int) -> int:
        """Forward, and the gradients that an optimiser's step on the weights needs."""
        return self.forward(rows) + self.weight_gradients(rows) + self.input_gradients(rows)


def actor(c: Configuration) -> Network:
    """States to mean and log standard deviation of the actions."""
    return Network((c.obs_dim, *c.agent_hidden, 2 * c.action_dim))


def mean_actor(c: Configuration) -> Network:
    """The same for the mean action alone."""
    return Network((c.obs_dim, *c.agent_hidden, c.action_dim))


def critics(c: Configuration) -> Network:
    """States and actions to Q, in all critics."""
    return Network((c.obs_dim + c.action_dim, *c.agent_hidden, 1), c.n_critics)


def ensemble(c: Configuration, copies: int) -> Network:
    """States and actions to mean and log-variance of reward and change of the state."""
    return Network((c.obs_dim + c.action_dim, *c.model_hidden, 2 * (c.obs_dim + 1)), copies)


def agent_update(c: Configuration) -> Work:
    """SAC: actor at s and s', target critics at s', critics at (s, a) and (s, policy's action)."""
    pi, q, b = actor(c), critics(c), c.batch
    of_actor = pi.training(b) + pi.forward(b)
    of_critics = q.forward(b) + q.training(b)
    least = Network(q.sizes)  # of the critics, for each row
    through_critics = q.forward(b) + least.input_gradients(b, c.action_dim)
    return Work({c.agent_width: of_actor + of_critics + through_critics})


def fit_step(c: Configuration) -> Work:
    """One maximum-likelihood step of all networks, each on a batch of its own."""
    return Work({c.model_width: ensemble(c, c.n_networks).training(c.batch)})


def adversary_update(c: Configuration, score: str) -> Work:
    """Model rows and as many data rows through the members; policy and critics for the advantage.

    Every member is trained on all data rows. Of the model rows, ``mixture`` trains every member
    on all, the others each row's drawn member alone; ``pathwise`` differentiates V(s') too.
    """
    b, v, q = c.batch, mean_actor(c), critics(c)
    drawn = c.n_members if score == "mixture" else 1
    of_model = ensemble(c, c.n_members).training(b) + ensemble(c, drawn).training(b)
    of_agent = actor(c).forward(b)  # the actions in the model rows
    of_agent += v.forward(b) + q.forward(b)  # V(s')
    of_agent += q.forward(b)  # the baseline Q(s, a)
    if score == "pathwise":
        of_agent += q.input_gradients(b, c.obs_dim + c.action_dim)
        of_agent += v.input_gradients(b, c.obs_dim)
    return Work({c.model_width: of_model}) + Work({c.agent_width: of_agent})


def rollout_step(c: Configuration) -> Work:
    """One transition: the policy's action, and the successor by one member."""
    of_model = Work({c.model_width: ensemble(c, 1).forward(1)})
    return of_model + Work({c.agent_width: actor(c).forward(1)})


def cloning_batch(c: Configuration) -> Work:
    """One step of maximum likelihood of the data's actions."""
    return Work({c.agent_width: actor(c).training(c.batch)})


def evaluation_step(c: Configuration) -> Work:
    """One step in the real environment: the mean action."""
    return Work({c.agent_width: mean_actor(c).forward(1)})


def holdout(c: Configuration) -> Work:
    """Likelihood of held-out data under all members, once per iteration."""
    rows = min(1000, max(1, c.rows // 10))
    return Work({c.model_width: ensemble(c, c.n_members).forward(rows)})


def times(work: Work, n: float) -> Work:
    """The work n times over."""
    return Work({width: round(n * operations) for width, operations in work.items()})
