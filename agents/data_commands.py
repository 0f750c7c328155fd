"""`adv-worldmodel data`: list, describe and convert data sets."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

# The world model's package imports torch, which takes seconds: only the commands do, not --help.
if TYPE_CHECKING:
    from adv_worldmodel.data import OfflineDataset

SOURCE_HELP = "built-in name, .hdf5/.npz file, d4rl:NAME, minari:ID or plain Minari id"


def add_data_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Adds the command `data`; each of its commands sets `func(arguments) -> exit code`."""
    parser = subparsers.add_parser("data", help="list, describe and convert data sets")
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

    print(list_sources())
    return 0


def _info(arguments: argparse.Namespace) -> int:
    from adv_worldmodel.data.summary import describe

    print(describe(_load(arguments)))
    return 0


def _to_minari(arguments: argparse.Namespace) -> int:
    from adv_worldmodel.data import to_minari
    from adv_worldmodel.data.minari_io import minari_folder

    to_minari(_load(arguments), arguments.id)
    print(minari_folder() / arguments.id)
    return 0


def _load(arguments: argparse.Namespace) -> OfflineDataset:
    from adv_worldmodel.data import load_dataset

    return load_dataset(
        arguments.source, reward_offset=arguments.reward_offset, env_id=arguments.env
    )
