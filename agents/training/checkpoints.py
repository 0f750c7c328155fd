"""All that a training run consists of between two iterations: taken, written, read, put back.

A checkpoint is a folder ``checkpoints/iteration-000010`` with ``state.safetensors`` and
``state.json``: reading one runs no code. It is written aside and renamed, and the last two are
kept, so that a kill at any instant leaves a good one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

from adv_worldmodel.errors import one_line
from agents.training.atomic_files import written_aside
from agents.training.run_folder import CHECKPOINT

if TYPE_CHECKING:
    from adv_worldmodel.dynamics import Adversary
    from agents.callbacks import RamboCallback
    from agents.rambo import RAMBO

__all__ = ["CheckpointCallback", "Snapshot", "latest_checkpoint", "restore_counters"]

FORMAT_VERSION = 5
KEPT = 2
TENSORS_FILE, NUMBERS_FILE = "state.safetensors", "state.json"
COUNTERS = ("num_timesteps", "iteration", "_n_updates", "_episode_num")


@dataclass(frozen=True)
class Snapshot:
    """The state between two iterations; ``numbers`` is what JSON can hold."""

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, Any]

    @property
    def iteration(self) -> int:
        """Finished iterations."""
        return int(self.numbers["counters"]["iteration"])


def _optimizers(agent: RAMBO, adversary: Adversary | None) -> dict[str, torch.optim.Optimizer]:
    found = {
        "actor": agent.actor.optimizer,
        "critic": agent.policy.critic.optimizer,
        "entropy": agent.ent_coef_optimizer,
        "model": None if adversary is None else adversary.optimizer,
    }
    return {name: optimizer for name, optimizer in found.items() if optimizer is not None}


def _generators(agent: RAMBO, adversary: Adversary | None) -> dict[str, torch.Generator]:
    found = {
        "agent": agent._generator,
        "replay": agent.replay_buffer.generator,
        "env": agent.env.world.generator,  # type: ignore[union-attr]
    }
    return found if adversary is None else {**found, "adversary": adversary.generator}


def _variables(agent: RAMBO, adversary: Adversary | None) -> Iterator[tuple[str, Tensor]]:
    """Everything that changes in place, by name; not the synthetic rows."""
    for name, value in agent.policy.state_dict().items():
        yield f"policy.{name}", value
    if agent.log_ent_coef is not None:
        yield "log_ent_coef", agent.log_ent_coef.detach()
    for name, value in agent.env.world_model.ensemble.state_dict().items():  # type: ignore[union-attr]
        yield f"model.{name}", value
    if adversary is not None:
        for name, value in adversary.state():
            yield f"adversary.{name}", value


def capture(agent: RAMBO, adversary: Adversary | None) -> Snapshot:
    """Copy the state of a training between two iterations.

    The synthetic rows are not copied: :func:`write` reads them from the buffer. A snapshot can
    still be written during the next iteration, which changes only rows that a resumed run
    overwrites too.
    """
    buffer = agent.replay_buffer
    tensors = {name: value.clone() for name, value in _variables(agent, adversary)}
    for name, optimizer in _optimizers(agent, adversary).items():
        for index, values in optimizer.state_dict()["state"].items():
            for key, value in values.items():
                tensors[f"optimizer.{name}.{index}.{key}"] = value.clone()
    for name, generator in _generators(agent, adversary).items():
        tensors[f"random.{name}"] = generator.get_state()
    tensors["random.torch"] = torch.get_rng_state()
    if agent.device.type == "cuda":  # a features extractor's dropout draws from it
        tensors["random.cuda"] = torch.cuda.get_rng_state(agent.device)
    numbers = {
        "format": FORMAT_VERSION,
        "counters": {name: int(getattr(agent, name)) for name in COUNTERS},
        "buffer": {"pos": buffer.pos, "full": buffer.full},
        "adversary_updates": None if adversary is None else adversary.n_updates,
    }
    return Snapshot(tensors, numbers)


def restore_counters(agent: RAMBO, snapshot: Snapshot) -> None:
    """What SB3's ``learn`` looks at before it starts; :class:`CheckpointCallback` does the rest."""
    for name in COUNTERS:
        setattr(agent, name, snapshot.numbers["counters"][name])


