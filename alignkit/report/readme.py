"""The README's numbers, written by the code that read them from the tables."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from alignkit import paths
from alignkit.report import replication, tables
from alignkit.workflow.batch import write
from alignkit.workflow.schema import NOTEBOOKS

START, END = "<!-- {}: written by `make report` from its tables -->", "<!-- end of {} -->"
"""Around each block of the README that is written here."""
DATA = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
MODELS, MEASURES, PLACED, PREDICTED = (DATA[name] for name in ("models", "measures", "placed", "predicted"))
"""What the README tells of reward models and of policies, by the names of the tables."""
MAIN, FAMILIES, TUNED, TITLES = (DATA[name] for name in ("main", "families", "tuned", "titles"))
"""The findings and the families of notebook 6 that it tells, and what stands above its tables."""
GPUS = ("T4", "A100", "H100")


def results(figures: Path) -> str:
    """Tables of every profile but smoke and replicas, folded under their titles, the first unfolded."""
    blocks = (share_tables, agreement_tables, reward_model_table, language_model_table, policy_table)
    told = [(title, block(figures)) for title, block in zip(TITLES, blocks, strict=True)]
    folded = [f"<details>\n<summary>{title}</summary>\n\n{text}\n\n</details>" for title, text in told if text]
    return "\n\n".join(folded).replace("<details>", "<details open>", 1)


def main_findings(figures: Path) -> str:
    """Pocket's main findings as a list: which are open, which hold with fresh seeds, and how many of all do."""
    file = figures / "pocket" / "findings.csv"
    if not file.is_file():
        return ""
    found, lines = pd.read_csv(file), []
    known = found.reindex(columns=["id", "statement", "value", "holds", "firm", "replicated"])
    main = [*MAIN, *known.id[known.replicated.eq(False) & ~known.id.isin(MAIN)]]  # and what has not held again
    for row in known.set_index("id").reindex(main).dropna(subset="value").itertuples():
        again = {True: "replicated", False: "not replicated"}.get(row.replicated, "not asked again")
        kind = f"refutes `{row.Index}`; " if row.holds is False else "" if row.firm is True else "narrow; "
        mark = "open" if pd.isna(row.holds) else kind + again
        lines.append(f"- {row.statement} ({mark})")
    lines += [f"- All findings: {text}." for text in [replication.held_again(found)] if text]
    return "\n".join(lines)


def agreement_tables(figures: Path) -> str:
    """Markdown tables of the findings that hold in pocket and whether they hold elsewhere: with its own variants, by
    their answers; on other reviews, with what is said there, where it is asked."""
    found = {file.parent.name: pd.read_csv(file) for file in _published(figures, "agreement")}
    held = {profile: table[table.holds.eq(True)] for profile, table in found.items()}
    parts = []
    if variants := [profile for profile in held if is_variant(profile)]:
        wide = pd.concat({profile: held[profile].set_index("statement").there for profile in variants}, axis=1)
        wide = wide.fillna("not asked")  # by a report of fewer notebooks
        names = {"statement": "finding that holds in pocket: does it hold there?"}
        names |= {profile: f"{profile}: {_counts(held[profile])}" for profile in variants}
        parts.append(markdown([wide.reset_index()], names))
    for profile, table in held.items():
        if profile not in variants:
            shown = {"statement": "finding that holds in pocket", "statement_there": profile}
            shown |= {"there": f"holds there ({_counts(table)})"}
            # By the length of the word: no, yes, cannot tell.
            answered = table[table.there != "not asked"].sort_values("there", kind="stable", key=lambda x: x.str.len())
            parts.append(markdown([answered], shown))
    return "\n\n".join(parts)


def is_variant(profile: str) -> bool:
    """Whether a profile is pocket with something changed: its findings are told, beside pocket's tables."""
    return profile.startswith("pocket_")


def _counts(table: pd.DataFrame) -> str:
    return ", ".join(f"{word} {(table.there == word).sum()}" for word in ("yes", "no", "cannot tell"))


def share_tables(figures: Path) -> str:
    """Markdown tables of notebook 6: shares of each report at its KLs, and at KL 1 pocket beside its variants."""
    each = ((file.parent.name, pd.read_csv(file)) for file in _published(figures, "6_efficiency"))
    found = [(p, _shares(t)) for p, t in each if "draws" in t and t.filter(items=["KL 1"]).notna().any(axis=None)]
    own = [(table, f"{profile}: share of the optimal gain") for profile, table in found if not is_variant(profile)]
    parts = [markdown([table.rename(columns={"family": name})]) for table, name in own]
    beside = [(profile, table) for profile, table in found if profile == "pocket" or is_variant(profile)]
    at_one = {f"{p}, {table.seeds.max():.0f} seeds": table.set_index("family")["KL 1"] for p, table in beside}
    if len(at_one) > 1:
        wide = pd.concat(at_one, axis=1).fillna("").reset_index(names="share of the optimal gain at KL 1")
        parts.append(markdown([wide[(wide[list(at_one)[1:]] != "").any(axis=1)]]))
    return "\n\n".join(parts)


