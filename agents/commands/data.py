"""`adv-worldmodel data`: list, describe, convert and make data sets."""

from __future__ import annotations

import argparse
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from agents.commands.terminal import no_input, positive, print_result, seed
from agents.printed import number
from agents.training.atomic_files import written_where_named
from agents.training.run_folder import check_file, check_parents

# The world model's package imports torch, which takes seconds: only the commands do, not --help.
if TYPE_CHECKING:
    from adv_worldmodel.data import OfflineDataset

SOURCE_HELP = "built-in name, .hdf5/.npz file, d4rl:NAME, minari:ID or plain Minari id"


def add_data_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command `data`; each of its commands sets `func(arguments) -> exit code`."""
    parser = subparsers.add_parser("data", help="list, describe, convert and make data sets")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="built-in sets, and what lies on this machine")
    listing.set_defaults(func=_list)

    info = commands.add_parser("info", help="sizes, ranges, episode returns and lengths")
    _add_source(info)
    info.set_defaults(func=_info)

    convert = commands.add_parser("to-minari", help="write a data set as a Minari set")
    _add_source(convert)
    convert.add_argument("id", metavar="ID", help="new Minari id, such as mine/pendulum-v0")
    convert.set_defaults(func=_to_minari)

    _add_make(commands)


def _add_make(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    make = commands.add_parser(
        "make",
        help="record policies in a real environment",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Step a real environment and write what happens as a Minari set (or .npz).\n"
        "D4RL's kinds of data:\n"
        "  random         --policy random --rows N\n"
        "  medium         --policy sac:STEPS --rows N\n"
        "  medium-replay  --policy sac:STEPS --replay [--save-policy medium.zip]\n"
        "  medium-expert  --policy medium.zip --policy expert.zip --rows N",
    )
    make.add_argument("env", metavar="ENV", help="Gymnasium id, or module:ID")
    make.add_argument(
        "--policy",
        action="append",
        required=True,
        metavar="random|sac:STEPS|FILE.zip",
        help="uniform actions; a SAC of Stable-Baselines3 trained for STEPS steps first; or a "
        "saved agent of Stable-Baselines3, such as a run's policy.zip. Such a file holds pickled "
        "objects: loading it runs its author's code, so use only files you trust. Given several "
        "times: an equal share of the rows each",
    )
    make.add_argument("--rows", type=positive, metavar="N", help="transitions in all")
    make.add_argument(
        "--replay", action="store_true", help="write all that SAC saw while it trained"
    )
    make.add_argument(
        "--deterministic",
        action="store_true",
        help="the policy's deterministic actions, not sampled ones",
    )
    make.add_argument(
        "--noise",
        type=float,
        default=0.0,
        metavar="STD",
        help="Gaussian noise on the policy's actions; 1 is half of an action's range",
    )
    make.add_argument("--seed", type=seed, default=0, metavar="N")
    make.add_argument("--save-policy", type=Path, metavar="FILE.zip", help="keep the trained SAC")
    target = make.add_mutually_exclusive_group()
    target.add_argument("--id", help="Minari id (default: such as pendulum/random-v0)")
    target.add_argument("--npz", type=Path, metavar="FILE.npz", help="a file, and no Minari set")
    make.set_defaults(func=_make)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help=SOURCE_HELP)
    parser.add_argument(
        "--env", metavar="ID", help="environment the data come from (module:ID too)"
    )
    parser.add_argument(
        "--reward-offset", type=float, default=0.0, metavar="X", help="added to every reward"
    )


def _list(arguments: argparse.Namespace) -> int:
    from adv_worldmodel.data.summary import list_sources

    print_result(list_sources())
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from adv_worldmodel.data.summary import describe

    print_result(describe(_load(arguments)))
    return 0


def _to_minari(arguments: argparse.Namespace) -> int:
    from adv_worldmodel.data import to_minari
    from adv_worldmodel.data.minari_io import minari_folder

    dataset = _load(arguments)
    to_minari(dataset, arguments.id)
    if dataset.action_bounds_guessed:
        warnings.warn(
            "the set states the guessed bounds of its actions as its own: --env ID, or action_low "
            "and action_high in the file, give the right ones",
            stacklevel=2,
        )
    print_result(str(minari_folder() / arguments.id))
    return 0


def _make(arguments: argparse.Namespace) -> int:
    import numpy as np

    from adv_worldmodel.data import to_minari
    from adv_worldmodel.data.summary import shown_episodes
    from agents.commands.collection import collect, load_policy, make_box_env, replayed, train_sac
    from agents.training.real_env import check_spaces, full_id

    # All that can be wrong with the input is found before SAC trains for hours.
    words = list(dict.fromkeys(arguments.policy))
    steps = {word: _sac_steps(word) for word in words if word.startswith("sac:")}
    files = [word for word in words if word != "random" and word not in steps]
    _check_options(arguments, list(steps), acting=bool(steps or files))
    env_id = full_id(arguments.env)
    dataset_id = arguments.id or _default_id(arguments)
    target = _new_target(arguments.npz, dataset_id)
    policies = {word: load_policy(word) for word in files}
    with make_box_env(env_id) as env:
        for word, policy in policies.items():
            check_spaces(policy, env, env_id, owner=f"policy {word}")

    with no_input(env_id):
        agents = {word: train_sac(env_id, n, seed=arguments.seed) for word, n in steps.items()}
    for file in filter(None, (arguments.save_policy, arguments.npz)):
        file.parent.mkdir(parents=True, exist_ok=True)
    if arguments.save_policy is not None:
        with written_where_named(arguments.save_policy) as aside:
            agents[words[0]].save(aside)
    policies |= {word: agent.policy for word, agent in agents.items()}
    if arguments.replay:
        dataset = replayed(agents[words[0]], env_id)
    else:
        with no_input(env_id):
            dataset = collect(
                env_id,
                [policies.get(word) for word in arguments.policy],
                arguments.rows,
                seed=arguments.seed,
                deterministic=arguments.deterministic,
                noise=arguments.noise,
            )
    if arguments.npz is None:
        # Minari looks the id up among those registered; by now its module is imported.
        registered = dataset.with_env_id(env_id.rpartition(":")[2])
        to_minari(registered, dataset_id, description=_description(arguments, env_id))
    else:
        columns = ("observations", "actions", "rewards", "next_observations", "terminations")
        arrays = {key: getattr(dataset, key) for key in (*columns, "truncations")}
        arrays |= {"action_low": dataset.action_space.low, "action_high": dataset.action_space.high}
        with written_where_named(target) as aside:
            np.savez_compressed(aside, allow_pickle=False, env_id=env_id, **arrays)
    shown, n_cut = shown_episodes(dataset)
    returns = dataset.episode_returns()[shown]
    cut = f", {n_cut:,} cut" if n_cut else ""
    print_result(
        f"{env_id}: {len(dataset):,} transitions in {len(shown):,} episodes "
        f"({int(dataset.terminations.sum()):,} terminated{cut}), "
        f"return {number(returns.mean())} +- {number(returns.std())}"
    )
    print_result(str(target))
    return 0


def _sac_steps(word: str) -> int:
    text = word.removeprefix("sac:")
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(
            f"--policy {word}: expected sac:STEPS with a whole number of at least 1, such as "
            "sac:10000."
        )
    return int(text)


def _check_options(arguments: argparse.Namespace, trained: list[str], *, acting: bool) -> None:
    """ValueError unless the options of `make` go together and what they would write is new.

    :param arguments: of `make`.
    :param trained: its policies that SAC trains.
    :param acting: whether any policy is not random.
    """
    single = len(arguments.policy) == 1 and len(trained) == 1
    noisy = arguments.deterministic or arguments.noise != 0.0
    if arguments.replay and not single:
        raise ValueError("--replay writes what SAC saw: give it one --policy sac:STEPS.")
    if arguments.replay and (noisy or arguments.rows is not None):
        raise ValueError(
            "--replay writes every step of the training as it was taken: leave out --rows, "
            "--deterministic and --noise."
        )
    if not arguments.replay and arguments.rows is None:
        raise ValueError("--rows N is missing: how many transitions shall be written?")
    if arguments.rows is not None and arguments.rows < len(arguments.policy):
        raise ValueError(f"--rows {arguments.rows}: each policy needs at least one.")
    if not 0.0 <= arguments.noise < float("inf"):
        raise ValueError(f"--noise {arguments.noise:g}: expected a number of at least 0.")
    if noisy and not acting:
        raise ValueError("--deterministic and --noise change a policy; random actions have none.")
    if arguments.save_policy is not None:
        if not single:
            raise ValueError("--save-policy keeps one SAC: give it one --policy sac:STEPS.")
        _check_new_file(arguments.save_policy, ".zip")
    if arguments.npz is not None:
        _check_new_file(arguments.npz, ".npz")


def _check_new_file(path: Path, suffix: str) -> None:
    if path.suffix != suffix:
        raise ValueError(f"{path}: expected a file name that ends in {suffix}.")
    if path.exists():
        raise ValueError(f"{path} exists already. Choose another name, or delete it.")
    check_file(path)


def _new_target(npz: Path | None, dataset_id: str) -> Path:
    """What `make` will write: the file, or the folder of a Minari id that is free."""
    from minari.dataset.minari_dataset import parse_dataset_id  # type: ignore[import-untyped]

    from adv_worldmodel.data.minari_io import minari_folder

    if npz is not None:
        return npz
    try:
        parse_dataset_id(dataset_id)
    except (TypeError, ValueError):  # TypeError where the version is missing
        raise ValueError(
            f"--id {dataset_id} is no Minari id; expected namespace/name-vN, such as "
            "pendulum/random-v0."
        ) from None
    folder = minari_folder() / dataset_id
    if folder.exists():
        raise ValueError(f"{folder} exists already. Choose another --id, or delete it.")
    check_parents(folder, "set MINARI_DATASETS_PATH to another folder, or give --npz")
    return folder


def _default_id(arguments: argparse.Namespace) -> str:
    """`pendulum/random-v0`, `pendulum/sac-10000-replay-v0`, `pendulum/medium-expert-v0`."""
    from agents.training.real_env import resolve_env

    parts = [resolve_env(arguments.env).name.lower()]
    parts += [w if w.startswith("sac:") else Path(w).stem for w in arguments.policy]
    env, *kinds = (re.sub(r"[^-\w]+", "-", part) for part in parts)
    return f"{env}/{'-'.join(kinds)}{'-replay' if arguments.replay else ''}-v0"


def _description(arguments: argparse.Namespace, env_id: str) -> str:
    words = " and ".join(arguments.policy) + (", its replay buffer" if arguments.replay else "")
    how = ", deterministic actions" if arguments.deterministic else ""
    noise = f", noise {arguments.noise:g}" if arguments.noise else ""
    return f"{env_id}, policy {words}{how}{noise}, seed {arguments.seed} (adv-worldmodel data make)"


def _load(arguments: argparse.Namespace) -> OfflineDataset:
    from adv_worldmodel.data import load_dataset

    return load_dataset(
        arguments.source, reward_offset=arguments.reward_offset, env_id=arguments.env
    )
