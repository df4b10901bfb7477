"""A regenerated report against a committed one: what moved, by how many standard errors, and which findings hold."""

import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.report.replication import all_answers
from alignkit.workflow.schema import NOTEBOOKS

SETTINGS = ["iteration", "eta", "steps", "beta", "pairs", "reviews"]
"""Columns that say, beside notebook and method, which policy or model a row is of."""
MEASURES = "kl reward gold well_formed unigram_entropy distinct_2 self_bleu repetition mean_tokens".split()
MEASURES += ["pairwise_accuracy", "sign_accuracy", "ece"]
LIMIT = 2
"""Standard errors within which a mean is said not to have moved."""
TOLD = 10
"""How many of the largest moves are told."""


def verify(profile: str, against: str = "HEAD") -> tuple[list[str], bool]:
    """The lines to print, and whether no firm finding was lost and none refuted.

    Raises UserFault without tables of the profile, or where git has none of that revision.
    """
    folder = paths.CHECKOUT / "figures" / profile
    if not list(folder.glob("*.csv")):
        known = sorted({file.parent.name for file in folder.parent.glob("*/*.csv")})
        raise UserFault(f"verify: {profile!r} has no tables in figures; allowed: {', '.join(known)}")
    with tempfile.TemporaryDirectory() as place:
        before = committed(profile, against, Path(place))
        told, sound = _told(before, folder)
        head = f"{profile}: the tables in figures/{profile} against those of {against}"
        return [head, *_files(before, folder), *_moves(_main_rows(before), _main_rows(folder)), *told], sound


def committed(profile: str, revision: str, place: Path) -> Path:
    """The folder in `place` with a profile's tables at a revision; raises UserFault if git has none."""
    if not revision.isprintable() or revision.startswith("-"):  # to git it would be an option
        raise UserFault(f"verify: --against {revision!r}; allowed: a commit, a branch or a tag")
    try:
        command = ["git", "archive", f"--output={place / 'tables.zip'}", revision, f"figures/{profile}/*.csv"]
        subprocess.run(command, cwd=paths.CHECKOUT, capture_output=True, check=True)
    except FileNotFoundError:
        raise UserFault("verify: git is not installed; the committed tables are read with it") from None
    except subprocess.CalledProcessError as error:
        why = error.stderr.decode(errors="replace").partition("\n")[0]
        raise UserFault(f"verify: {revision} has no tables in figures/{profile} ({why})") from None
    shutil.unpack_archive(place / "tables.zip", place)
    return place / "figures" / profile


def _files(before: Path, after: Path) -> list[str]:
    """How many tables are equal byte for byte; those of times never are, and do not count."""
    old, new = ({f.stem: f.read_bytes() for f in folder.glob("*.csv")} for folder in (before, after))
    names = {name for name in old.keys() | new.keys() if "timings" not in name}
    lines = [f"tables: {sum(old.get(name) == new.get(name) for name in names)} of {len(names)} are equal byte for byte"]
    for told, only in [("no longer made", names - new.keys()), ("new", names - old.keys())]:
        lines += [f"tables {told}: {', '.join(sorted(only))}"] if only else []
    return lines


def _main_rows(folder: Path) -> pd.DataFrame:
    """The rows of all main tables, one a policy or model and seed; columns place, notebook, seed and MEASURES."""
    files = [file for name in NOTEBOOKS if (file := folder / f"{name}.csv").is_file()]
    read = [pd.read_csv(file).assign(notebook=file.stem) for file in files]
    rows = pd.concat([pd.DataFrame(columns=["method", *SETTINGS]), *read], ignore_index=True)
    rows["place"] = [_place(row) for row in rows.to_dict("records")]
    return rows.reindex(columns=["place", "notebook", "seed", *MEASURES])


def _place(row: dict[str, Any]) -> str:
    known = [(name, row[name]) for name in SETTINGS if pd.notna(row[name])]
    told = [f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}" for name, value in known]
    return ", ".join([f"{row['notebook']}: {row['method']}", *told])


