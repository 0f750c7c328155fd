"""`adv-worldmodel results`, `select` and `sweep`: many runs, and what they amount to."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from agents.commands.terminal import PROG, positive, print_result, user_input
from agents.training.signals import terminated_as_interrupted

if TYPE_CHECKING:
    from agents.studies.run_groups import DamagedRun, Run

# scipy, matplotlib and torch take seconds to import: only the commands do, not --help.

RUNS_HELP = "run folders, or folders that hold run folders"


def add_experiment_parsers(
    subparsers: argparse._SubParsersAction[argparse.ArgumentParser],
) -> None:
    """Adds the three commands; each sets `func(arguments) -> exit code`."""
    results = subparsers.add_parser(
        "results",
        help="table of the returns of many runs, over their seeds",
        description="Group runs by data set and configuration; print mean, standard deviation, "
        "interquartile mean and 95 % bootstrap intervals over the seeds as a Markdown table. Of "
        "equal runs the newest counts.",
    )
    results.add_argument("runs", metavar="RUNS", nargs="+", help=RUNS_HELP)
    results.add_argument("--csv", metavar="FILE", help="write the table as CSV too")
    results.add_argument("--markdown", metavar="FILE", help="write the table as Markdown too")
    results.add_argument(
        "--plot", metavar="FILE.png", help="draw learning curves, with bands over the seeds"
    )
    results.add_argument(
        "--by-seed", action="store_true", help="print the returns of each seed in a second table"
    )
    results.add_argument(
        "--against",
        metavar="CONFIGURATION",
        help="in that table, compare with the configuration that is called so in the first one: "
        "mean difference over shared seeds, and p of a paired t-test",
    )
    results.set_defaults(func=_results)

    select = subparsers.add_parser(
        "select",
        help="choose among configurations without the real environment",
        description="For each data set, choose the configuration with the least Q_avg + Q_var "
        "(RAMBO-OFF), or with --in-fit the one with the largest return in the runs' world models; "
        "say what the choice cost in return, and when it cannot be trusted.",
    )
    select.add_argument("runs", metavar="RUNS", nargs="+", help=RUNS_HELP)
    select.add_argument(
        "--in-fit",
        action="store_true",
        help="judge each run by whole episodes of its policy in the model that it was fitted with, "
        "in place of Q",
    )
    select.add_argument(
        "--episodes", metavar="N", type=positive, help="with --in-fit: of each run (50)"
    )
    select.add_argument(
        "--dataset", metavar="FILE", help="with --in-fit: where the runs' data are by now"
    )
    select.add_argument(
        "--trust", action="store_true", help="with --in-fit: import the modules that runs name"
    )
    select.set_defaults(func=_select)

    sweep = subparsers.add_parser(
        "sweep",
        help="train every combination of some settings, on several seeds",
        description="Train the product of settings and seeds, each run in a process of its own "
        "and in the folder OUT/SETTINGS/seed-S. Called again, it skips what is finished and does "
        "the rest; a run that fails does not stop the others. The last line printed is OUT.",
    )
    sweep.add_argument("config", metavar="CONFIG", help="a shipped name or the path of a YAML file")
    sweep.add_argument(
        "overrides",
        metavar="key=value",
        nargs="*",
        default=[],
        help="settings of all runs, before the options; out=FOLDER is OUT (runs/sweep-NAME)",
    )
    sweep.add_argument(
        "--grid",
        metavar="key=v1,v2",
        nargs="+",
        action="extend",
        default=[],
        help="settings to combine, for example rollout.horizon=2,5 adversary.weight=0,3e-4",
    )
    sweep.add_argument(
        "--preset",
        choices=["paper", "ablations", "warm-start"],
        help="paper: its three candidates (rollout.horizon, adversary.weight) = (2, 3e-4), "
        "(5, 3e-4), (5, 0); ablations: CONFIG without adversary (model frozen, or fitted on), with "
        "others, with each score, without cloning; warm-start: each setting that shall keep a "
        "clone",
    )
    sweep.add_argument(
        "--seeds",
        metavar="A:B",
        help="seeds A to B - 1, or a list such as 0,3,7; default: as configured",
    )
    sweep.add_argument(
        "--jobs",
        metavar="N",
        type=positive,
        help="runs at the same time; default: the cores, on a GPU at most 5",
    )
    sweep.set_defaults(func=_sweep, needs=("agents.studies.sweep",))


def _results(args: argparse.Namespace) -> int:
    from agents.studies.aggregate import aggregate, markdown, write_csv
    from agents.studies.planned_runs import find_missing
    from agents.studies.run_groups import group_runs
    from agents.training.atomic_files import is_stream, write_text_where_named
    from agents.training.run_folder import check_file

    files = [Path(file) for file in (args.csv, args.markdown, args.plot) if file is not None]
    for file in files:
        check_file(file)
    regular = [file.resolve() for file in files if not is_stream(file)]
    if len(set(regular)) < len(regular):
        raise ValueError("--csv, --markdown and --plot: two of them name one file")
    if args.plot is not None and Path(args.plot).suffix.lower() != ".png":
        raise ValueError(f"--plot {args.plot}: only PNG is drawn, give a name that ends in .png")
    runs, damaged = _readable(args.runs)
    groups = group_runs(runs)
    rows = aggregate(groups)
    left_out = len(runs) - sum(len(group.runs) for group in groups)
    missing = find_missing(args.runs)
    table = markdown(rows, groups, left_out=left_out, planned=missing, damaged=damaged)
    if args.by_seed or args.against is not None:
        from agents.studies.by_seed import by_seed

        table += "\n" + by_seed(groups, args.against)
    if args.plot is not None:  # first, since it reads more files of the runs
        from agents.studies.curves import plot_groups

        plot_groups(groups, args.plot)
        for group in groups:
            if group.finished and not group.evaluated:
                what = f"{group.dataset}, {group.label}: evaluation.episodes=0"
                print(f"{PROG}: not drawn: {what}", file=sys.stderr)
    for file in filter(None, (args.csv, args.markdown)):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
    if args.csv is not None:
        write_csv(rows, args.csv)
    if args.markdown is not None:
        write_text_where_named(Path(args.markdown), table)
    print_result(table.rstrip("\n"))
    if any(group.finished for group in groups) and not any(group.evaluated for group in groups):
        told = "no run is evaluated in a real environment; 'select RUNS --in-fit' compares policies"
        print(f"{PROG}: {told} in the runs' world models", file=sys.stderr)
    _say_left_out(damaged)
    return 0


def _readable(paths: Sequence[str]) -> tuple[list[Run], list[DamagedRun]]:
    """ValueError where no run can be read."""
    from agents.studies.run_groups import find_readable_runs

    runs, damaged = find_readable_runs(paths)
    if not runs:
        raise ValueError(damaged[0].error)
    return runs, damaged


def _say_left_out(damaged: Sequence[DamagedRun]) -> None:
    for run in damaged:
        print(f"{PROG}: left out: {run.folder}: {run.error}", file=sys.stderr)


def _select(args: argparse.Namespace) -> int:
    from agents.studies.planned_runs import find_missing
    from agents.studies.run_groups import group_runs
    from agents.studies.selection import report, select

    if not args.in_fit and (args.episodes is not None or args.dataset is not None or args.trust):
        raise ValueError("--episodes, --dataset and --trust are for --in-fit: give it too")
    runs, damaged = _readable(args.runs)
    groups, in_fit = group_runs(runs), None
    if args.in_fit:
        from agents.studies.episodes_in_fit import run_episodes

        in_fit = run_episodes(
            groups, args.episodes or 50, dataset=args.dataset, trust=args.trust,
            said=lambda run, text: print(f"{run.folder.path}: {text}", file=sys.stderr),
        )  # fmt: skip
    selections = select(groups, find_missing(args.runs), damaged, in_fit)
    print_result("\n\n".join(report(selection) for selection in selections))
    _say_left_out(damaged)
    without = [s.dataset for s in selections if s.choice is None]
    if without:
        print(f"{PROG}: nothing to choose from on {', '.join(without)}", file=sys.stderr)
    return 1 if without else 0


def _sweep(args: argparse.Namespace) -> int:
    from agents.studies.sweep import plan_sweep, run_sweep

    with user_input():
        plan = plan_sweep(
            args.config,
            args.overrides,
            grid=args.grid,
            preset=args.preset,
            seeds=args.seeds,
            jobs=args.jobs,
        )
    with terminated_as_interrupted():
        errors = run_sweep(plan)
    if errors:
        print(f"{PROG}: not finished: {', '.join(errors)}", file=sys.stderr)
    return 1 if errors else 0
