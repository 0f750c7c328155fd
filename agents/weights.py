"""A policy as a folder of safetensors and JSON, in place of SB3's zip: loading it runs no code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from gymnasium.spaces import Box
from stable_baselines3.common.torch_layers import FlattenExtractor, get_actor_critic_arch
from torch import nn

from adv_worldmodel.errors import last_line
from adv_worldmodel.saved_folder import FLAG, SIZE, SIZES, SavedFormat
from agents.policies import RAMBOPolicy, Standardise

if TYPE_CHECKING:
    from agents.rambo import RAMBO

Agent = TypeVar("Agent", bound="RAMBO")

WEIGHTS_FILE, DESCRIPTION_FILE = "policy.safetensors", "policy.json"
#: The actor's nonlinearities by the name that stands in the JSON; no other is built from a file.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "silu": nn.SiLU,
}
_LARGEST_FLOAT = float(np.finfo(np.float32).max)


def save_weights(agent: RAMBO, folder: str | Path) -> None:
    """Write ``policy.safetensors`` and ``policy.json`` into ``folder`` (made if absent).

    :raises ValueError: the policy has a part that only its own code can rebuild.
    """
    FORMAT.write(Path(folder), _describe(agent.policy), agent.policy.state_dict())


def load_weights(
    cls: type[Agent], folder: str | Path, device: str | torch.device = "auto"
) -> Agent:
    """An agent of ``cls`` with the policy in ``folder``; see :meth:`RAMBO.load_weights`."""
    folder = Path(folder)
    description, tensors = FORMAT.read(folder)
    agent = cls("MlpPolicy", device=device, _init_setup_model=False)
    agent.weights_only = True
    agent.n_envs = 1
    agent.observation_space = _box(description["observation_space"])
    agent.action_space = _box(description["action_space"])
    agent.target_entropy = -float(agent.action_space.shape[0])  # SAC would ask the environment
    misfit = f"{folder / WEIGHTS_FILE} does not fit its {DESCRIPTION_FILE}"
    try:
        agent.policy_kwargs |= _policy_kwargs(description, tensors)
        agent._setup_model()
        agent.policy.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(f"{misfit} ({last_line(error)}): save the policy again") from error
    return agent


def _describe(policy: RAMBOPolicy) -> dict[str, Any]:
    """What rebuilds ``policy``, as JSON knows it."""
    names = {activation: name for name, activation in ACTIVATIONS.items()}
    extractor = policy.features_extractor_class
    for what, found, fits in (
        ("policy class", type(policy), type(policy) is RAMBOPolicy),
        ("activation_fn", policy.activation_fn, policy.activation_fn in names),
        ("features_extractor_class", extractor, extractor in (Standardise, FlattenExtractor)),
    ):
        if not fits:
            raise ValueError(
                f"weights alone cannot rebuild a policy of {what} = {found!r}: use RAMBO.save, "
                f"or an activation_fn among torch.nn's {', '.join(c.__name__ for c in names)} and "
                "the default policy and features extractor"
            )
    actor_sizes, critic_sizes = get_actor_critic_arch(policy.net_arch)
    return {
        "observation_space": _bounds(policy.observation_space),
        "action_space": _bounds(policy.action_space),
        "standardise": extractor is Standardise,
        "actor_sizes": [int(size) for size in actor_sizes],
        "critic_sizes": [int(size) for size in critic_sizes],
        "activation": names[policy.activation_fn],
        "n_critics": int(policy.critic.n_critics),
        "layer_norm": bool(policy.layer_norm),
        "greedy_step": float(policy.greedy_step),
    }


def _policy_kwargs(description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The described policy's arguments.

    :raises RuntimeError: sizes beyond all of the tensors', which would fill the memory for nothing.
    """
    actor, critic, n_critics = (
        description[k] for k in ("actor_sizes", "critic_sizes", "n_critics")
    )
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    if max([*actor, *critic, n_critics]) > largest or len(actor + critic) > len(tensors):
        raise RuntimeError(f"no tensor has a dimension above {largest}")
    found: dict[str, Any] = {
        "net_arch": {"pi": actor, "qf": critic},
        "activation_fn": ACTIVATIONS[description["activation"]],
        "n_critics": n_critics,
        "layer_norm": description["layer_norm"],
        "greedy_step": description["greedy_step"],
        "features_extractor_class": FlattenExtractor,
    }
    if description["standardise"]:  # its numbers are among the tensors
        width = len(description["observation_space"]["low"])
        found["features_extractor_class"] = Standardise
        found["features_extractor_kwargs"] = {"mean": [0.0] * width, "std": [1.0] * width}
    return found


def _bounds(space: Any) -> dict[str, list[float | None]]:
    """A Box's bounds; null is none, since JSON has no infinity."""
    return {
        name: [value if np.isfinite(value) else None for value in getattr(space, name).tolist()]
        for name in ("low", "high")
    }


def _box(bounds: dict[str, list[float | None]]) -> Box:
    low = [-np.inf if value is None else value for value in bounds["low"]]
    high = [np.inf if value is None else value for value in bounds["high"]]
    return Box(np.array(low, np.float32), np.array(high, np.float32), dtype=np.float32)


# --- what policy.json may say -------------------------------------------------------------------


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST_FLOAT


def _are_bounds(value: Any) -> bool:
    if not isinstance(value, dict) or value.keys() != {"low", "high"}:
        return False
    low, high = value["low"], value["high"]
    if not (isinstance(low, list) and isinstance(high, list) and len(low) == len(high) > 0):
        return False
    return all(
        (a is None or _is_number(a)) and (b is None or _is_number(b)) and (None in (a, b) or a <= b)
        for a, b in zip(low, high, strict=True)
    )


def _are_finite_bounds(value: Any) -> bool:
    return _are_bounds(value) and None not in value["low"] + value["high"]


_BOUNDS = "lists 'low' and 'high' of equal length"
FORMAT = SavedFormat(
    what="policy",
    name="adv-worldmodel-policy",
    version=1,
    weights_file=WEIGHTS_FILE,
    description_file=DESCRIPTION_FILE,
    keys={
        "observation_space": (_are_bounds, f"{_BOUNDS}, null where there is no bound"),
        "action_space": (_are_finite_bounds, f"{_BOUNDS}, of numbers"),
        "standardise": FLAG,
        "actor_sizes": SIZES,
        "critic_sizes": SIZES,
        "activation": (
            lambda value: isinstance(value, str) and value in ACTIVATIONS,
            f"one of {', '.join(ACTIVATIONS)}",
        ),
        "n_critics": SIZE,
        "layer_norm": FLAG,
        "greedy_step": (lambda value: _is_number(value) and value >= 0, "a number of at least 0"),
    },
    absent={"greedy_step": 0.0},
    writer="RAMBO.save_weights",
    remedy="save the policy again",
)
