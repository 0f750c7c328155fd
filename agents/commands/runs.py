"""`adv-worldmodel train`, `evaluate` and `settings`: one run and its configuration."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from agents.commands.terminal import (
    PROG,
    not_negative,
    positive,
    print_result,
    seed,
    user_input,
)
from agents.printed import number
from agents.training.run_folder import FolderInUseError
from agents.training.signals import terminated_as_interrupted

if TYPE_CHECKING:
    from agents.training.config import TrainConfig
    from agents.training.preparation import Preparation
    from agents.training.resumption import Resumption
    from agents.training.run_folder import RunFolder

# torch and Stable-Baselines3 take seconds to import: only the commands do, not --help.

#: Exit code of a run whose critics or fit ran away.
DIVERGED = 3
#: Share of a discounted return from which on it is said that the critics add so much.
WORTH_SAYING = 0.05


def add_run_parsers(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Adds the three commands; each sets `func(arguments) -> exit code`."""
    train = subparsers.add_parser(
        "train",
        help="train a policy on a data set",
        description="Fit the world model, train RAMBO in it, evaluate in the real environment. "
        "Everything is kept in a run folder, whose path is the last line printed.",
    )
    train.add_argument(
        "config", metavar="CONFIG", nargs="?", help="a shipped name or the path of a YAML file"
    )
    train.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="settings to change, for example seed=1 rollout.horizon=2 out=FOLDER; "
        "seeds=5 trains five seeds at once",
    )
    train.add_argument(
        "--resume",
        metavar="RUN",
        help="in place of CONFIG: go on with the run in this folder from its last checkpoint",
    )
    train.add_argument(
        "--overwrite", action="store_true", help="replace the run that out=FOLDER holds"
    )
    train.add_argument(
        "--on-divergence",
        choices=["stop", "continue"],
        help="what a run does whose values ran away (default: stop, as failed, exit code 3)",
    )
    train.set_defaults(func=_train, needs=("agents.training.experiment", "agents.studies.seeds"))

    evaluate = subparsers.add_parser(
        "evaluate",
        help="evaluate the policy of a run in the real environment",
        description="Run the deterministic policy of a run folder in the real environment; "
        "print its return and, where reference returns are known, its score.",
    )
    evaluate.add_argument("run", metavar="RUN", help="a folder that 'train' printed")
    evaluate.add_argument("--episodes", metavar="N", type=positive, default=10, help="default: 10")
    evaluate.add_argument(
        "--in-model",
        choices=["fit", "adversarial"],
        help="whole episodes in the run's world model, beside what the critics promise there, in "
        "place of the real environment",
    )
    evaluate.add_argument(
        "--dataset", metavar="FILE", help="with --in-model: where the run's data are by now"
    )
    evaluate.add_argument(
        "--env", metavar="ID", help="another environment; 'module:ID' imports module first"
    )
    evaluate.add_argument("--seed", metavar="N", type=seed, default=0, help="default: 0")
    evaluate.add_argument(
        "--greedy-step",
        metavar="S",
        type=not_negative,
        help="another agent.greedy_step than the run's, of which its training knew nothing",
    )
    evaluate.add_argument("--render", metavar="FILE", help="write one episode as .mp4 or .gif")
    evaluate.add_argument(
        "--trust",
        action="store_true",
        help="import the modules that the folder names, of a 'module:ID' environment and a "
        "'module:function' termination; only for runs of your own",
    )
    evaluate.set_defaults(func=_evaluate, needs=("agents.rambo",))

    settings = subparsers.add_parser(
        "settings",
        help="list the settings of a configuration, with what they mean",
        description="Print every setting by its key: its value in CONFIG, and what it means "
        "(P: the paper).",
    )
    settings.add_argument("config", metavar="CONFIG", nargs="?", default="base")
    settings.add_argument("overrides", metavar="key=value", nargs="*", default=[])
    settings.set_defaults(func=_settings)


def _settings(args: argparse.Namespace) -> int:
    from agents.studies.run_groups import setting_text
    from agents.training.config import flat_settings, load_config, meanings

    config = load_config(args.config, args.overrides, dataset="(to be named)")
    texts = {key: setting_text(value) for key, value in flat_settings(config).items()}
    wide, long = (max(map(len, words)) for words in (texts, texts.values()))
    lines = [f"{key:<{wide}}  {texts[key]:<{long}}  {doc}" for key, doc in meanings().items()]
    print_result("\n".join(lines))
    return 0


def _train(args: argparse.Namespace) -> int:
    from agents.training.config import load_config
    from agents.training.divergence import DivergenceError
    from agents.training.experiment import prepare, run

    if args.on_divergence is not None:
        args.overrides.append(f"on_divergence={args.on_divergence}")
    with user_input():
        if args.resume is not None:
            prepared, resumption = _resumed(args)
        else:
            if args.config is None:
                raise ValueError("give a CONFIG to train, or --resume RUN")
            config = load_config(args.config, args.overrides)
            if config.seeds is None:
                if args.overwrite and config.out is None:
                    raise ValueError("--overwrite replaces the run in out=FOLDER: name it too")
                prepared, resumption = prepare(config, overwrite=args.overwrite), None
            elif args.overwrite:
                raise ValueError("--overwrite replaces a single run: give seeds=null")
    if args.resume is None and config.seeds is not None:
        return _train_seeds(config)
    try:
        with terminated_as_interrupted():
            run(prepared, resumption=resumption)
    except FolderInUseError as error:  # a run that began there since it was looked at
        with user_input():
            raise error
    except (DivergenceError, FloatingPointError) as error:
        print(f"{PROG}: the run failed: {error}", file=sys.stderr)
        return DIVERGED
    except OSError as error:  # a full disk, a folder that is gone: the last checkpoint is whole
        print(
            f"{PROG}: the run failed, its files cannot be written: {error}; when they can, 'train "
            "--resume' with the folder above goes on from its last checkpoint, if it has one",
            file=sys.stderr,
        )
        return 1
    return 0


