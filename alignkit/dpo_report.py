"""The tables of notebooks 0, 2 and 3: what each method reaches, and at what drift."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from alignkit.baselines import best_of
from alignkit.evaluation import measures
from alignkit.metrics import holm, paired_p_value, seed_interval
from alignkit.params import Aligned
from alignkit.runs import Run

EVALUATION = ": evaluation"
SETTINGS = {"loss": "loss", "divergence_name": "divergence", "alpha": "alpha", "beta": "beta", "scores": "scores",
            "label_smoothing": "label_smoothing", "lora_rank": "lora_rank", "lr": "lr", "epochs": "epochs",
            "batch": "batch"}  # fmt: skip
"""A training run's settings and the columns that show them."""
TRAINING = ("eval_loss", "chosen_logp", "rejected_logp", "accuracy", "clamped", "tokens_trained")
"""What training measures on held-out pairs."""

RunsBySeed = dict[int, dict[str, Run]]


def rows(runs: RunsBySeed, p: Aligned) -> pd.DataFrame:
    """One row for each evaluated (method, seed): its settings, reward, gold, KL, diversity, cost and status.

    A diverged run keeps its row, with status "diverged" and no numbers.
    """
    out = []
    for seed, by_name in runs.items():
        for key, run in by_name.items():
            if not key.endswith(EVALUATION):
                continue
            name = key.removesuffix(EVALUATION)
            out.append({"method": name, "seed": seed, "run": run.id, **_training(by_name.get(name)), **run.metrics})
    table = pd.DataFrame(out)
    seeds = table.groupby("method").seed.transform("nunique")
    main = np.where(seeds == len(runs), "main", "side") if len(runs) > 1 else "main"
    return table.assign(row=main, profile=p.profile, notebook=p.notebook)


def _training(run: Run | None) -> dict[str, object]:
    if run is None or "loss" not in run.record["settings"]:
        return {} if run is None else {"tokens_trained": run.metrics.get("tokens_trained")}
    settings, metrics = run.record["settings"], run.metrics
    shown = {column: settings.get(name) for name, column in SETTINGS.items()}
    return shown | {name: metrics[name] for name in TRAINING}


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
            if len(gain) < len(base):
                continue  # a side row
            mean, low, high = seed_interval(gain)
            part.append((method, column, len(gain), mean, low, high, paired_p_value(gain.to_numpy())))
        frame = pd.DataFrame(part, columns=[by, "measure", "seeds", "difference", "low", "high", "p"])
        out.append(frame.assign(holm=holm(frame.p.to_numpy())))
    return pd.concat(out, ignore_index=True)


def best_of_rows(samples: pd.DataFrame, ns: Iterable[int]) -> pd.DataFrame:
    """Best of n by the reward model among the SFT policy's completions, for each n, with its KL bound.

    KL <= log n - (n - 1)/n (Gao et al. 2023; an upper bound, Beirami et al. 2024), nats.
    """
    out = []
    for n in ns:
        bound = np.log(n) - (n - 1) / n
        out.append({"method": f"best of {n}", "n": n, "kl_bound": bound, **measures(best_of(samples, n))})
    return pd.DataFrame(out)


def at_kl(table: pd.DataFrame, kls: Iterable[float], columns: list[str], family: str = "family") -> pd.DataFrame:
    """Each family's measures at given KLs, seed by seed, interpolated along its sweep over beta.

    Linear in √KL, in which reward is close to linear, between the SFT policy (KL 0) and the neighbouring runs; a
    family whose sweep does not reach a KL has NaN there.  `table` has columns family, seed, kl and the measures; SFT
    rows have family "sft".
    """
    out = []
    for (name, seed), group in table[(table[family] != "sft") & (table.status == "ok")].groupby(
        [family, "seed"], sort=False
    ):
        start = table[(table[family] == "sft") & (table.seed == seed)]
        curve = pd.concat([start, group]).sort_values("kl")
        for kl in kls:
            reached = kl <= curve.kl.max()
            values = {c: np.interp(kl**0.5, curve.kl**0.5, curve[c]) if reached else np.nan for c in columns}
            out.append({family: name, "seed": seed, "at_kl": kl, **values})
    return pd.DataFrame(out)
