"""Command line: python -m alignkit check | train | publish."""

import argparse
import sys
from pathlib import Path

from alignkit.faults import UserFault


def main(arguments: list[str] | None = None) -> int:
    """Run one command; exit code 0, or 2 with one line for each fault of the user's."""
    parser = argparse.ArgumentParser(prog="python -m alignkit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    check = commands.add_parser("check", help="check parameter files; one line for each fault")
    check.add_argument("path", nargs="+", type=Path, help="a parameter file or a folder of them")
    check.add_argument("--data", help="in place of the files' own data")
    check.add_argument("--reach", action="store_true", help="also try whether data and models can be reached")

    train = commands.add_parser("train", help="train the runs of one notebook for one seed into the store")
    train.add_argument("path", type=Path, help="a parameter file")
    train.add_argument("--seed", type=int, required=True, help="one seed; any, whatever the file's own seeds are")
    train.add_argument("--data", help="in place of the file's own data")

    publish = commands.add_parser("publish", help="copy executed notebooks, figures and tables out of the build folder")
    publish.add_argument("profile")

    args = parser.parse_args(arguments)
    try:
        return COMMANDS[args.command](args)
    except UserFault as fault:
        print(fault, file=sys.stderr)
        return 2


def _check(args: argparse.Namespace) -> int:

    from alignkit.workflow import parameters

    override = {"data": args.data} if args.data else {}
    lines = parameters.check(args.path, **override)
    if args.reach and not lines:
        for file in parameters.files(args.path):
            parameters.load(file, **override).check_reach()
    for line in lines:
        print(line, file=sys.stderr)
    return 2 if lines else 0


def _train(args: argparse.Namespace) -> int:

    from alignkit.workflow import parameters

    override = {"data": args.data} if args.data else {}
    p = parameters.load(args.path, **override)
    if args.seed not in getattr(p, "confirm_seeds", []):
        parameters.load(args.path, seeds=[args.seed], **override)  # any seed that a file could name
    p.check_reach()
    from alignkit.report.recipes import RECIPES  # here, as it imports torch and a fault should be told at once

    for name, run in RECIPES[p.notebook](p, args.seed).items():
        print(f"{name}: {run.id} ({run.record['seconds']} s)", flush=True)
    return 0


def _publish(args: argparse.Namespace) -> int:
    from alignkit.report import readme
    from alignkit.workflow import batch

    for line in batch.publish(args.profile) + readme.update():
        print(line)
    return 0


COMMANDS = {"check": _check, "train": _train, "publish": _publish}

if __name__ == "__main__":
    sys.exit(main())
