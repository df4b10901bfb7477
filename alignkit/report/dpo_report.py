"""The tables of notebooks 0, 2 and 3: what each method reaches, and at what drift."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pandas as pd

from alignkit.metrics import holm, interval_text, paired_p_value, seed_interval, verdict
from alignkit.training.baselines import best_of
from alignkit.training.evaluate import measures
from alignkit.workflow.schema import Aligned
from alignkit.workflow.store import Run

EVALUATION = ": evaluation"
SETTINGS = {"loss": "loss", "divergence": "divergence", "alpha": "alpha", "beta": "beta", "scores": "scores",
            "label_smoothing": "label_smoothing", "lora_rank": "lora_rank", "lr": "lr", "epochs": "epochs",
            "batch": "batch"}  # fmt: skip
"""A training run's settings and the columns that show them."""
TRAINING = ("eval_loss", "chosen_logp", "rejected_logp", "accuracy", "clamped", "tokens_trained")
"""What training measures on held-out pairs."""

RunsBySeed = dict[int, dict[str, Run]]


def rows(runs: RunsBySeed, p: Aligned) -> pd.DataFrame:
    """One row for each evaluated (method, seed): its settings, reward, gold, KL, diversity, cost and status.

    A diverged run keeps its row, with status "diverged" and no numbers.  `usual` marks what was trained on the pairs,
    rate, length, weights and scores that the main rows share.
    """
    out = []
    for seed, by_name in runs.items():
        for key, run in by_name.items():
            if not key.endswith(EVALUATION):
                continue
            name = key.removesuffix(EVALUATION)
            trained = _training(by_name[name], by_name) if name in by_name else {}
            out.append({"method": name, "seed": seed, "run": run.id, **trained, **run.metrics})
    table = pd.DataFrame(out)
    # A side row is trained for the first seed only; a profile of one seed tells by the completions.
    side = table.groupby("method").seed.transform("nunique") < len(runs)
    side |= table.groupby("method").completions.transform("max") < p.main_completions
    usual = table.loss.notna() & (table.pairs == "pairs")
    usual &= (table.lr == p.dpo()["lr"]) & (table.epochs == p.dpo()["epochs"])
    usual &= (table.scores == "policy_to_reference") & (table.lora_rank == 0)
    return table.assign(row=np.where(side, "side", "main"), usual=usual, profile=p.profile, notebook=p.notebook)


def _training(run: Run, by_name: dict[str, Run]) -> dict[str, object]:
    settings, metrics = run.record["settings"], run.metrics
    if "loss" not in settings:
        return {"tokens_trained": metrics.get("tokens_trained")}
    pairs = next(name for name, other in by_name.items() if other.id == run.record["runs"]["pairs"])
    shown = {column: settings.get(name) for name, column in SETTINGS.items()}
    drawn = by_name["generations"].metrics["tokens_generated"]
    return {**shown, "pairs": pairs, "tokens_generated": drawn} | {name: metrics[name] for name in TRAINING}


def completions(run: Run) -> pd.DataFrame:
    """The evaluated completions: prompt, completion, text, finished, reward, kl, and gold where it is known."""
    return pd.read_parquet(run.path / "completions.parquet")


def histories(runs: RunsBySeed, methods: Iterable[str]) -> pd.DataFrame:
    """The training logs of methods, one row for each log point, with columns method and seed."""
    found = [
        pd.read_csv(by_name[method].path / "history.csv").assign(method=method, seed=seed)
        for method in methods
        for seed, by_name in runs.items()
        if method in by_name
    ]
    return pd.concat(found, ignore_index=True)


def summary(table: pd.DataFrame, columns: list[str], by: str = "method") -> pd.DataFrame:
    """Mean and 95 % t interval over seeds of each column: <column>, <column>_low, <column>_high, and seeds."""
    out = []
    for key, group in table[table.status == "ok"].groupby(by, sort=False):
        row = {by: key, "seeds": group.seed.nunique()}
        for column in columns:
            row[column], row[f"{column}_low"], row[f"{column}_high"] = seed_interval(group[column])
        out.append(row)
    return pd.DataFrame(out)


def intervals(table: pd.DataFrame, columns: list[str], by: str = "method", digits: int = 2) -> pd.DataFrame:
    """`summary` for readers: each mean with its interval as one text."""
    means = summary(table, columns, by)
    shown = {
        c: [interval_text(*row, digits) for row in means[[c, f"{c}_low", f"{c}_high"]].to_numpy()] for c in columns
    }
    return pd.DataFrame({by: means[by], "seeds": means.seeds, **shown})


def told(row: Any, digits: int = 2) -> str:
    """A row of `differences` or `matched_differences` in words: difference, interval, and what they allow to say."""
    return f"{interval_text(row.difference, row.low, row.high, digits)}; {verdict(row.low, row.high)}"


def differences(table: pd.DataFrame, against: str, columns: list[str], by: str = "method") -> pd.DataFrame:
    """Each main method minus another, seed by seed: mean, 95 % t interval, p value, and p adjusted by Holm.

    Long form, one row for each (method, column); the adjustment is over all methods, for each column of its own.
    """
    wide = table[table.status == "ok"].pivot(index="seed", columns=by, values=columns)
    out = []
    for column in columns:
        base = wide[column][against]
        part = []
        for method in wide[column].columns.drop(against):
            gain = (wide[column][method] - base).dropna()
            if len(gain) < table.seed.nunique():
                continue  # a side row, or one that diverged for some seed: no comparison over all seeds
            mean, low, high = seed_interval(gain)
            part.append((method, column, len(gain), mean, low, high, paired_p_value(gain.to_numpy())))
        frame = pd.DataFrame(part, columns=[by, "measure", "seeds", "difference", "low", "high", "p"])
        out.append(frame.assign(holm=holm(frame.p.to_numpy())))
    return pd.concat(out, ignore_index=True)


