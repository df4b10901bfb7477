"""The README's numbers, written by the code that read them from the tables."""

from pathlib import Path

import pandas as pd

from alignkit import paths
from alignkit.metrics import seed_interval
from alignkit.report.tables import interval_text

START, END = "<!-- results: written by `make report` from the tables in figures/ -->", "<!-- end of results -->"
ROWS = {
    "reward": "reward model, all pairs, all training reviews",
    "tfidf_words": "TF-IDF, words",
    "tfidf_word_pairs": "TF-IDF, words and word pairs",
    "exact posterior": "exact posterior (nobody can do better)",
}
USUAL = {"WARP": "WARP, T=50", "REINFORCE with an EMA anchor": "REINFORCE, EMA anchor", "DPO": "DPO, reverse_kl"}
"""Methods as published, and what notebook 6 calls them."""
MEASURES = ["pairwise_accuracy", "sign_accuracy", "ece"]
PLACED = ["kl", "reward", "gold", "unigram_entropy"]
"""What the README tells of a policy."""


def results(figures: Path) -> str:
    """The Markdown tables of every published profile but smoke: efficiencies, reward models, policies."""
    return "\n\n".join(filter(None, [efficiencies(figures), reward_models(figures), policies(figures)]))


def efficiencies(figures: Path) -> str:
    """The Markdown table of notebook 6: methods with all seeds, by their efficiency at the middle KL."""
    lines = []
    for file in sorted(_published(figures, "6_efficiency"), reverse=True):
        table = pd.read_csv(file)
        columns = [c for c in ("KL 0.5", "KL 1", "KL 2") if c in table]
        if "KL 1" not in columns or "draws" not in table:
            continue
        kept = table[(table.seeds == table.seeds.max()) & table["KL 1"].notna()]
        kept = kept.sort_values("KL 1", ascending=False)
        # Of the numbers of draws the largest; notebook 6 has all.
        shown = kept[kept.draws.isna() | (kept.draws == kept.draws.max())]
        head = f"| {file.parent.name}: share of the optimal gain | seeds | {' | '.join(columns)} |"
        lines += [_headline(kept), "", head, "|---" * (2 + len(columns)) + "|"]
        for row in shown.to_dict("records"):
            cells = [_interval(row, c) for c in columns]
            lines.append(f"| {row['family']} | {row['seeds']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _headline(kept: pd.DataFrame) -> str:
    """The table in one sentence: what one draw gets, what the usual methods get, and what many draws get."""
    single, several = kept[kept.draws.isna()], kept[kept.draws.notna()]
    shares = single.set_index("family")["KL 1"]
    told = []
    if len(single):
        best = f"the best policy that is used with one draw a text (*{shares.index[0]}*) gets {shares.iloc[0]:.2f}"
        told = [best, *(f"{label} {shares[name]:.2f}" for label, name in USUAL.items() if name in shares)]
    if len(several):
        told.append(f"and keeping one of several draws (*{several.family.iloc[0]}*) {several['KL 1'].iloc[0]:.2f}")
    return "Of the gain in reward that is possible at a KL of 1 nat, " + ", ".join(told) + "." if told else ""


def _interval(row: dict[str, float], column: str) -> str:
    values = [row[name] for name in (column, f"{column}_low", f"{column}_high")]
    return "" if pd.isna(values[0]) else interval_text(*values, 2)


def policies(figures: Path) -> str:
    """The Markdown table of notebook 2's main rows and of WARP after its last iteration; nothing if not published."""
    lines = [
        "| reviews | policy | seeds | KL to SFT (nats) | reward (proxy) | gold reward | entropy of words |",
        "|---|---|---|---|---|---|---|",
    ]
    for file in sorted(_published(figures, "2_dpo_losses"), reverse=True):
        table = pd.read_csv(file)
        table = pd.concat([table, *(_warp(pd.read_csv(f)) for f in [file.with_name("4_warp.csv")] if f.is_file())])
        for method, rows in table[(table.row == "main") & (table.status == "ok")].groupby("method", sort=False):
            cells = [interval_text(*seed_interval(rows[m].to_numpy()), 2) if m in rows else "" for m in PLACED]
            lines.append(f"| {file.parent.name} | {method} | {len(rows)} | {' | '.join(cells)} |")
    return "\n".join(lines) if len(lines) > 2 else ""


def _warp(table: pd.DataFrame) -> pd.DataFrame:
    """The main points of WARP's last front, and REINFORCE at its last step, each named."""
    last = table[(table.method == "WARP") & (table.iteration == table.iteration.max())]
    alone = table[(table.method == "REINFORCE, EMA anchor") & (table.eta == 1)]
    alone = alone[alone.steps == alone.steps.max()]
    return pd.concat([alone, last.assign(method="WARP, η=" + last.eta.map("{:g}".format))])


def _published(figures: Path, notebook: str) -> list[Path]:
    return [f for f in figures.glob(f"*/{notebook}.csv") if f.parent.name != "smoke"]


def reward_models(figures: Path) -> str:
    """The Markdown table of notebook 1's main rows."""
    lines = [
        "| reviews | model | seeds | pairwise accuracy | sign accuracy | calibration error |",
        "|---|---|---|---|---|---|",
    ]
    for file in sorted(_published(figures, "1_reward_model"), reverse=True):
        table = pd.read_csv(file)
        for method, name in ROWS.items():
            rows = table[table.method == method]
            if rows.empty:
                continue
            fixed = rows.seed.isna().all()
            cells = [
                f"{rows[m].iloc[0]:.3f}" if fixed else interval_text(*seed_interval(rows[m].to_numpy()))
                for m in MEASURES
            ]
            seeds = "" if fixed else str(len(rows))
            lines.append(f"| {file.parent.name} | {name} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines)


def with_results(text: str, figures: Path) -> str:
    """The README with its block of results made anew; text without the markers is returned as it is."""
    if START not in text or END not in text:
        return text
    before, rest = text.split(START)
    return f"{before}{START}\n{results(figures)}\n{END}{rest.split(END)[1]}"


def update() -> list[str]:
    """Rewrite the README's results if they have changed; returns the changed file, if any."""
    file = paths.CHECKOUT / "README.md"
    old = file.read_text(encoding="utf-8")
    new = with_results(old, paths.CHECKOUT / "figures")
    if new == old:
        return []
    file.write_text(new, encoding="utf-8")
    return [file.name]
