"""Findings: what the claims say of this run's tables, shown at the top of a notebook and kept beside its tables."""

from functools import cache
from pathlib import Path

import pandas as pd
from IPython.display import DisplayHandle, Markdown, display

from alignkit import paths
from alignkit.report.claims import CLAIMS
from alignkit.report.figures import save_table
from alignkit.report.statements import Finding, Tables, Unanswered
from alignkit.workflow.schema import Evaluated, Rewarded

COLUMNS = ["id", "notebook", "statement", *Finding._fields[3:], "holds", "firm"]

NARROW = "narrow: fresh seeds may leave it open"
"""What is said of a finding that holds and is not firm."""


def answers(notebook: str, tables: Tables) -> pd.DataFrame:
    """The findings of a notebook, one row for each claim; what cannot be answered has no value and says why."""
    rows = []
    for claim in CLAIMS.get(notebook, ()):
        row = {"id": claim.__name__, "notebook": notebook}
        try:
            finding = claim(tables)
            if pd.isna(finding.value):
                raise Unanswered("a number that it needs is not known for every seed")
            rows.append(row | finding._asdict())
        # The last three: no such column or row, as at sizes that reach no KL of 1.
        except (Unanswered, KeyError, IndexError, AttributeError) as error:
            why = error if isinstance(error, Unanswered) else "its tables do not hold it"
            rows.append(row | {"statement": f"Not asked here: {claim.__doc__} ({why})"})
    return pd.DataFrame(rows, columns=COLUMNS).astype({"holds": object, "firm": object})


def of_folders(*folders: Path, own: str = "") -> Tables:
    """Tables by name, each read once, from the first folder that has it; one whose name begins with `own` from the
    first folder alone."""

    @cache
    def read(name: str) -> pd.DataFrame:
        for folder in folders[: 1 if own and name.startswith(own) else None]:
            if (folder / f"{name}.csv").is_file():
                return pd.read_csv(folder / f"{name}.csv")
        raise Unanswered(f"no table {name}")

    return read


def opening() -> DisplayHandle:
    """The place at the top of a notebook where its findings appear once its last cell has run."""
    return display(Markdown("*The findings appear here when all cells have run.*"), display_id=True)


def tell(place: DisplayHandle, p: Rewarded) -> None:
    """Read what this run's tables allow to say, save it as <n>_findings, and show it at the top."""
    number = p.notebook.partition("_")[0]  # what this run did not write is no finding of it
    table = answers(p.notebook, of_folders(paths.figures(p.profile), paths.published(p.profile), own=f"{number}_"))
    save_table(table, f"{number}_findings", profile=p.profile)
    told = table.statement + (table.holds.eq(True) & table.firm.eq(False)).map({True: f" *({NARROW})*", False: ""})
    place.update(Markdown("\n".join(f"- {text}" for text in told) + about_models(p) + about_gold(p)))


def about_models(p: Rewarded) -> str:
    """The words that say that seeds share their models; "" where they do not."""
    if p.base_seed is None:
        return ""
    shared = "All seeds of this profile start from one supervised policy and are scored by one reward model"
    return f"\n\n{shared}, so the intervals of notebooks 2 to 6 do not tell what other ones would change."


def about_gold(p: Rewarded) -> str:
    """What "gold" is on a page whose reviews have no known truth; "" where the truth is known or nobody judges."""
    if not isinstance(p, Evaluated) or p.judge_reviews is None:
        return ""
    from alignkit.report.policies import judge  # here, as it imports the trainers

    told = judge(p).metrics
    return (
        f"\n\n*Gold* on this page is no truth but an independent judge of words, learned from {told['reviews']:,} test "
        f"reviews that neither the policy nor the reward model saw. Of {told['read']:,} others it gets "
        f"{told['accuracy']:.1%} right, of their first {p.new_tokens} words {told['accuracy_of_beginnings']:.1%}."
    )