def _shares(table: pd.DataFrame) -> pd.DataFrame:
    """The families of notebook 6 that the README tells, with all seeds, and tuned ones: family, seeds, shares as texts.

    The best at KL 1 stand first; what has no policy there stands last.  DPO's best family is always there; of
    families that keep one of n draws, those with the largest n are.
    """
    columns = [c for c in ("KL 0.25", "KL 0.5", "KL 1", "KL 2") if c in table and table[c].notna().any()]
    kept = table.dropna(subset=columns, how="all").sort_values(["KL 1", columns[0]], ascending=False)
    whole = kept.seeds == kept.seeds.max()
    best = whole & kept.family.isin(kept.family[whole & kept.family.str.startswith("DPO, ")].head(1))
    one_of = kept.family.str.contains(", one of ")
    fewer = one_of & (kept.draws < kept.draws[one_of].max())
    told = (whole & kept.family.str.contains(FAMILIES) & ~fewer) | best
    return tables.means_as_text(kept[told | kept.family.isin([f"{name}, tuned" for name in TUNED])], columns)


def reward_model_table(figures: Path) -> str:
    """The Markdown table of notebook 1's main rows; baselines, which have no seeds, have no interval."""
    found = []
    for file in _published(figures, "1_reward_model"):
        table = pd.read_csv(file)
        rows = pd.concat(table[table.method == name].assign(method=told) for name, told in MODELS.items())
        told = tables.intervals(rows, list(MEASURES), digits=3).replace({"seeds": {0: ""}})
        found.append(told.assign(reviews=file.parent.name))
    return markdown(found, {"reviews": "reviews", "method": "model", "seeds": "seeds", **MEASURES})


def language_model_table(figures: Path) -> str:
    """The Markdown table of how well supervised policies predict test reviews, beside a pretrained one as it comes;
    benchmarks/ lies beside `figures`."""
    found = []
    for file in _published(figures, "1_sft"):
        table = pd.read_csv(file).rename(columns={"test_cross_entropy": "nats_a_token"}).assign(policy=file.parent.name)
        seen = f"{table.tokens_seen.mean():,.0f}"
        found.append(tables.intervals(table, list(PREDICTED), by="policy", digits=3).assign(seen=seen))
    pretrained = figures.with_name("benchmarks") / "untuned.csv"
    if found and pretrained.is_file():
        found.append(pd.read_csv(pretrained).round(3).assign(seen="as it comes", seeds=""))
    return markdown(found, {"policy": "policy", "seeds": "seeds", "seen": "tokens seen in training", **PREDICTED})


def policy_table(figures: Path) -> str:
    """The Markdown table of notebook 2's main rows, of WARP after its last iteration, and of the distilled policy."""
    found = []
    for file in (file for file in _published(figures, "2_dpo_losses") if not is_variant(file.parent.name)):
        others = [(file.with_name("4_warp.csv"), _warp), (file.with_name("5_improvements.csv"), _distilled)]
        table = pd.concat([pd.read_csv(file), *(rows(pd.read_csv(other)) for other, rows in others if other.is_file())])
        swept = r"^(?!WARP|distilled).*(?: β=| of the prompts|, η=(?!1$))"  # of a sweep its usual setting is shown
        main = table[(table.row == "main") & ~table.method.str.contains(swept, regex=True)]
        main = main.reindex(columns=["method", "seed", "status", *PLACED])
        found.append(tables.intervals(main, list(PLACED)).assign(reviews=file.parent.name))
    return markdown(found, {"reviews": "reviews", "method": "policy", "seeds": "seeds", **PLACED})


def _warp(table: pd.DataFrame) -> pd.DataFrame:
    """The main points of WARP's last front, at its two lengths, and REINFORCE at its last step, each named."""
    last = table[table.method.str.match(r"WARP$|WARP, T=") & (table.iteration == table.iteration.max())]
    alone = table[(table.method == "REINFORCE, EMA anchor") & (table.eta == 1)]
    alone = alone[alone.steps == alone.steps.max()]
    return pd.concat([alone, last.assign(method=last.family + ", η=" + last.eta.map("{:g}".format))])


