"""Command line: python -m alignkit COMMAND, or alignkit COMMAND; --help lists them."""

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from importlib import import_module
from io import TextIOWrapper
from pathlib import Path

from filelock import FileLock

from alignkit import numerics, paths
from alignkit.faults import UserFault
from alignkit.workflow import parameters
from alignkit.workflow.schema import NOTEBOOKS
from alignkit.world.reach import absolute

IN_A_CLONE = ("execute", "publish", "done", "report", "replicate", "verify", "tune", "html")
"""The commands that read or write files of the repository beside the package."""

# What imports the libraries is imported by the command that needs it, so that a fault is told at once.


def _check(args: argparse.Namespace) -> None:
    if "" in args.path:  # which a Path takes for the working folder
        raise UserFault("check: path: ''; allowed: a parameter file or a folder of them")
    where = list(map(Path, args.path))
    notes: list[str] = []
    lines = parameters.check(where, args.data)
    if not lines and (args.reach or args.data):
        lines = parameters.check(where, args.data, lambda p: notes.extend(p.check_reach(models=args.reach)))
    if lines:
        raise UserFault("\n".join(lines))
    _tell(dict.fromkeys(notes))


def _tell(notes: Iterable[str]) -> None:
    print("".join(f"{note}\n" for note in notes), end="")


def _show(args: argparse.Namespace) -> None:
    print(parameters.as_text(parameters.load(args.path)))


def _train(args: argparse.Namespace) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        if not os.environ.get(name, "0").isdecimal():
            raise UserFault(f"{name}: {os.environ[name]!r}; allowed: a number, as torchrun sets it")
    if os.environ.get("RANK", "0") != "0":  # the first of several processes says it for all
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    p = parameters.load(args.path, args.data)
    if args.seed not in p.training_seeds():
        parameters.load(args.path, args.data, seeds=[args.seed])  # any seed that a file could name
    _tell(p.check_reach())
    import transformers

    from alignkit.workflow.listing import beside_published

    transformers.logging.disable_progress_bar()  # bars of loading models would fill the log
    runs = import_module(f"alignkit.report.{p.notebook.partition('_')[2]}").recipe(p, args.seed)
    _tell(f"{name}: {run.id} ({run.record['seconds']} s)" for name, run in runs.items())
    _tell(beside_published(p, args.seed, runs) if args.data is None else [])


def _tune(args: argparse.Namespace) -> None:
    import transformers

    from alignkit.report import tuning
    from alignkit.workflow import batch

    if args.seed not in (None, *tuning.SEEDS):
        raise UserFault(f"tune: seed {args.seed}; allowed: {', '.join(map(str, tuning.SEEDS))}, which no report uses")
    transformers.logging.disable_progress_bar()
    if args.seed is not None:
        tuning.try_all(args.profile, args.seed)
    else:
        _tell(batch.write_table(paths.published(args.profile) / "tuning.csv", tuning.tune(args.profile)))


def _execute(args: argparse.Namespace) -> None:
    from alignkit.workflow import batch

    batch.execute(args.profile, args.notebook, args.data or "", args.key)


def _publish(args: argparse.Namespace) -> None:
    from alignkit.report import readme, replication
    from alignkit.workflow import batch

    with FileLock(paths.build() / ".publish-lock"):  # all reports write README
        changed = batch.publish(args.profile)
        # Tables of other reports repeat pocket's findings beside their own, so they are written anew with it.
        beside = sorted(paths.CHECKOUT.glob("figures/*/findings.csv")) if args.profile == "pocket" else []
        for name in dict.fromkeys([args.profile, *(file.parent.name for file in beside)]):
            changed += replication.publish_findings(name)
        _tell(changed + readme.update())
        batch.note_published(args.profile)


def _done(args: argparse.Namespace) -> int:
    from alignkit.workflow import batch

    batch.check_data(args.profile, args.data or "")
    if done := batch.is_published(args.profile, args.data or ""):
        print(f"{args.profile}: nothing to do")
    return 0 if done else 1


def _report(args: argparse.Namespace) -> int:
    from alignkit.workflow import alone

    return 0 if alone.report(args.profile, args.jobs, args.hub.resolve(), args.out.resolve()) else 1


