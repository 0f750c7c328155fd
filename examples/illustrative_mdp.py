"""What the adversary is for, in one dimension: RAMBO against MBPO (P C.3, figures 4 to 6).

State s and action a in [-1, 1] are numbers, the reward is s and known. The next state forgets s:
in the data, which hold only a in [-0.3, 0.3], it is the greater the greater a is. In truth it falls
again beyond. MBPO (adversary weight 0: the model stays at its fit) follows the model's
extrapolation to a = 1; RAMBO (weight 0.03) stays at the edge of the data. 15 iterations each.

P gives neither the transition nor the sizes; here s' = min(a, 0.6 - a) + N(0, 0.1), 3000 rows of
one long trajectory of uniform actions, a discount of 0.9, small networks with layer normalisation
in the critics, and per iteration 500 updates of the agent and 750 of the model, at learning rates
that move both as far as P's many more. The buffer holds 2 iterations of rollouts: with 5 the critic
lags behind what the adversary has learnt, and Q stays flat up to a = 0.4.

Prints a table of checks per seed, writes it to table.md with three figures of the first seed, and
exits with 1 where a check fails: the two actions may miss on one seed in ten, the rest on none.
Q has to be lower from the data's very edge on; the table shows it from 0.05 beyond.

For example: python examples/illustrative_mdp.py --seeds 0:10 --jobs 2 --out illustrative
"""

import argparse
import copy
import multiprocessing
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from gymnasium.spaces import Box
from matplotlib.figure import Figure

from adv_worldmodel import FitSettings, OfflineDataset, fit_world_model, make_sb3_env
from agents import RAMBO, RamboCallback
from agents.studies.provenance import made_now
from agents.studies.sweep import parse_seeds

N_ROWS, NOISE, EDGE, MARGIN = 3000, 0.1, 0.3, 0.05
ITERATIONS, UPDATES = 15, 500
GAMMA = 0.9
WEIGHTS = {"MBPO": 0.0, "RAMBO": 3e-2}
FIT = {"hidden_sizes": (64, 64, 64), "learning_rate": 1e-3}
AGENT = {
    "gamma": GAMMA,
    "retain_iterations": 2,
    "batch_size": 128,
    "learning_rate": 1e-3,
    "actor_learning_rate": 3e-4,
    "entropy_learning_rate": 1e-3,
    "target_entropy": -2.0,  # a policy narrow against the data: std 0.04 where they span 0.6
    "policy_kwargs": {"net_arch": [64, 64], "layer_norm": True},
}
ADVERSARY = {"learning_rate": 3e-3, "batch_size": 128}
GRID = np.linspace(-1.0, 1.0, 81)
COLOURS = {"MBPO": "#D55E00", "RAMBO": "#0072B2"}


def true_mean(action):
    """E[s'] in truth."""
    return np.minimum(action, 2 * EDGE - action)


def make_data(seed, n_rows=N_ROWS):
    """One trajectory of uniform actions in [-0.3, 0.3], cut at its end."""
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-EDGE, EDGE, (n_rows, 1))
    next_states = rng.normal(true_mean(actions), NOISE)
    states = np.roll(next_states, 1, axis=0)  # the first starts where the last one ends
    return OfflineDataset.from_arrays(
        states,
        actions,
        states[:, 0],
        next_states,
        np.zeros(n_rows, bool),
        action_space=Box(-1.0, 1.0, (1,), np.float32),
        name="illustrative",
    )


def reward_is_state(obs, action, next_obs):
    return obs[:, 0]