def restore(agent: RAMBO, adversary: Adversary | None, snapshot: Snapshot) -> None:
    """Put a state back into a training of the same configuration."""
    restore_counters(agent, snapshot)
    buffer, tensors = agent.replay_buffer, snapshot.tensors
    with torch.no_grad():
        for name, value in _variables(agent, adversary):
            value.copy_(tensors[name])
    for name, optimizer in _optimizers(agent, adversary).items():
        prefix = f"optimizer.{name}."
        state: dict[int, dict[str, Tensor]] = {}
        for key in tensors:
            if key.startswith(prefix):
                index, _, kind = key.removeprefix(prefix).partition(".")
                state.setdefault(int(index), {})[kind] = tensors[key]
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    for name, generator in _generators(agent, adversary).items():
        set_generator_state(generator, tensors[f"random.{name}"], name)
    torch.set_rng_state(tensors["random.torch"])
    if agent.device.type == "cuda" and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"], agent.device)
    buffer.pos, buffer.full = snapshot.numbers["buffer"]["pos"], snapshot.numbers["buffer"]["full"]
    if "synthetic" in tensors:
        buffer.hold(tensors["synthetic"])
    if adversary is not None:
        adversary.n_updates = snapshot.numbers["adversary_updates"]


def set_generator_state(generator: torch.Generator, state: Tensor, name: str) -> None:
    """Restore a random stream; a state from another kind of device can only seed a new one."""
    if state.numel() == generator.get_state().numel():
        generator.set_state(state)
        return
    warnings.warn(
        f"the random stream {name!r} was kept on another kind of device and cannot go on here: a "
        "new one begins, and the run is not the one that would have been",
        stacklevel=2,
    )
    digest = hashlib.sha256(state.cpu().numpy().tobytes()).digest()
    generator.manual_seed(int.from_bytes(digest[:7], "big"))


