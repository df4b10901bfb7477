"""Command line: python -m alignkit check | show | train | execute | publish | verify."""

import argparse
import sys
from pathlib import Path

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow import parameters


def main(arguments: list[str] | None = None) -> int:
    """Run one command; exit code 0, 1 if a statement fails, or 2 with one line for each fault of the user's."""
    parser = argparse.ArgumentParser(prog="python -m alignkit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    check = commands.add_parser("check", help="check parameter files; one line for each fault")
    check.add_argument("path", nargs="+", type=Path, help="a parameter file or a folder of them")
    check.add_argument("--data", help="in place of the files' own data")
    check.add_argument("--reach", action="store_true", help="also try whether data and models can be reached")

    show = commands.add_parser("show", help="a notebook's parameters with their words")
    show.add_argument("path", type=Path, help="a parameter file")

    train = commands.add_parser("train", help="train the runs of one notebook for one seed into the store")
    train.add_argument("path", type=Path, help="a parameter file")
    train.add_argument("--seed", type=int, required=True, help="one seed; any, whatever the file's own seeds are")
    train.add_argument("--data", help="in place of the file's own data")

    execute = commands.add_parser("execute", help="execute one notebook into the build folder")
    execute.add_argument("profile")
    execute.add_argument("notebook")
    execute.add_argument("--data", help="in place of the profile's own data")
    execute.add_argument("--key", help="only if what the notebook depends on has this key still")

    publish = commands.add_parser("publish", help="copy executed notebooks, figures and tables out of the build folder")
    publish.add_argument("profile")

    verify = commands.add_parser("verify", help="compare a report with the committed one; exit 1 if a statement fails")
    verify.add_argument("profile")
    verify.add_argument("--against", default="HEAD", help="the commit to compare with")

    args = parser.parse_args(arguments)
    try:
        return COMMANDS[args.command](args)
    except UserFault as fault:
        print(fault, file=sys.stderr)
        return 2


def _given(args: argparse.Namespace) -> dict[str, str]:
    """The data of the command line; a local path is made absolute, so that it means the same everywhere."""
    return {"data": paths.absolute(args.data)} if args.data else {}


def _check(args: argparse.Namespace) -> int:
    lines = parameters.check(args.path, **_given(args))
    if args.reach and not lines:
        for file in parameters.files(args.path):
            parameters.load(file, **_given(args)).check_reach()
    for line in lines:
        print(line, file=sys.stderr)
    return 2 if lines else 0


def _show(args: argparse.Namespace) -> int:
    print(parameters.as_text(parameters.load(args.path)))
    return 0


def _train(args: argparse.Namespace) -> int:
    p = parameters.load(args.path, **_given(args))
    if args.seed not in p.training_seeds():
        parameters.load(args.path, seeds=[args.seed], **_given(args))  # any seed that a file could name
    p.check_reach()
    from alignkit.report.recipes import RECIPES  # here, as it imports torch and a fault should be told at once

    for name, run in RECIPES[p.notebook](p, args.seed).items():
        print(f"{name}: {run.id} ({run.record['seconds']} s)", flush=True)
    return 0


def _execute(args: argparse.Namespace) -> int:
    from alignkit.workflow import batch

    batch.execute(args.profile, args.notebook, key=args.key, **_given(args))
    return 0


def _publish(args: argparse.Namespace) -> int:
    from alignkit.report import readme
    from alignkit.workflow import batch

    for line in batch.publish(args.profile) + readme.update():
        print(line)
    return 0


def _verify(args: argparse.Namespace) -> int:
    from alignkit.report.verify import verify

    lines, sound = verify(args.profile, args.against)
    print("\n".join(lines))
    return 0 if sound else 1


COMMANDS = {
    "check": _check,
    "show": _show,
    "train": _train,
    "execute": _execute,
    "publish": _publish,
    "verify": _verify,
}