def _resumed(args: argparse.Namespace) -> tuple[Preparation, Resumption]:
    from agents.training.progress import print_unless_gone
    from agents.training.resumption import prepare_resumption

    words = [] if args.config is None else [args.config]
    if args.overwrite:
        raise ValueError("--resume goes on with a run, --overwrite replaces it: give one of them")
    prepared, resumption = prepare_resumption(args.resume, [*words, *args.overrides])
    for key, (before, now) in resumption.changed.items():
        print_unless_gone(f"changed      {key}: {before} -> {now}")
    return prepared, resumption


def _train_seeds(config: TrainConfig) -> int:
    from agents.studies.seeds import prepare_seeds, run_seeds

    with user_input():
        plan = prepare_seeds(config)
    with terminated_as_interrupted():
        runs = run_seeds(plan)
    if runs.errors:
        seeds = ", ".join(map(str, runs.errors))
        print(f"{PROG}: not finished: seed {seeds}", file=sys.stderr)
        diverged = (runs.results[seed].get("status") == "diverged" for seed in runs.errors)
        return DIVERGED if all(diverged) else 1
    return 0


def _unfinished(folder: RunFolder) -> list[str]:
    """A line on a run that did not finish, or whose values ran away."""
    result = folder.result_or_nothing()
    status = result.get("status", "finished")  # a folder with only a policy has no result
    if status != "finished":
        return [f"run          {status}{f': {why}' if (why := result.get('error')) else ''}"]
    diverged = result.get("divergence") is not None
    return ["run          diverged, and went on"] if diverged else []


def _evaluate_in_model(args: argparse.Namespace) -> int:
    from agents.training.run_check import check_run, model_of
    from agents.training.run_folder import RunFolder

    with user_input():
        if args.env is not None or args.render is not None:
            raise ValueError("--in-model takes the world model: leave out --env and --render")
        folder = RunFolder(Path(args.run))
        found = check_run(
            folder, args.in_model, episodes=args.episodes, seed=args.seed,
            greedy_step=args.greedy_step, dataset=args.dataset, trust=args.trust,
        )  # fmt: skip
    mean, std = found.returns.mean(), found.returns.std()
    lines = [
        *_unfinished(folder),
        f"world model  {model_of(folder, args.in_model)}",
        f"return       {number(mean)} +- {number(std)} over {args.episodes} episodes",
        f"length       {found.lengths.mean():.1f} of at most {found.max_steps}",
        f"sampled      {number(found.sampled_returns.mean())} with drawn actions, which training "
        "has",
        f"discounted   {number(found.discounted.mean())} of these, with entropy and reward offset; "
        f"the critics promise {number(found.values.mean())} at the same starts",
    ]
    after = found.beyond_cut.mean()
    if abs(after) > WORTH_SAYING * abs(found.discounted.mean()):
        lines.append(
            f"             of which {number(after)} is what the critics say of the time after "
            f"step {found.max_steps}"
        )
    if found.clone_returns is not None:
        of_data = found.behaviour[0]
        data = "rows are not in order"
        if not math.isnan(of_data):
            data = f"episodes returned {number(of_data)} in as many steps"
        lines.append(
            f"clone        {number(found.clone_returns.mean())} with drawn actions; the data's "
            f"{data}"
        )
    if (doubt := found.doubt(in_fit=args.in_model == "fit")) is not None:
        lines.append(f"doubt        {doubt}: do not believe this model")
    if found.overpromised:
        lines.append("doubt        the critics promise far more: do not believe this policy")
    print_result("\n".join(lines))
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    if args.in_model is not None:
        return _evaluate_in_model(args)
    if args.dataset is not None:
        with user_input():
            raise ValueError("--dataset names the data of --in-model: give both")
    from adv_worldmodel.data.scores import normalised_score
    from agents.training.evaluation import evaluate, first_start
    from agents.training.real_env import check_spaces, full_id, make_real_env, warn_of_endless
    from agents.training.rendering import render
    from agents.training.run_folder import RunFolder, check_file

    with user_input():
        if args.render is not None:
            check_file(Path(args.render))
        folder = RunFolder(Path(args.run))
        env_id = full_id(args.env or folder.env_id(trust=args.trust))
        policy = folder.load_policy()
        if args.greedy_step is not None:
            policy.policy.greedy_step = args.greedy_step
        env = make_real_env(env_id)
        check_spaces(policy, env, env_id)
        env.close()
        warn_of_endless(env_id)
        if args.render is not None:
            try:
                # the first of the episodes
                film = render(policy, env_id, args.render, seed=first_start(args.seed))
            except RuntimeError as error:  # nothing draws on this machine; the message has remedies
                raise ValueError(str(error)) from error
    evaluation = evaluate(policy, env_id, episodes=args.episodes, seed=args.seed)
    mean, std = evaluation.return_mean, evaluation.return_std
    lines = [
        *_unfinished(folder),
        f"environment  {env_id}",
        f"return       {number(mean)} +- {number(std)} over {args.episodes} episodes",
        f"length       {evaluation.length_mean:.1f}",
    ]
    score = normalised_score(env_id, mean)
    if score is not None:
        lines.append(f"score        {score.value:.1f}, {score.reference}")
    if args.render is not None:
        lines.append(f"film         {film}")
    print_result("\n".join(lines))
    return 0
