"""Learning curves of several groups of runs in one picture, and their returns as a table.

For example: python examples/compare_runs.py curves.png "RAMBO=runs/a,runs/b" "lambda 0=runs/c"
"""

import argparse
import json
from pathlib import Path

import numpy as np

from agents.plots import compare_curves

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("picture", type=Path, help="PNG to write")
parser.add_argument("groups", nargs="+", metavar="LABEL=RUN,RUN", help="run folders of one curve")
parser.add_argument("--title", default="")
args = parser.parse_args()

groups = {label: runs.split(",") for label, _, runs in (g.rpartition("=") for g in args.groups)}
results = {
    label: [json.loads((Path(run) / "result.json").read_text()) for run in runs]
    for label, runs in groups.items()
}
first = next(iter(results.values()))[0]
behaviour, clone = first["behaviour_return"], first["cloning_return"]
compare_curves(
    groups, args.picture, behaviour_return=behaviour, cloning_return=clone, title=args.title
)

print("| | return by seed | mean | minutes per run |")
print("|---|---|---|---|")
for label, group in results.items():
    by_seed = {result["seed"]: result["return_mean"] for result in group}
    cells = ", ".join(f"{by_seed[seed]:.0f}" for seed in sorted(by_seed))
    minutes = np.mean([result["wall_s"]["total"] for result in group]) / 60
    print(f"| {label} | {cells} | {np.mean(list(by_seed.values())):.0f} | {minutes:.1f} |")
