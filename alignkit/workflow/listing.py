"""What ran: the runs of the store, newest first, with what sets each apart and the line that loads its weights."""

import json
from collections import Counter, defaultdict
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.workflow.store import ASIDE, LOCKS, RECORD, Run


def runs(profile: str | None, function: str | None, seed: int | None, limit: int) -> list[str]:
    """Two lines about each of the newest runs, and one about each folder of the store that holds no whole run.

    profile: only runs that its notebooks name.  function: only training functions whose name holds this.
    Raises UserFault if no notebook of the profile was executed or published here.
    """
    ids = None if profile is None else ids_of_profile(profile)
    folders = [f for f in paths.store().glob("*") if f.is_dir() and f.name not in (ASIDE, LOCKS)]
    found = {f: record_of(f) for f in sorted(folders, key=lambda f: f.stat().st_mtime, reverse=True)}
    whole = {folder: record for folder, record in found.items() if record}
    asked = [(f, record) for f, record in whole.items() if ids is None or record["id"] in ids]
    asked = [(f, r) for f, r in asked if (function or "") in r["function"] and seed in (None, r["inputs"].get("seed"))]
    often = usual_settings(list(whole.values()))
    lines = [line for folder, record in asked[:limit] for line in lines_about(folder, record, often)]
    others = [folder.name for folder in found if folder not in whole][:limit]
    lines += [f"{name}: {'is under way, or was killed' if 'tmp-' in name else 'holds no whole run'}" for name in others]
    if not asked:
        lines.append(f"none; functions that ran: {', '.join(sorted({r['function'] for r in whole.values()}))}")
    return [*lines, f"{len(asked[:limit])} of {len(asked)} shown, newest first; {len(whole)} runs in {paths.store()}"]


def ids_of_profile(profile: str) -> set[str]:
    """The ids of the runs that the notebooks of a profile name, executed or published."""
    places = (paths.figures(profile), paths.published(profile))
    if not (files := [file for place in places for file in place.glob("*_runs.csv")]):
        raise UserFault(f"runs: no notebook of profile {profile!r} was executed here; without a profile all are listed")
    return set().union(*(pd.read_csv(file, dtype=str).id for file in files))


def beside_published(p: Any, seed: int, made: dict[str, Run]) -> list[str]:
    """A line on how many rows that a notebook published with a seed are repeated by the runs `made`; else none.

    A run repeats the row of its name if KL and reward (nats) are equal in the six digits of the table.
    """
    files = [paths.published(p.profile) / f"{n}.csv" for n in (f"{p.notebook.partition('_')[0]}_runs", p.notebook)]
    none = pd.DataFrame(columns=["run", "seed", "id"])
    named, rows = (pd.read_csv(file, dtype=str) if file.is_file() else none for file in files)
    if not {"run", "kl", "reward"} <= {*rows}:
        return []
    there = named[named.seed == str(seed)].merge(rows, left_on="id", right_on="run")
    here = [made[name].metrics if name in made else {} for name in there.run_x]
    # What has no KL, such as a search, has none in the table either.
    kl, reward = (there[m].fillna("nan") == [f"{r.get(m, nan):.6g}" for r in here] for m in ("kl", "reward"))
    told = f"{(kl & reward).sum()} of {len(there)} rows that figures/{p.profile} has of {p.notebook} with seed"
    return [f"{told} {seed} are repeated: KL and reward are equal in all six digits"] * bool(here)


def record_of(folder: Path) -> dict[str, Any] | None:
    """The record of the run in a folder; None if it is another run's, cannot be read, or names files that are gone."""
    try:
        record = json.loads((folder / RECORD).read_text("utf-8"))
        lines_about(folder, record, usual_settings([record]))
        there = all((folder / file).is_file() for file in record["files"])
        return record if there and folder.name == f"{record['function']}-{record['id']}" else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def settings_of(record: dict[str, Any]) -> dict[str, str]:
    """Settings, data and what else a run was given, without its seed and the runs that it starts from."""
    inputs = {name: value for name, value in record["inputs"].items() if name not in {"seed", *record["runs"]}}
    return {name: json.dumps(value) for name, value in (record["settings"] | inputs).items()}


def usual_settings(records: list[dict[str, Any]]) -> dict[tuple[str, str], str]:
    """What most runs of a training function have, by its name and the setting's."""
    counts: dict[tuple[str, str], Counter] = defaultdict(Counter)
    for record in records:
        for name, value in settings_of(record).items():
            counts[record["function"], name][value] += 1
    return {place: values.most_common(1)[0][0] for place, values in counts.items()}


def lines_about(folder: Path, record: dict[str, Any], often: dict[tuple[str, str], str]) -> list[str]:
    """Function, seed, minutes and unusual settings of a run; then the line that loads its weights, or its folder."""
    name, seed = record["function"], record["inputs"].get("seed", "none")
    own = [f"{key}={value[:60]}" for key, value in settings_of(record).items() if value != often[name, key]]
    weights = json.loads((folder / "config.json").read_text("utf-8")) if "config.json" in record["files"] else {}
    kind = weights.get("architectures", [""])[0]
    loaded = f"transformers.{kind}.from_pretrained({str(folder)!r})" if kind.isidentifier() else str(folder)
    ran = f"{name}  seed {seed}  {record['seconds'] / 60:.1f} min  {' '.join(own) or 'usual settings'}"
    return [ran, f"    {loaded}"]
