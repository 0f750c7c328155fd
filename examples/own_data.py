"""Your own arrays in, a policy for the real environment out (own_data_policy.zip)."""

import gymnasium as gym
import numpy as np

from adv_worldmodel import FitSettings, OfflineDataset, make_sb3_env
from agents import RAMBO, RamboCallback
from agents.training.evaluation import evaluate

# Stands in for your recordings: 25 episodes of random torques on a pendulum.
env = gym.make("Pendulum-v1")
env.action_space.seed(0)
rows = []
for episode in range(25):
    obs, done = env.reset(seed=episode)[0], False
    while not done:
        action = env.action_space.sample()
        next_obs, reward, terminated, truncated, _ = env.step(action)
        rows.append((obs, action, reward, next_obs, terminated, truncated))
        obs, done = next_obs, terminated or truncated

arrays = [np.array(column, dtype=np.float32) for column in zip(*rows, strict=True)]
data = OfflineDataset.from_arrays(*arrays, action_space=env.action_space, env_id="Pendulum-v1")
world = make_sb3_env(data, 500, horizon=5, fit=FitSettings(hidden_sizes=(64, 64)), seed=0)
model = RAMBO("MlpPolicy", world, gradient_steps=400, seed=0)
model.learn(20 * model.timesteps_per_iteration, callback=RamboCallback(adversary_updates=50))
model.save("own_data_policy")
found = evaluate(model, "Pendulum-v1", seed=100)  # other starts than the data's
print(f"data {data.behaviour_return:.0f}, RAMBO {found.return_mean:.0f}")