def _distilled(table: pd.DataFrame) -> pd.DataFrame:
    """The distilled policy and RLOO after it, each named."""
    rows = table[table.method.isin(["distilled draws", "distilled, then RLOO"]) & (table.eta == 1)]
    return rows.assign(method=rows.method + ", β=" + rows.beta.map("{:g}".format))


def times(figures: Path) -> str:
    """Runs and minutes of each notebook of each profile, each run counted with the first notebook that has it."""
    parts = []
    for notebook in NOTEBOOKS:
        for runs in _published(figures, f"{notebook.partition('_')[0]}_runs"):
            timings = pd.read_csv(runs.with_name(runs.name.replace("_runs", "_timings")))
            both = pd.read_csv(runs).merge(timings, on=["run", "seed"])
            parts.append(both.assign(notebook=notebook, profile=runs.parent.name))
    if not parts:
        return ""
    once = pd.concat(parts).drop_duplicates(["profile", "id"])
    counted = once.groupby(["notebook", "profile"]).seconds.agg(["size", "sum"])
    told = [f"{runs:.0f} runs, {seconds / 60:.0f} min" for runs, seconds in counted.to_numpy()]
    return markdown([counted.assign(told=told).told.unstack()[once.profile.unique()].fillna("").reset_index()])


def _published(figures: Path, notebook: str) -> list[Path]:
    """The table of a notebook in every profile that is a report of its own, pocket first."""
    files = [file for file in figures.glob(f"*/{notebook}.csv") if replication.is_report(file.parent.name)]
    return sorted(files, key=lambda file: (file.parent.name != "pocket", file))


def markdown(found: Sequence[pd.DataFrame], columns: Mapping[str, str] | None = None) -> str:
    """These columns of several tables in one, under other names, or all as they are; "" without a table."""
    columns = columns or {name: name for table in found for name in table}
    rows = [columns.values(), *(row for table in found for row in table[list(columns)].astype(str).to_numpy())]
    head, *lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([head, "|---" * len(columns) + "|", *lines]) if found else ""


def speeds(figures: Path) -> str:
    """What `make bench` measured; benchmarks/ lies beside `figures`."""
    return ratios(pd.read_csv(figures.with_name("benchmarks") / "peers.csv"))


def ratios(rows: pd.DataFrame) -> str:
    """Medians and quartiles of times of others by those of alignkit, from peers.csv."""
    cells = rows.assign(cell=[tables.interval_text(r.ratio, r.low, r.high, 2) for r in rows.itertuples()])
    wide = cells.pivot(index="benchmark", columns="column", values="cell").loc[rows.benchmark.unique()]
    wide = wide[rows.column.unique()].fillna("").reset_index()
    return markdown([wide], dict(zip(wide.columns, ["time of ... / time of alignkit", *wide.columns[1:]], strict=True)))


def estimates(figures: Path) -> str:
    """What each notebook of imdb is estimated to take, with one seed and with all (`benchmarks/estimates.py`)."""
    table = pd.read_csv(figures.with_name("benchmarks") / "estimates.csv")
    total = table.groupby("seeds", as_index=False).sum().assign(notebook="all", peak_gb=table.peak_gb.max())
    rows = pd.concat([table, total]).set_index(["notebook", "seeds"])
    rows = rows.map(lambda number: f"{number:,.0f}" if number >= 10 else f"{number:.2g}")
    each = rows.groupby("notebook", sort=False).agg(lambda both: " / ".join(dict.fromkeys(both))).reset_index()
    shown = {"runs": "new runs", "peak_gb": "GB of GPU memory", "disk_gb": "GB on disk"}
    return markdown([each], {"notebook": "imdb, estimated", **shown} | {gpu: f"{gpu}, hours" for gpu in GPUS})


BLOCKS = {"findings": main_findings, "results": results, "times": times, "speeds": speeds, "estimates": estimates}


def with_results(text: str, figures: Path) -> str:
    """The README with its blocks made anew, in which a table breaks no line inside an interval; a block without markers
    in the text is left out."""
    for name, block in BLOCKS.items():
        start, end = START.format(name), END.format(name)
        if start in text and end in text:
            before, rest = text.split(start)
            told = re.sub(r"(?m)^\|.*$", lambda row: tables.unbroken(row[0]), block(figures))
            text = f"{before}{start}\n{told}\n{end}{rest.split(end)[1]}"
    return text


def update() -> list[str]:
    """Rewrite the README's results if they have changed; returns the changed file, if any."""
    file = paths.CHECKOUT / "README.md"
    return write(file, with_results(file.read_text(encoding="utf-8"), paths.CHECKOUT / "figures").encode())