def compared_means(before: pd.DataFrame, after: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of two reports, one row for each place and measure that both have.

    Columns place, measure, old, new, moved (the difference in units of its standard error, by Welch) and df (Welch's
    degrees of freedom).  With a single seed, the spread over seeds is that of the other places of the notebook; where
    they have none either, `moved` is NaN unless nothing differs.
    """
    sides = [_over_seeds(before), _over_seeds(after)]
    both = sides[0].merge(sides[1], on=["place", "notebook", "measure"], suffixes=("_old", "_new"))
    usual = pd.concat(sides).groupby(["notebook", "measure"]).variance.mean().rename("usual")
    both = both.join(usual, on=["notebook", "measure"])
    parts = {side: both[f"variance_{side}"].fillna(both.usual) / both[f"n_{side}"] for side in ("old", "new")}
    difference, squared = both.mean_new - both.mean_old, parts["old"] + parts["new"]
    moved = (difference / np.sqrt(squared)).mask(difference == 0, 0.0)
    df = squared**2 / sum(part**2 / (both[f"n_{side}"].clip(lower=2) - 1) for side, part in parts.items())
    return both[["place", "measure"]].assign(old=both.mean_old, new=both.mean_new, moved=moved, df=df)


def _over_seeds(rows: pd.DataFrame) -> pd.DataFrame:
    long = rows.melt(["place", "notebook"], MEASURES, "measure").dropna(subset="value")
    grouped = long.groupby(["place", "notebook", "measure"], sort=False).value
    return grouped.agg(mean="mean", variance="var", n="count").reset_index()


def _moves(before: pd.DataFrame, after: pd.DataFrame) -> list[str]:
    """How many rows are equal, how far the means over seeds moved, and which moved most."""
    paired, same = len(before.merge(after, on=["place", "notebook", "seed"])), len(before.merge(after))
    lines = [f"rows: {len(before)} there, {len(after)} here, {paired} of one policy and seed in both; {same} equal"]
    if same == len(before) == len(after):
        return [*lines, "same bits: nothing moved"]
    lines += [f"no longer here: {place}" for place in sorted({*before.place} - {*after.place})]
    lines += [f"new: {place}" for place in sorted({*after.place} - {*before.place})]
    means = compared_means(before, after)
    size = means.moved.abs()
    equal, close, beyond = (size == 0).sum(), ((size > 0) & (size <= LIMIT)).sum(), (size > LIMIT).sum()
    chance = 2 * stats.t.sf(LIMIT, means.df[size > 0]).sum()
    lines += [
        f"means over seeds: {len(means)} compared, {equal} equal, {close} moved by at most {LIMIT} standard errors",
        f"  of the difference, {beyond} by more (by chance alone about {chance:.0f}), {size.isna().sum()} unknown",
    ]
    top = means.assign(size=size)[size > 0].sort_values("size", ascending=False, kind="stable").head(TOLD)
    return lines + [f"  {r.moved:+5.1f}  {r.place}, {r.measure}: {r.old:.4g} -> {r.new:.4g}" for r in top.itertuples()]


def _told(before: Path, after: Path) -> tuple[list[str], bool]:
    """A line for each finding, and whether what was firm holds, and nothing that held is contradicted."""
    old = all_answers(before).set_index("id")
    told = [(_word(old.loc[row.id], row), row) for row in all_answers(after).itertuples()]
    lines = [f"  {word:5}  {row.notebook}, {row.id}: {row.statement}" for word, row in told]
    key = "lost: narrow before, open now; gone: held, can no longer be asked; no: does not hold, nor did it before"
    return [f"findings ({key}):", *lines], all(word != "FAILS" for word, _ in told)


def _word(old: Any, new: Any) -> str:
    """What became of a finding; one that its tables no longer allow to ask, as with a single seed, does not fail."""
    if old.holds is True and new.holds is not True:
        return "gone" if pd.isna(new.value) else "FAILS" if old.firm is True or new.holds is False else "lost"
    return {True: "holds", False: "no"}.get(new.holds, "open")
