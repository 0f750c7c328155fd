"""The command line, `adv-worldmodel`: train, evaluate, settings, results, select, sweep, data.

Exit codes: 0 done, 1 the run failed (bugs show their traceback), nothing is there to choose from,
or what is to be printed cannot be, 2 bad input (one line on stderr that says what to do), 3 the run
diverged, 130 interrupted, 143 terminated.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

# torch and Stable-Baselines3 take seconds to import: only the handlers do, so that --help is quick.
from agents.commands.data import add_data_parser
from agents.commands.experiments import add_experiment_parsers
from agents.commands.runs import add_run_parsers
from agents.commands.terminal import PROG, user_input
from agents.training.signals import Terminated, signals_held


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line."""

    def error(self, message: str) -> NoReturn:
        if message.startswith("unrecognized arguments: ") and "=" in message:
            message += ": settings (key=value) stand before the options, where there are any"
        print(f"{PROG}: error: {message} (see '{self.prog} --help')", file=sys.stderr)
        raise SystemExit(2)


class _VersionAction(argparse.Action):
    """Prints the version; finding it may import the package, so only when it is asked for."""

    def __call__(self, *_: object) -> NoReturn:
        from adv_worldmodel import __version__

        print(f"{PROG} {__version__}")
        raise SystemExit(0)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: the process's own) and return the exit code."""
    before, warnings.formatwarning = warnings.formatwarning, _one_line
    try:
        args = _parser().parse_args(argv)
        with signals_held():  # an import that a signal breaks off cannot be made again
            for module in args.needs:
                import_module(module)
        if args.command in ("data", "results", "select", "settings"):
            with user_input():  # they read and write files, no more: what fails is input
                return int(args.func(args))
        return int(args.func(args))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except Terminated:
        print(f"{PROG}: terminated", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted", file=sys.stderr)
        return 130
    finally:
        warnings.formatwarning = before


def _one_line(message: Warning | str, *_: object, **__: object) -> str:
    """A warning as all that is said here; where in the code it arose helps no user."""
    return f"warning: {' '.join(str(message).split())}\n"


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog=PROG,
        description="Offline reinforcement learning in an adversarial world model (RAMBO).",
    )
    parser.set_defaults(needs=())
    parser.add_argument("--version", action=_VersionAction, nargs=0, help="print the version")
    commands: argparse._SubParsersAction[argparse.ArgumentParser]  # _Parser, by inheritance
    commands = parser.add_subparsers(  # type: ignore[assignment]
        title="commands", dest="command", metavar="COMMAND", required=True
    )

    add_run_parsers(commands)
    add_experiment_parsers(commands)
    add_data_parser(commands)
    return parser