def chosen_texts(by_name: dict[str, Run]) -> pd.DataFrame:
    """The chosen texts of the training pairs, each once, with prompt, completion, text and reward."""
    pairs = pd.read_parquet(by_name["pairs"].path / "pairs" / "train.parquet")
    drawn = pd.read_parquet(by_name["generations"].path / "generations.parquet")
    chosen = pairs[["prompt", "chosen"]].drop_duplicates().rename(columns={"chosen": "completion"})
    return chosen.merge(drawn.drop_duplicates(["prompt", "completion"]), on=["prompt", "completion"])


def quantiles(samples: Mapping[str, pd.Series]) -> pd.DataFrame:
    """What a box plot draws: 5, 25, 50, 75 and 95 percent quantile and mean of each sample."""
    shares = [0.05, 0.25, 0.5, 0.75, 0.95]
    out = {name: values.quantile(shares).rename(lambda q: f"q{100 * q:02.0f}") for name, values in samples.items()}
    table = pd.DataFrame(out).T.rename_axis("method").reset_index()
    return table.assign(mean=[values.mean() for values in samples.values()])


def best_of_rows(samples: pd.DataFrame, ns: Iterable[int]) -> pd.DataFrame:
    """Best of n by the reward model among the SFT policy's completions, for each n, with its KL bound.

    KL <= log n - (n - 1)/n (Gao et al. 2023; an upper bound, Beirami et al. 2024), nats.
    """
    out = []
    for n in ns:
        bound = np.log(n) - (n - 1) / n
        out.append({"method": f"best of {n}", "n": n, "kl_bound": bound, **measures(best_of(samples, n))})
    return pd.DataFrame(out)


def at_kl(table: pd.DataFrame, kls: Iterable[float], columns: list[str]) -> pd.DataFrame:
    """Each family's measures at given KLs, seed by seed, interpolated along its sweep over beta.

    Linear in √KL, in which reward is close to linear, between neighbouring runs; NaN beyond the last and before the
    first of them.  A family with runs at eta < 1 goes back to the SFT policy (KL 0) by itself.  `table` has columns
    family, seed, kl and the measures; SFT rows have family "sft".
    """
    out = []
    sound = table[(table.family != "sft") & (table.status == "ok")]
    for (name, seed), curve in sound.groupby(["family", "seed"], sort=False):
        if "eta" in curve and curve.eta.min() < 1:
            curve = pd.concat([table[(table.family == "sft") & (table.seed == seed)], curve])
        curve = curve.sort_values("kl")
        for kl in kls:
            reached = curve.kl.min() <= kl <= curve.kl.max()
            values = {c: np.interp(kl**0.5, curve.kl**0.5, curve[c]) if reached else np.nan for c in columns}
            out.append({"family": name, "seed": seed, "at_kl": kl, **values})
    return pd.DataFrame(out)


def matched_differences(matched: pd.DataFrame, against: str, columns: list[str]) -> pd.DataFrame:
    """Each family minus another at the same KL, seed by seed; Holm's adjustment is over all KLs and families.

    `matched` is a table of `at_kl`.  Long form like `differences`, with at_kl and a label for figures; a family that
    misses a KL in some seed has no row there.
    """
    out = []
    for column in columns:
        part = []
        for kl, here in matched.groupby("at_kl"):
            wide = here.pivot(index="seed", columns="family", values=column)
            for family in wide.columns.drop(against):
                gain = wide[family] - wide[against]
                if gain.isna().any():
                    continue
                label = f"{family} at KL {kl:g}"
                part.append((label, family, kl, column, *seed_interval(gain), paired_p_value(gain.to_numpy())))
        frame = pd.DataFrame(part, columns=["label", "family", "at_kl", "measure", "difference", "low", "high", "p"])
        out.append(frame.assign(holm=holm(frame.p.to_numpy())))
    return pd.concat(out, ignore_index=True)


def families(table: pd.DataFrame) -> pd.Series:
    """The divergence of each row, with its alpha; "sft" where nothing was trained on pairs."""
    alpha = " " + table.alpha.map(lambda value: f"{value:g}", na_action="ignore").fillna("").astype(str)
    return (table.divergence + alpha.where(table.divergence == "alpha", "")).fillna("sft")


def at_kl_by_prompt_length(runs: RunsBySeed, table: pd.DataFrame, kls: Iterable[float], columns: list[str]):
    """`at_kl` for the shorter and the longer half of the test prompts; a further column prompts says which.

    `columns` are columns of `completions`.
    """
    found = []
    for row in table.itertuples():
        texts = completions(runs[row.seed][row.method + EVALUATION])
        words = texts.prompt.str.split().str.len()
        for half, kept in (("short", words <= words.median()), ("long", words > words.median())):
            means = texts.loc[kept, ["kl", *columns]].mean()
            found.append({"prompts": half, "family": row.family, "seed": row.seed, "status": "ok", **means})
    halves = pd.DataFrame(found).groupby("prompts", sort=False)
    return pd.concat(at_kl(part, kls, columns).assign(prompts=half) for half, part in halves)
