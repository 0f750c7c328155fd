"""What an update must keep to for its replay as a CUDA graph to be right, checked on any device.

A graph replays kernels at fixed addresses with fixed random states: what an update changes it has
to change in place, and random numbers have to come in as arguments.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import itertools
import pickle
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adv_worldmodel import (
    Adversary,
    AdversarySettings,
)
from adv_worldmodel.dynamics.model_gradient import SCORES
from adv_worldmodel.graphs import (
    WAIT,
    WARM_UP_CALLS,
    GraphedStep,
)
from agents import COMBO, RAMBO
from agents.agent_step import AgentStep
from agents.explicit_networks import ExplicitCritics
from agents.values import policy_and_value
from tests.agents.small_agents import MakeAgent, learnt

#: the update, all that it changes, and the generators that it has at hand
Update = tuple[Callable[[], object], Callable[[], list[Tensor]], list[torch.Generator]]
#: scores of an adversary whose lambda is fixed, and one of lambda by the constraint
ADVERSARIES = [*SCORES, "auto"]


@pytest.fixture
def agent(make_agent: MakeAgent) -> RAMBO:
    return learnt(make_agent)


def optimizer_state(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    states = optimizer.state_dict()["state"].values()
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]


def agent_update(agent: RAMBO, *, frozen: bool = False) -> Update:
    buffer, step = agent.replay_buffer, AgentStep(agent, 16, actor_frozen=frozen)
    assert buffer is not None
    draws = next(iter(step.draws(1)))

    def state() -> list[Tensor]:
        assert agent.ent_coef_optimizer is not None
        assert agent.log_ent_coef is not None
        optimizers = (agent.actor.optimizer, agent.critic.optimizer, agent.ent_coef_optimizer)
        tensors = [*agent.policy.state_dict().values(), agent.log_ent_coef.detach()]
        return tensors + [value for one in optimizers for value in optimizer_state(one)]

    return lambda: step(*draws), state, [agent._generator, buffer.generator]


def adversary_update(agent: RAMBO, name: str) -> Update:
    env = agent.env
    settings = {"weight": "auto"} if name == "auto" else {"score": name}
    adversary = Adversary(
        env.world_model,  # type: ignore[union-attr]
        env.dataset,  # type: ignore[union-attr]
        AdversarySettings(batch_size=16, **settings),  # type: ignore[arg-type]
        seed=0,
    )
    foes = policy_and_value(agent)
    draws = type(adversary.draw(1))(*(block[0] for block in adversary.draw(1)))

    def state() -> list[Tensor]:
        model = list(adversary.model.state_dict().values())
        own = [value for _, value in adversary.state()]
        return [*model, *own, *optimizer_state(adversary.optimizer)]

    return lambda: adversary.update(draws, *foes), state, [adversary.generator]


def update_of(agent: RAMBO, name: str) -> Update:
    return agent_update(agent) if name == "agent" else adversary_update(agent, name)


@pytest.mark.parametrize("name", ["agent", *ADVERSARIES])
def test_an_update_changes_its_state_in_place(agent: RAMBO, name: str) -> None:
    update, state, _ = update_of(agent, name)
    update()  # the optimisers make their state
    before = [(tensor.data_ptr(), tensor.clone()) for tensor in state()]
    update()
    after = state()
    assert [pointer for pointer, _ in before] == [tensor.data_ptr() for tensor in after]
    changed = sum(not torch.equal(old, new) for (_, old), new in zip(before, after, strict=True))
    assert changed > len(after) // 2


@pytest.mark.parametrize("name", ["agent", *ADVERSARIES])
def test_an_update_draws_no_random_numbers(agent: RAMBO, name: str) -> None:
    update, _, generators = update_of(agent, name)
    before = [torch.get_rng_state(), *(g.get_state() for g in generators)]
    update()
    after = [torch.get_rng_state(), *(g.get_state() for g in generators)]
    assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))


class Touched(TorchDispatchMode):
    """Remembers the memory that is touched inside and was there before, and by which operation."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, tuple[StorageWeakRef, str]] = {}
        self.made: dict[int, StorageWeakRef] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        def storages(tree: Any) -> list[StorageWeakRef]:
            tensors = (x for x in tree_leaves(tree) if isinstance(x, Tensor))
            return [StorageWeakRef(x.untyped_storage()) for x in tensors]

        for storage in storages((args, kwargs)):
            if storage.cdata not in self.made:
                self.found.setdefault(storage.cdata, (storage, str(func)))
        out = func(*args, **kwargs or {})
        for storage in storages(out):
            if storage.cdata not in self.found:
                self.made[storage.cdata] = storage  # held, so that no other gets its name
        return out


