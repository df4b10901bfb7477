"""Command line: python -m alignkit COMMAND, or alignkit COMMAND; --help lists them."""

import argparse
import sys
from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow import parameters

# What imports the libraries is imported by the command that needs it, so that a fault is told at once.


def _check(args: argparse.Namespace) -> None:
    if lines := parameters.check(args.path, args.data):
        raise UserFault("\n".join(lines))
    each = [parameters.load(file, args.data) for file in parameters.files(args.path) if args.reach or args.data]
    notes = [note for p in each for note in p.check_reach(models=args.reach)]
    _tell(dict.fromkeys(notes))


def _tell(notes: Iterable[str]) -> None:
    print("".join(f"{note}\n" for note in notes), end="")


def _show(args: argparse.Namespace) -> None:
    print(parameters.as_text(parameters.load(args.path)))


def _train(args: argparse.Namespace) -> None:
    p = parameters.load(args.path, args.data)
    if args.seed not in p.training_seeds():
        parameters.load(args.path, args.data, seeds=[args.seed])  # any seed that a file could name
    _tell(p.check_reach())
    import transformers

    # Bars of loading models would fill the log.
    transformers.logging.disable_progress_bar()
    module = import_module(f"alignkit.report.{p.notebook.partition('_')[2]}")

    for name, run in module.recipe(p, args.seed).items():
        print(f"{name}: {run.id} ({run.record['seconds']} s)", flush=True)


def _tune(args: argparse.Namespace) -> None:
    import transformers

    from alignkit.report import tuning

    transformers.logging.disable_progress_bar()
    if args.seed is not None:
        tuning.tried(args.profile, args.seed)
    else:
        print(tuning.write(args.profile))


def _execute(args: argparse.Namespace) -> None:
    from alignkit.workflow import batch

    batch.execute(args.profile, args.notebook, args.data or "", args.key)


def _publish(args: argparse.Namespace) -> None:
    from alignkit.report import readme, replication
    from alignkit.workflow import batch

    for line in batch.publish(args.profile) + replication.publish(args.profile) + readme.update():
        print(line)


def _report(args: argparse.Namespace) -> int:
    from alignkit.workflow import alone

    return 0 if alone.report(args.profile, args.jobs, args.hub.resolve(), args.out.resolve()) else 1


def _replicate(args: argparse.Namespace) -> None:
    from alignkit.report import readme, replication

    *changed, told = replication.replicate(args.profile)
    print("\n".join([*changed, *readme.update(), told]))


def _html(_: argparse.Namespace) -> None:
    if paths.CHECKOUT is None:
        raise UserFault("html: there is no repository around alignkit; clone it, and run make html there")
    from alignkit.report import page

    print("\n".join(page.publish()))


def _runs(args: argparse.Namespace) -> None:
    from alignkit.workflow import listing

    print("\n".join(listing.runs(args.profile, args.function, args.seed, args.limit)))


def _verify(args: argparse.Namespace) -> int:
    from alignkit.report.verify import verify

    lines, sound = verify(args.profile, args.against)
    print("\n".join(lines))
    return 0 if sound else 1


def main(arguments: list[str] | None = None) -> int:
    """Run one command; exit code 0, 1 if a finding that held fails, or 2 with one line for each fault of the user's."""
    parser = argparse.ArgumentParser(prog="python -m alignkit", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    check = commands.add_parser("check", help="check parameter files; one line for each fault")
    check.set_defaults(run=_check)
    check.add_argument("path", nargs="+", type=Path, help="a parameter file or a folder of them")
    check.add_argument("--data", type=paths.absolute, help="in place of the files' own data")
    check.add_argument("--reach", action="store_true", help="also try whether data and models can be reached and used")

    show = commands.add_parser("show", help="a notebook's parameters with their words")
    show.set_defaults(run=_show)
    show.add_argument("path", type=Path, help="a parameter file")

    train = commands.add_parser("train", help="train the runs of one notebook for one seed into the store")
    train.set_defaults(run=_train)
    train.add_argument("path", type=Path, help="a parameter file")
    train.add_argument("--seed", type=int, required=True, help="one seed; any, whatever the file's own seeds are")
    train.add_argument("--data", type=paths.absolute, help="in place of the file's own data")

    tune = commands.add_parser("tune", help="try every method's settings on tuning seeds, write tuning.csv")
    tune.set_defaults(run=_tune)
    tune.add_argument("profile")
    tune.add_argument("--seed", type=int, help="train for this tuning seed alone, and write nothing")

    execute = commands.add_parser("execute", help="execute one notebook into the build folder")
    execute.set_defaults(run=_execute)
    execute.add_argument("profile")
    execute.add_argument("notebook")
    execute.add_argument("--data", type=paths.absolute, help="in place of the profile's own data")
    execute.add_argument("--key", help="only if what the notebook depends on has this key still")

    publish = commands.add_parser("publish", help="copy executed notebooks, figures and tables out of the build folder")
    publish.set_defaults(run=_publish)
    publish.add_argument("profile")

    report = commands.add_parser("report", help="train, execute and publish a profile without Snakemake or network")
    report.set_defaults(run=_report)
    report.add_argument("profile")
    report.add_argument("--jobs", type=int, default=1, help="processes side by side, also on one GPU")
    report.add_argument("--hub", type=Path, default=Path("hub"), help="a folder of models and data, named by their ids")
    report.add_argument("--out", type=Path, default=paths.build() / "out", help="where records and the archive go")

    replicate = commands.add_parser("replicate", help="say which findings of a profile its replica has as well")
    replicate.set_defaults(run=_replicate)
    replicate.add_argument("profile")

    verify = commands.add_parser("verify", help="compare a report with the committed one; exit 1 if a finding fails")
    verify.set_defaults(run=_verify)
    verify.add_argument("profile")
    verify.add_argument("--against", default="HEAD", help="the commit to compare with")

    html = commands.add_parser("html", help="write the report as web pages to site/")
    html.set_defaults(run=_html)

    runs = commands.add_parser("runs", help="what ran: settings, minutes, folder, and the line that loads a policy")
    runs.set_defaults(run=_runs)
    runs.add_argument("profile", nargs="?", help="only runs that the notebooks of this profile name")
    runs.add_argument("--function", help="only runs of training functions whose name holds this")
    runs.add_argument("--seed", type=int)
    runs.add_argument("--limit", type=int, default=20, help="how many are shown at most, newest first")

    args = parser.parse_args(arguments)
    try:
        return args.run(args) or 0
    except UserFault as fault:
        print(fault, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