def run(seed, iterations=ITERATIONS, updates=UPDATES):
    """Fit the model once, train both algorithms from it; the figures' curves and the checks."""
    torch.set_num_threads(1)
    start = time.process_time()
    data = make_data(seed)
    fitted = fit_world_model(
        data,
        FitSettings(**FIT, seed=seed),
        termination="never",
        reward_function=reward_is_state,
        device="cpu",
    )
    fresh = make_data([seed, 1])
    result = {"seed": seed, "fit_error": model_error(fitted, fresh)}
    for name, weight in WEIGHTS.items():
        env = make_sb3_env(data, 1000, horizon=5, world_model=copy.deepcopy(fitted), seed=seed)
        model = RAMBO("MlpPolicy", env, gradient_steps=updates, **AGENT, seed=seed)
        callback = RamboCallback(weight, 3 * updates // 2, **ADVERSARY)
        model.learn(iterations * model.timesteps_per_iteration, callback=callback)
        states = data.observations[:200]
        result[name] = {
            "action": float(model.predict(states, deterministic=True)[0].mean()),
            "error": model_error(env.world_model, fresh),
            "model": model_curve(env.world_model, float(states.mean())),
            "q": q_curve(model, states),
            "true_q": true_q_curve(model, states, seed),
        }
    return {**result, "seconds": time.process_time() - start}


@torch.no_grad()
def model_error(world_model, data):
    """Mean squared error of the members' mean s' on data."""
    inputs, targets = world_model.encode(data)
    errors = (world_model.ensemble(inputs)[0] - targets) * world_model.target_std
    return float(errors.square().mean())


@torch.no_grad()
def model_curve(world_model, state):
    """Mean s' and standard deviation of the ensemble's mixture on the grid of actions."""
    actions = torch.as_tensor(GRID, dtype=torch.float32).unsqueeze(-1)
    obs = torch.full_like(actions, state)
    mean, logvar = world_model.ensemble(world_model.inputs(obs, actions))
    mean = world_model.outcome(obs, actions, mean)[0].squeeze(-1)
    noise = logvar.exp().squeeze(-1) * world_model.target_std.square()
    variance = mean.var(0, correction=0) + noise.mean(0)
    return mean.mean(0).numpy(), variance.sqrt().numpy()


@torch.no_grad()
def q_curve(model, states):
    """The smaller critic's Q on the grid of actions, mean over states."""
    actions = torch.as_tensor(GRID, dtype=torch.float32).repeat_interleave(len(states))
    obs = torch.as_tensor(states).repeat(len(GRID), 1)
    q = model.policy.critic.q_values(obs, actions.unsqueeze(-1)).amin(0)
    return q.reshape(len(GRID), -1).mean(1).numpy()


@torch.no_grad()
def true_q_curve(model, states, seed, n_steps=60):
    """The same in truth: simulated steps' discounted rewards, and entropy as critics count it."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)  # of the policy's actions
    alpha = float(model.log_ent_coef.exp())
    states = np.tile(states, (len(GRID), 1))
    actions = np.repeat(GRID, len(states) // len(GRID))[:, None]
    returns = states[:, 0].astype(np.float64)
    for step in range(1, n_steps):  # 0.9^60 is 0.002
        states = rng.normal(true_mean(actions), NOISE).astype(np.float32)
        sampled, log_prob = model.actor.action_log_prob(torch.as_tensor(states))
        returns += GAMMA**step * (states[:, 0] - alpha * log_prob.numpy())
        actions = sampled.numpy()
    return returns.reshape(len(GRID), -1).mean(1)


def checks(result):
    """Whether each promise holds on one seed."""
    mbpo, rambo = result["MBPO"], result["RAMBO"]
    return {
        "RAMBO's action in [0.2, 0.4]": 0.2 <= rambo["action"] <= 0.4,
        "MBPO's action above 0.8": mbpo["action"] > 0.8,
        "model error within 10 % of the fit's": abs(rambo["error"] / result["fit_error"] - 1)
        <= 0.1,
        "RAMBO's Q lower out of the data": q_excess(rambo, margin=0.0) < 0,
        "MBPO's Q far above the true one": q_error(mbpo) > 3.0,
        "RAMBO's model expects less out of the data": np.interp(0.6, GRID, rambo["model"][0])
        < np.interp(EDGE, GRID, rambo["model"][0]),
    }


def q_error(curves):
    """The critic's Q minus the true one at the policy's mean action."""
    q, true_q = (np.interp(curves["action"], GRID, curves[key]) for key in ("q", "true_q"))
    return float(q - true_q)


def q_excess(curves, margin=MARGIN):
    """The highest Q over actions out of the data, minus Q at a = 0.3."""
    q = curves["q"]
    beyond = np.abs(GRID) > EDGE + max(margin - 1e-6, 1e-6)
    return float(q[beyond].max() - np.interp(EDGE, GRID, q))


HEADER = (
    "| seed | a of MBPO | its Q (true) | a of RAMBO | its Q (true) | model error / fit's "
    "| max Q out of the data - Q(0.3) | checks | CPU seconds |\n" + "|---" * 9 + "|"
)


def table_row(result):
    cells = [str(result["seed"])]
    for name in WEIGHTS:
        own = result[name]
        q, true_q = (np.interp(own["action"], GRID, own[key]) for key in ("q", "true_q"))
        cells += [f"{own['action']:.3f}", f"{q:.1f} ({true_q:.1f})"]
    cells += [
        f"{result['RAMBO']['error'] / result['fit_error']:.3f}",
        f"{q_excess(result['RAMBO']):.3f}",
        "hold" if all(checks(result).values()) else "fail",
        f"{result['seconds']:.0f}",
    ]
    return f"| {' | '.join(cells)} |"


def panels(n, label):
    """A figure of n plots against the action, the data's range shaded."""
    figure = Figure(figsize=(4.5 * n, 3.6), layout="constrained")
    axes = figure.subplots(1, n, sharey=True, squeeze=False)[0]
    for ax in axes:
        ax.axvspan(-EDGE, EDGE, color="0.92", label="actions in the data")
        ax.set_xlabel("action a")
        ax.set_xticks([-1.0, -0.5, 0.0, 0.5, 1.0])
    axes[0].set_ylabel(label)
    return figure, axes


def draw(result, out):
    """The paper's figures 4 to 6 for one seed."""
    data = make_data(result["seed"])
    actions, next_states = data.actions[:1000, 0], data.next_observations[:1000, 0]

    figure, (ax,) = panels(1, "next state s'")
    ax.plot(actions, next_states, ".", color="0.5", markersize=2, label="data")
    ax.plot(GRID, true_mean(GRID), "k--", label="true mean")
    ax.legend(fontsize="small")
    figure.savefig(out / "illustrative-data.png", dpi=110)

    figure, axes = panels(2, "next state s'")
    for ax, (name, weight) in zip(axes, WEIGHTS.items(), strict=True):
        mean, std = result[name]["model"]
        ax.plot(actions, next_states, ".", color="0.5", markersize=2)
        ax.plot(GRID, true_mean(GRID), "k--", label="true mean")
        ax.plot(GRID, mean, color=COLOURS[name], label="model, ensemble mean")
        label = "two standard deviations"
        ax.fill_between(
            GRID, mean - 2 * std, mean + 2 * std, color=COLOURS[name], alpha=0.25, lw=0, label=label
        )
        ax.set_ylim(-2.5, 1.5)  # RAMBO's band reaches further
        ax.set_title(f"{name}, lambda = {weight:g}")
        ax.legend(fontsize="small")
    figure.savefig(out / "illustrative-model.png", dpi=110)

    figure, axes = panels(2, "Q, mean over the data's states")
    for ax, name in zip(axes, WEIGHTS, strict=True):
        ax.plot(GRID, result[name]["q"], color=COLOURS[name], label="critic")
        ax.plot(GRID, result[name]["true_q"], "k--", label="true")
        ax.axvline(result[name]["action"], color=COLOURS[name], ls=":", label="mean action")
        ax.set_title(f"{name}: a = {result[name]['action']:.2f}")
        ax.legend(fontsize="small")
    figure.savefig(out / "illustrative-q.png", dpi=110)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", default="0", help="A:B for A to B - 1, or numbers (default 0)")
    parser.add_argument("--out", type=Path, default=Path("illustrative"), help="folder to write")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at the same time")
    parser.add_argument("--iterations", type=int, default=ITERATIONS)
    parser.add_argument("--updates", type=int, default=UPDATES, help="of the agent per iteration")
    args = parser.parse_args()
    try:
        seeds = parse_seeds(args.seeds)
    except ValueError as e:
        parser.error(str(e))
    if args.jobs < 1:
        parser.error("--jobs: at least 1")
    if args.iterations < 1 or args.updates < 1:
        parser.error("--iterations, --updates: at least 1")

    args.out.mkdir(parents=True, exist_ok=True)
    lines, results = [HEADER], []
    print(HEADER)
    task = partial(run, iterations=args.iterations, updates=args.updates)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(args.jobs, mp_context=context) as pool:
        for result in pool.map(task, seeds):
            results.append(result)
            lines.append(table_row(result))
            print(lines[-1], flush=True)
    draw(results[0], args.out)

    failed, found = False, [checks(result) for result in results]
    lines.append("")
    for check in found[0]:
        n = sum(own[check] for own in found)
        failed |= n < len(seeds) - ("action" in check) * (len(seeds) // 10)
        lines.append(f"* {check}: {n} of {len(seeds)}")
    lines += ["", made_now()]
    (args.out / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines[len(seeds) + 1 :]))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
