"""What is measured: dimensions, networks and amounts of one configuration. Imports no torch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

#: Length of state and action.
TASKS = {"hopper": (11, 3), "halfcheetah": (17, 6), "wide": (100, 20)}
SCORES = ("mixture", "member", "pathwise")
ADVERSARIES = tuple(f"adversary-{score}" for score in SCORES)
#: In the order of the table; the stock agent comes last, so that the memory before it is RAMBO's.
PARTS = ("fit", "rollout", *ADVERSARIES, "cloning", "checkpoint", "agent")
#: In which a run of a task is evaluated.
TASK_ENVS = {"hopper": "Hopper-v5", "halfcheetah": "HalfCheetah-v5"}
#: Apart from the tasks: real environments, in which the policy acts; lengths of state and action.
EVALUATION_ENVS = {"Pendulum-v1": (3, 1), "HalfCheetah-v5": (17, 6)}


@dataclass(frozen=True)
class Configuration:
    """One process's work. The defaults are the paper's networks and amounts."""

    task: str
    obs_dim: int
    action_dim: int
    rows: int
    parts: tuple[str, ...] = PARTS
    iteration: bool = True
    threads: int = 1
    seconds: float = 1.5  #: per part
    rounds: int = 4  #: stretches that a part is cut into, products measured between them
    starts: int = 10_000
    horizon: int = 5
    updates: int = 1000  #: of the agent and of the adversary in an iteration
    batch: int = 256
    agent_hidden: tuple[int, ...] = (256, 256)
    model_hidden: tuple[int, ...] = (200, 200, 200, 200)
    n_networks: int = 7
    n_members: int = 5
    n_critics: int = 2
    score: str = "mixture"  #: of the whole iteration's adversary
    env_id: str | None = None  #: only evaluate, in this environment
    episodes: int = 10

    @property
    def widths(self) -> tuple[int, ...]:
        """Widths of the layers whose products are the measure."""
        return tuple(sorted({self.agent_width, self.model_width}))

    @property
    def agent_width(self) -> int:
        """Width of actor and critics."""
        return max(self.agent_hidden)

    @property
    def model_width(self) -> int:
        """Width of the world model's networks."""
        return max(self.model_hidden)

    @property
    def bytes_needed(self) -> int:
        """Rough peak memory: six arrays of packed transitions, statistics in double precision."""
        row = 2 * self.obs_dim + self.action_dim + 2
        synthetic = 5 * self.starts * self.horizon
        return 500 * 2**20 + self.rows * (6 * 4 * row + 16 * self.obs_dim) + 4 * row * synthetic

    def to_json(self) -> str:
        """For the command line of the process that measures it."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Configuration:
        """Inverse of :meth:`to_json`."""
        fields: dict[str, Any] = json.loads(text)
        lists = {key: tuple(value) for key, value in fields.items() if isinstance(value, list)}
        return cls(**{**fields, **lists})


#: For tests: seconds instead of minutes.
SMALL = Configuration(
    "hopper", 11, 3, 300, batch=20, starts=30, updates=4, agent_hidden=(16,), model_hidden=(12, 12)
)


def dimensions(task: str) -> tuple[int, int]:
    """Lengths of state and action of a task's name, or of ``SxA`` such as ``11x3``.

    :raises ValueError: neither.
    """
    if task in TASKS:
        return TASKS[task]
    obs_dim, _, action_dim = task.partition("x")
    if not (obs_dim.isdigit() and action_dim.isdigit() and int(obs_dim) and int(action_dim)):
        raise ValueError(
            f"task {task!r} is neither one of {', '.join(TASKS)} nor lengths of state and action "
            "such as 11x3"
        )
    return int(obs_dim), int(action_dim)