AGENTS: list[dict[str, Any]] = [
    {},
    {"networks": {"layer_norm": True}},
    {"networks": {"layer_norm": True}, "frozen": True},
    {"networks": {"layer_norm": True, "n_critics": 4}, "cloning_weight": 0.1},
    {"fresh_outcomes": True, "ent_coef": 0.1},
    {"networks": {"activation_fn": torch.nn.Tanh}},
    {"kind": COMBO},
]


@pytest.mark.parametrize("which", [*AGENTS, *ADVERSARIES], ids=str)
def test_what_an_update_touches_lives_on(
    make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch, which: dict[str, Any] | str
) -> None:
    """Its graph goes on writing to the addresses of its capture, whoever may have them then."""
    monkeypatch.setattr(
        ExplicitCritics, "action_grad", ExplicitCritics.action_grad_at_once
    )  # as on a GPU
    if isinstance(which, str):
        update, *_ = adversary_update(learnt(make_agent), which)
    else:
        settings = dict(which)
        frozen = settings.pop("frozen", False)
        update, *_ = agent_update(learnt(make_agent, **settings), frozen=frozen)
    for _ in range(WARM_UP_CALLS):
        update()
    with Touched() as touched:
        update()
    gc.collect()
    assert len(touched.found) > 20
    assert [by for storage, by in touched.found.values() if storage.expired()] == []


def test_living_graphs_have_streams_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    dealt = itertools.cycle(["first", "second", "third"])
    monkeypatch.setattr(torch.cuda, "Stream", lambda: next(dealt))
    steps = [GraphedStep(lambda x: (x,), torch.device("cpu")) for _ in range(4)]
    for step, stream in zip(steps, ("first", "second", "third"), strict=False):
        step._stream = step._own_stream()
        assert step._stream == stream
    del step, steps[1]
    gc.collect()
    assert steps[-1]._own_stream() == "second"


def test_where_no_stream_is_left_the_function_is_called_plainly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "Stream", lambda: "the only one")
    monkeypatch.setattr(torch.cuda, "device", lambda _: contextlib.nullcontext())
    first, second = (GraphedStep(lambda x: (x + 1,), torch.device("cpu")) for _ in range(2))
    first._stream = first._own_stream()
    second.enabled = True  # as on a GPU
    with pytest.warns(UserWarning, match="without CUDA graphs, .* 32 others have taken all"):
        assert float(second(torch.ones(1))[0]) == 2.0
    assert not second.enabled


def plus_one(x: Tensor) -> tuple[Tensor, ...]:
    return (x + 1,)


def test_a_copy_of_a_step_captures_for_itself() -> None:
    step = GraphedStep(plus_one, torch.device("cpu"))
    step._stream, step._graph, step._calls = object(), object(), 9  # type: ignore[assignment]
    for copied in (copy.deepcopy(step), pickle.loads(pickle.dumps(step))):
        assert (copied.function, copied.device) == (plus_one, step.device)
        assert (copied.captured, copied._stream, copied._calls) == (False, None, 0)


def test_off_the_gpu_the_function_is_called_plainly() -> None:
    calls = []

    def function(x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        calls.append(x)
        return (x + y,)

    step = GraphedStep(function, torch.device("cpu"))
    for i in range(6):
        x = torch.tensor([float(i)])
        assert float(step(x, torch.ones(1))[0]) == i + 1
        assert calls[-1] is x
    assert not step.captured


@pytest.fixture
def sync_modes(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A CUDA that only remembers which debug modes were set."""
    set_: list[Any] = [0]
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: set_[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_.append)
    return set_


@pytest.mark.parametrize("waits", [False, True])
def test_what_waits_for_the_device_is_not_captured(
    sync_modes: list[Any], monkeypatch: pytest.MonkeyPatch, waits: bool
) -> None:
    """A capture that fails would break those after it: the last warm-up call finds out before."""

    def function(x: Tensor) -> tuple[Tensor, ...]:
        if waits:
            warnings.warn(f"{WAIT}: .item()", stacklevel=1)
        return (2.0 * x,)

    step = GraphedStep(function, torch.device("cpu"))
    step.enabled = True  # as on a GPU
    monkeypatch.setattr(step, "_on_side_stream", lambda inputs, side: function(*inputs))
    step._calls = WARM_UP_CALLS
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert step._warm_up((torch.ones(1),), None)[0] == 2.0  # type: ignore[arg-type]
    assert sync_modes == [0, "warn", 0]
    assert step.enabled is not waits
    told = [str(w.message) for w in caught]
    assert len(told) == waits
    assert all("without CUDA graphs" in text and "test_graphed_steps.py" in text for text in told)
