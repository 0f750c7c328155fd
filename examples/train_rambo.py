"""Train RAMBO as a configuration says: the `adv-worldmodel train` command, as a script.

For example: python examples/train_rambo.py --config pendulum-random seed=1 iterations=5
"""

import argparse

from agents.cli import main

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--config", required=True, help="a shipped name or the path of a YAML file")
parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings to change")

if __name__ == "__main__":
    args = parser.parse_args()
    raise SystemExit(main(["train", args.config, *args.overrides]))
