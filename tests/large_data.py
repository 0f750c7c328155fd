"""How much memory a large data set takes: ``python -m tests.large_data`` (``make large-data``).

Writes a synthetic set (by default 5,000,000 rows of 30-dimensional states and 6-dimensional
actions) as npz and as HDF5, and reads each in a process of its own, whose peak of resident memory
is printed beside the size of the data: read without a second copy, it is little more.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

ACTION_DIM = 6
#: Prints MiB: resident before, at the peak, and what the data take.
READ = """
import json, resource, sys
from adv_worldmodel import load_dataset
load_dataset("pendulum-random").content_hash
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
before = peak()
data = load_dataset(sys.argv[1])
data.content_hash
keys = "observations actions rewards next_observations terminations truncations".split()
size = sum(getattr(data, key).nbytes for key in keys) / 2**20
print(json.dumps({"before": before, "peak": peak(), "data": size}))
"""
#: What may come on top of the data: flags and the check for NaN, each a bool per number.
ROOM = 1.4


def write(folder: Path, rows: int, state_dim: int) -> None:
    """The same set in both formats."""
    import h5py
    import numpy as np

    generator = np.random.default_rng(0)
    states = generator.standard_normal((rows + 1, state_dim), np.float32)
    columns = {
        "observations": states[:-1],
        "next_observations": states[1:],
        "actions": generator.random((rows, ACTION_DIM), np.float32),
        "rewards": generator.standard_normal(rows, np.float32),
        "terminals": np.zeros(rows, bool),
        "timeouts": np.arange(rows) % 1000 == 999,
    }
    np.savez(folder / "large.npz", **columns)
    with h5py.File(folder / "large.hdf5", "w") as file:
        for key, column in columns.items():
            file[key] = column


def main() -> int:
    """Print the table; 1 where reading took a second copy."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--state-dim", type=int, default=30)
    options = parser.parse_args()
    worst = 0.0
    print(f"{options.rows:,} rows, S = {options.state_dim}, A = {ACTION_DIM}")
    with tempfile.TemporaryDirectory(prefix="large-data-") as folder:
        # in a process of its own: a child's peak counts its parent's
        sizes = (Path(folder), options.rows, options.state_dim)
        writer = multiprocessing.get_context("spawn").Process(target=write, args=sizes)
        writer.start()
        writer.join()
        if writer.exitcode != 0:
            return 1  # it has said why
        for path in sorted(Path(folder).iterdir()):
            command = [sys.executable, "-c", READ, str(path)]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            share = (found["peak"] - found["before"]) / found["data"]
            worst = max(worst, share)
            print(
                f"{path.suffix:6} data {found['data']:,.0f} MiB, peak while reading "
                f"{found['peak'] - found['before']:,.0f} MiB: {share:.2f} times the data"
            )
    return int(worst > ROOM)


if __name__ == "__main__":
    raise SystemExit(main())
