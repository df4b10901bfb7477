"""Which findings hold again: a profile's beside its replica's (fresh seeds), pocket's beside another's."""

from pathlib import Path

import pandas as pd

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.report import findings
from alignkit.workflow.batch import write_table
from alignkit.workflow.parameters import REPLICA, TINY
from alignkit.workflow.schema import OneFront

OUTCOME = ["statement", "value", "low", "high", "kl", "asked", "holds"]
"""Columns of a finding that two reports may have otherwise."""
MADE_SO = ("losses_end_in_the_optimum",)
"""Findings that lie in how every report is made: that they hold again, or elsewhere, says nothing."""


def is_report(profile: str) -> bool:
    """Whether a profile's figures mean something by themselves: those of smoke, replicas and cuts do not."""
    return not profile.startswith("smoke") and not profile.endswith((REPLICA, TINY))


def publish_findings(profile: str) -> list[str]:
    """Write a profile's findings.csv, and replication.csv where it has a replica; returns the files that changed.

    Both say what today's claims say of the published tables, whenever the pages were made.
    """
    folder, replica = (paths.CHECKOUT / "figures" / name for name in (profile, profile + REPLICA))
    there = [name for name in findings.CLAIMS if (folder / f"{name.partition('_')[0]}_findings.csv").is_file()]
    if not there:
        return []
    own = all_answers(folder)
    both = beside_replica(own[own.notebook.isin(there)], all_answers(replica))
    shown = [*findings.COLUMNS, "replicated", *(f"replica_{name}" for name in ("value", "low", "high", "kl", "asked"))]
    changed = write_table(folder / "findings.csv", both[shown])
    if replica.is_dir():
        table = both[["id", "notebook", *OUTCOME, "firm", *(f"replica_{column}" for column in OUTCOME), "replicated"]]
        changed += write_table(folder / "replication.csv", table)
    if (beside := agreement(profile, both)) is not None:
        changed += write_table(folder / "agreement.csv", beside)
    return changed


def agreement(profile: str, found: pd.DataFrame) -> pd.DataFrame | None:
    """Each finding of pocket but MADE_SO and whether it holds there; None for pocket itself and for what is no report.

    The answer is yes, no, cannot tell, or not asked, where a table or a row is no part of that report.
    """
    pocket = paths.published("pocket")
    if profile == "pocket" or not is_report(profile) or not list(pocket.glob("?_findings.csv")):
        return None
    own = all_answers(pocket)[["id", "notebook", *OUTCOME]]
    both = own[~own.id.isin(MADE_SO)].merge(found[["id", *OUTCOME]], on="id", suffixes=("", "_"))
    answer = both.holds_.map({True: "yes", False: "no"}).fillna("cannot tell")
    answer = answer.mask(both.statement_.str.startswith("Not asked", na=True), "not asked")
    return both.assign(there=answer).rename(columns={f"{column}_": f"{column}_there" for column in OUTCOME})


def all_answers(*folders: Path, own: str = "") -> pd.DataFrame:
    """What today's claims say of the tables `of_folders`; each is open where none has them."""
    tables = findings.of_folders(*folders, own=own)
    return pd.concat([findings.answers(notebook, tables) for notebook in findings.CLAIMS], ignore_index=True)


def here_and_in_pocket(profile: str) -> pd.DataFrame | None:
    """The `agreement` of the last notebook and those that it reads, while it runs: others may not have run yet."""
    found = all_answers(paths.figures(profile), paths.published(profile), own="6_")
    return agreement(profile, found[found.notebook.isin([*OneFront.reads, "6_one_front"])])


def beside_replica(own: pd.DataFrame, again: pd.DataFrame) -> pd.DataFrame:
    """Findings with those of the same id in a replica, as replica_<column>, and `replicated`.

    That says whether the answer there, that the claim holds or that it does not, is the one here, at whatever KL fresh
    seeds reach; one that is left open there is not.  Empty where it is open here, or the replica has no table, or fewer
    of the comparisons that it rests on.
    """
    both = own.join(again.dropna(subset="value").set_index("id")[OUTCOME].add_prefix("replica_"), on="id")
    asked = both.holds.notna() & both.replica_value.notna() & ~(both.replica_asked < both.asked)
    return both.assign(replicated=(both.replica_holds == both.holds).astype(object).where(asked))


def held_again(found: pd.DataFrame) -> str:
    """How many firm findings, narrow ones and refuted claims fresh seeds answer alike, and which not; MADE_SO left out.

    "" without a replica.
    """
    if "replicated" not in found or found.replicated.isna().all():
        return ""
    found = found[~found.id.isin(MADE_SO)]
    held, asked, again = found.holds.eq(True), found.replicated.notna(), found.replicated.eq(True)
    firm = held & found.firm.eq(True)
    kinds = {"firm findings": firm, "narrow ones": held & ~firm, "refuted claims": found.holds.eq(False)}
    counts = [f"{sum(kind & again)} of {sum(kind & asked)} {word}" for word, kind in kinds.items() if any(kind & asked)]
    text = f"with fresh seeds {', '.join(counts)} are answered alike"
    for word, kept in (("not", asked & ~again), ("not asked again", held & ~asked)):
        text += f"; {word}: {', '.join(f'`{name}`' for name in found.id[kept])}" if kept.any() else ""
    return text


def replicate(profile: str) -> list[str]:
    """Compare a published profile with its published replica; returns the files that changed, and what to say.

    Raises UserFault where one of both has no findings.
    """
    for name in (profile, profile + REPLICA):
        if not list((paths.CHECKOUT / "figures" / name).glob("?_findings.csv")):
            raise UserFault(f"replicate: {name!r} has no findings in figures; run make report PROFILE={name} first")
    changed = publish_findings(profile)
    found = pd.read_csv(paths.CHECKOUT / "figures" / profile / "findings.csv")
    return [*changed, f"{profile}: {held_again(found) or 'no finding that holds was answered again'}"]