def _replicate(args: argparse.Namespace) -> None:
    from alignkit.report import readme, replication

    *changed, told = replication.replicate(args.profile)
    _tell([*changed, *readme.update(), told])


def _html(_: argparse.Namespace) -> None:
    from alignkit.report import page

    _tell(page.write_site(paths.CHECKOUT, paths.CHECKOUT / "site"))


def _runs(args: argparse.Namespace) -> None:
    from alignkit.workflow import listing

    _tell(listing.runs(args.profile, args.function, args.seed, args.limit))


def _verify(args: argparse.Namespace) -> int:
    from alignkit.report.verify import verify

    lines, sound = verify(args.profile, args.against)
    _tell(lines)
    return 0 if sound else 1


def _count(text: str) -> int:
    """A whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}; allowed: a whole number from 1 on")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """Run one command; returns the exit code.

    0; 1 if a finding fails, a job does, or a report is not done; 2 with one line for each fault of the user's; 130 with
    one line after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="python -m alignkit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    def command(run: Callable[[argparse.Namespace], int | None], told: str, *places: str) -> Callable[..., object]:
        """Add the command of a function and the arguments that stand at places; what is returned adds others."""
        added = commands.add_parser(run.__name__.strip("_"), help=told)
        added.set_defaults(run=run)
        for place in places:
            added.add_argument(place)
        return added.add_argument

    add = command(_check, "check parameter files; one line for each fault")
    add("path", nargs="+", help="a parameter file or a folder of them")
    add("--data", type=absolute, help="in place of the files' own data")
    add("--reach", action="store_true", help="also try whether data and models can be reached and used")

    add = command(_show, "a notebook's parameters with their words")
    add("path", type=Path, help="a parameter file")

    add = command(_train, "train the runs of one notebook for one seed into the store")
    add("path", type=Path, help="a parameter file")
    add("--seed", type=int, required=True, help="one seed; any, whatever the file's own seeds are")
    add("--data", type=absolute, help="in place of the file's own data")

    add = command(_tune, "try every method's settings on tuning seeds, write tuning.csv", "profile")
    add("--seed", type=int, help="train for this tuning seed alone, and write nothing")

    add = command(_execute, "execute one notebook into the build folder", "profile")
    add("notebook", choices=NOTEBOOKS, metavar="notebook", help=", ".join(NOTEBOOKS))
    add("--data", type=absolute, help="in place of the profile's own data")
    add("--key", help="only if what the notebook depends on has this key still")

    command(_publish, "copy executed notebooks, figures and tables out of the build folder", "profile")

    add = command(_done, "exit 0 if a report stands as it was published, 1 if there may be something to do", "profile")
    add("--data", type=absolute, help="in place of the profile's own data")

    add = command(_report, "train, execute and publish a profile without Snakemake or network", "profile")
    add("--jobs", type=_count, default=1, help="processes side by side, also on one GPU")
    add("--hub", type=Path, default=Path("hub"), help="a folder of models and data, named by their ids")
    add("--out", type=Path, default=paths.build() / "out", help="where records and the archive go")

    command(_replicate, "say which findings of a profile its replica has as well", "profile")

    add = command(_verify, "compare a report with the committed one; exit 1 if a finding fails", "profile")
    add("--against", default="HEAD", help="the commit to compare with")

    command(_html, "write the report as web pages to site/")

    add = command(_runs, "what ran: settings, minutes, folder, and the line that loads a policy")
    add("profile", nargs="?", help="only runs that the notebooks of this profile name")
    add("--function", help="only runs of training functions whose name holds this")
    add("--seed", type=int)
    add("--limit", type=_count, default=20, help="how many are shown, newest first")

    args = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a terminal without α prints a code in its place
            stream.reconfigure(errors="backslashreplace")
    try:
        numerics.chosen()
        if getattr(args, "profile", None) is not None:
            parameters.check_profile(args.profile, args.command)
        if args.command in IN_A_CLONE and paths.CHECKOUT is None:
            raise UserFault(f"{args.command}: alignkit was installed without its repository; run this in a clone of it")
        code = args.run(args) or 0
        sys.stdout.flush()
        return code
    except UserFault as fault:
        print(fault, file=sys.stderr)
        return 2
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        if isinstance(error, BrokenPipeError):  # who reads the output has read enough
            return 0
        print(f"{error.filename or args.command}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what has ended is kept, and the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
