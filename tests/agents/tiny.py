"""Overrides that make a run of any configuration a matter of seconds."""

TINY = (
    "iterations=1",
    "n_threads=1",
    "model.hidden_sizes=[16, 16]",
    "model.n_networks=2",
    "model.n_elites=2",
    "model.max_steps=10",
    "model.cache=false",
    "rollout.starts=16",
    "agent.updates=5",
    "agent.hidden_sizes=[16, 16]",
    "cloning.epochs=0",
    "adversary.updates=1",
    "evaluation.episodes=1",
)
