"""PPO of Stable-Baselines3, unmodified, in a world model that an adversary turns against it.

The world model is a VecEnv like any other, and the adversary a callback. PPO has no Q(s, a): its
V(s) is the baseline of the model gradient (P eq. 5). The data are uniform random actions on a
pendulum; the policy is evaluated in the real one, which it has never met.
"""

import argparse

from stable_baselines3 import PPO

from adv_worldmodel import FitSettings, load_dataset, make_sb3_env
from agents import RamboCallback
from agents.training.evaluation import evaluate

argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
).parse_args()

ITERATIONS = 60
N_ENVS, HORIZON = 64, 64  # rollouts side by side, steps of each: one iteration's data

dataset = load_dataset("pendulum-random")
fit = FitSettings(hidden_sizes=(64, 64, 64, 64), max_steps=5000)
world = make_sb3_env(dataset, N_ENVS, HORIZON, fit=fit, seed=0, progress=True)
model = PPO(
    "MlpPolicy",
    world,
    n_steps=HORIZON,
    batch_size=512,
    learning_rate=1e-3,
    gamma=0.95,
    gae_lambda=0.9,
    seed=0,
    device="cpu",
)
before = evaluate(model, "Pendulum-v1")
adversary = RamboCallback(adversary_weight=3e-4, adversary_updates=20, score="member")
model.learn(ITERATIONS * N_ENVS * HORIZON, callback=adversary)
after = evaluate(model, "Pendulum-v1")

print(f"behaviour of the data  {dataset.behaviour_return:8.1f}")
print(f"PPO before training    {before.return_mean:8.1f}")
print(f"PPO after training     {after.return_mean:8.1f} +- {after.return_std:.1f}")