def write(
    folder: Path, snapshot: Snapshot, synthetic: Tensor | None, more: Mapping[str, Any]
) -> Path:
    """Write a snapshot as the newest checkpoint in ``folder``; older ones but one are removed.

    :param synthetic: the buffer's rows, if it has any.
    :param more: kept beside the numbers.
    :raises OSError: the folder cannot be written to or the disk is full; what was there, is.
    """
    tensors = dict(snapshot.tensors)
    held = snapshot.numbers["buffer"]
    if synthetic is not None:
        tensors["synthetic"] = synthetic if held["full"] else synthetic[: held["pos"]]
    folder.mkdir(exist_ok=True)
    target = _place(folder, snapshot.iteration)
    with written_aside(target) as aside:
        aside.mkdir()
        on_host = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        try:
            save_file(on_host, aside / TENSORS_FILE)
        except SafetensorError as error:  # how safetensors reports a full disk
            raise OSError(f"{target}: {error}") from error
        content = {**snapshot.numbers, **more}
        content["sha256"] = _digest(content, aside / TENSORS_FILE)
        (aside / NUMBERS_FILE).write_text(json.dumps(content), encoding="utf-8")
        for path in aside.iterdir():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    for old in _folders(folder)[:-KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def read(folder: Path) -> Snapshot:
    """Read one checkpoint.

    :raises ValueError: it is damaged or of another version.
    """
    try:
        numbers = json.loads((folder / NUMBERS_FILE).read_text(encoding="utf-8"))
        stated = numbers.pop("sha256")
        if numbers["format"] != FORMAT_VERSION:
            raise ValueError(f"format {numbers['format']}, this version reads {FORMAT_VERSION}")
        if _digest(numbers, folder / TENSORS_FILE) != stated:
            raise ValueError(f"{TENSORS_FILE} or {NUMBERS_FILE} is not what was written")
        found = Snapshot(load_file(folder / TENSORS_FILE), numbers)
        _ = found.iteration, numbers["experiment"]  # nothing else is read before all is restored
        return found
    except (
        AttributeError, OSError, KeyError, RecursionError, TypeError, ValueError, SafetensorError
    ) as error:  # fmt: skip
        raise ValueError(f"checkpoint {folder} cannot be read ({one_line(error)})") from error


def latest_checkpoint(folder: Path) -> Snapshot | None:
    """The newest checkpoint in ``folder`` that is whole; None without any.

    :raises ValueError: there are some, and none is whole.
    """
    errors: list[str] = []
    for candidate in reversed(_folders(folder)):
        try:
            found = read(candidate)
        except ValueError as error:
            errors.append(str(error))
            continue
        for why in errors:
            warnings.warn(f"{why}: the one before it is taken", stacklevel=2)
        return found
    if errors:
        raise ValueError(
            f"no checkpoint in {folder} can be read: train again with --overwrite, or put a good "
            f"copy there; {'; '.join(errors)}"
        )
    return None


def has_checkpoints(folder: Path) -> bool:
    """Whether ``folder`` holds a checkpoint, whole or not."""
    return bool(_folders(folder))


def has_trained(folder: Path) -> bool:
    """Whether one of the checkpoints in ``folder`` is of a finished iteration."""
    return any(path != _place(folder, 0) for path in _folders(folder))


def _place(folder: Path, iteration: int) -> Path:
    return folder / CHECKPOINT.format(f"{iteration:06d}")


def _folders(folder: Path) -> list[Path]:
    """In time."""
    found = folder.glob(CHECKPOINT.format("*")) if folder.is_dir() else ()
    return sorted(found, key=lambda path: (len(path.name), path.name))


def _digest(numbers: Mapping[str, Any], path: Path) -> str:
    """SHA-256 (hex) of the numbers and the file."""
    text = json.dumps(numbers, sort_keys=True).encode()
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.sha256(text)).hexdigest()


class CheckpointCallback(BaseCallback):
    """Takes a snapshot before each iteration and writes one every ``every`` iterations.

    Its place among the callbacks is after what evaluates and before :class:`RamboCallback`.

    :param folder: of the checkpoints.
    :param every: iterations from one to the next.
    :param adversary: whose world model's optimiser and draws belong to the state.
    :param more: returns what else is to be kept, for example metrics so far.
    :param resume: state to start from.
    """

    def __init__(
        self,
        folder: Path,
        every: int,
        adversary: RamboCallback,
        more: Callable[[], Mapping[str, Any]],
        resume: Snapshot | None = None,
    ) -> None:
        super().__init__()
        self.folder, self.every, self.more = folder, every, more
        self._adversary, self._resume = adversary, resume
        self._snapshot, self._more = resume, dict[str, Any]()
        self._written = -1 if resume is None else resume.iteration

    def _on_training_start(self) -> None:
        if self._resume is not None:  # after SB3's start, which draws from the environment
            restore(self._agent, self._adversary.adversary, self._resume)

    def _on_rollout_start(self) -> None:
        self._take()
        if self._agent.iteration % self.every == 0:
            self.write()

    def _on_training_end(self) -> None:
        self._take()
        self.write()

    def _on_step(self) -> bool:
        return True

    @property
    def _agent(self) -> RAMBO:
        agent: RAMBO = self.model  # type: ignore[assignment]
        return agent

    def _take(self) -> None:
        snapshot, more = capture(self._agent, self._adversary.adversary), dict(self.more())
        self._snapshot, self._more = snapshot, more  # together: a signal may come in between

    def write(self) -> None:
        """Write the state before the present iteration, unless it has been or there is none."""
        snapshot = self._snapshot
        if snapshot is None or snapshot.iteration == self._written:
            return
        buffer = self._agent.replay_buffer
        write(self.folder, snapshot, buffer.synthetic, self._more)
        self._written = snapshot.iteration
