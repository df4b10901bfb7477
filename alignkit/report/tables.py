"""Tables that several notebooks make: means over seeds, differences, rows at one KL, fronts, where numbers are from."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from alignkit import __version__
from alignkit.frontier import LEAST_KL, along_root_kl, best_of_n_kl, hypervolume
from alignkit.metrics import holm, paired_p_value, seed_interval

if TYPE_CHECKING:  # the trainers are slow to import, and publishing needs none
    from alignkit.report.policies import Policy, Runs
    from alignkit.workflow.schema import World
    from alignkit.workflow.store import Run

MOST_KL = 4.0
"""Nats up to which a hypervolume counts."""
STEPS = 1000
"""Places, even in √KL, at which a front is read for its hypervolume, beside its own points."""


DIFFERENT = 0.05
"""p value, Holm-adjusted where several are compared, below which a difference counts."""


# Over seeds


def summary(table: pd.DataFrame, columns: Sequence[str], by: str = "method") -> pd.DataFrame:
    """Mean and 95 % t interval over seeds of rows with status "ok": <column>, <column>_low, <column>_high; seeds."""
    sound = table[table.status == "ok"] if "status" in table else table
    names = [name for column in columns for name in (column, f"{column}_low", f"{column}_high")]
    groups = sound.groupby(by, sort=False)
    out = [[key, g.seed.nunique(), *(x for column in columns for x in seed_interval(g[column]))] for key, g in groups]
    return pd.DataFrame(out, columns=[by, "seeds", *names])


def means_as_text(means: pd.DataFrame, columns: Sequence[str], digits: int = 2) -> pd.DataFrame:
    """A `summary` with each mean and its interval as one text; "" where there is no mean, no interval without seeds."""
    out = means[[means.columns[0], "seeds"]].copy()
    for column in columns:
        ends = means[[column, f"{column}_low", f"{column}_high"]].to_numpy()
        out[column] = ["" if np.isnan(row[0]) else interval_text(*row, digits) for row in ends]
        out.loc[means.seeds == 0, column] = out[column].astype(str).str.removesuffix(" (1 seed)")
    return out


def intervals(table: pd.DataFrame, columns: Sequence[str], by: str = "method", digits: int = 2) -> pd.DataFrame:
    """The `summary` of a table, as texts."""
    return means_as_text(summary(table, columns, by), columns, digits)


def side_of_zero(low: float, high: float) -> int:
    """1 for an interval above zero, -1 for one below; 0 for one that includes it, or is not known."""
    return int(low > 0) - int(high < 0)


def verdict(low: float, high: float) -> str:
    """What an interval of a difference allows to say."""
    if np.isnan(low):
        return "one seed, so no interval and no claim"
    return "the interval is clear of zero" if side_of_zero(low, high) else "the interval includes zero, so no claim"


def interval_text(mean: float, low: float, high: float, digits: int = 3) -> str:
    """ "0.974 [0.970, 0.978]", or the mean alone and "(1 seed)" where there is no interval."""
    mean, low, high = (f"{round(x, digits) + 0.0:.{digits}f}" for x in (mean, low, high))  # no minus before a zero
    return f"{mean} (1 seed)" if low == "nan" else f"{mean} [{low}, {high}]"


def unbroken(text: str) -> str:
    """A text, or HTML, in which an interval stays on one line."""
    return re.sub(r"(\[-?[\d.]+), (?=-?[\d.]+\])", r"\1,&nbsp;", text)


def difference_in_words(row: Any) -> str:
    """A row of `differences` or `matched_differences` in words: difference, interval, and what they allow to say."""
    but = f", but after Holm p = {row.holm:.2f}" if side_of_zero(row.low, row.high) and row.holm >= DIFFERENT else ""
    return f"{interval_text(row.difference, row.low, row.high, 2)}; {verdict(row.low, row.high)}{but}"


def differences(table: pd.DataFrame, against: str, columns: Sequence[str], by: str = "method") -> pd.DataFrame:
    """Each main method minus another, seed by seed: mean, 95 % t interval, p value, and p adjusted by Holm.

    Long form, one row for each (method, column); the adjustment is over all methods, for each column of its own.  What
    lacks a seed, as side rows do where there are several, or diverged for one, has no row.
    """
    sound = table.assign(**{column: table[column].where(table.status == "ok") for column in columns})
    return _minus({None: sound}, by, against, columns).drop(columns="at_kl")


def reversed_differences(table: pd.DataFrame) -> pd.DataFrame:
    """Differences the other way round."""
    return table.assign(difference=-table.difference, low=-table.high, high=-table.low)


def _minus(places: Mapping[Any, pd.DataFrame], by: str, against: str, columns: Sequence[str]) -> pd.DataFrame:
    """Differences within each table of `places` (by KL), of what has a number for every seed; Holm over all places."""
    out = []
    for column in columns:
        rows = []
        for kl, table in places.items():
            wide = table.pivot(index="seed", columns=by, values=column)
            for name, gain in wide.drop(columns=against).sub(wide[against], axis=0).dropna(axis=1).items():
                rows.append((name, kl, column, len(gain), *seed_interval(gain), paired_p_value(gain)))
        found = pd.DataFrame(rows, columns=[by, "at_kl", "measure", "seeds", "difference", "low", "high", "p"])
        out.append(found.assign(holm=holm(found.p)))
    return pd.concat(out, ignore_index=True)


# At one KL


def goes_back(rows: pd.DataFrame) -> bool:
    """Whether a family's line starts at SFT: it does where its policies are interpolated back (η below 1)."""
    return "eta" in rows and bool(rows.eta.min() < 1)


def at_kl(table: pd.DataFrame, kls: Iterable[float], columns: Sequence[str]) -> pd.DataFrame:
    """Each family's rows read at given KLs, seed by seed, linear in √KL; NaN beyond the KLs that it reaches.

    A family that `goes_back` starts at SFT, whose rows have the family "sft".
    Columns family, seed, at_kl and `columns`.
    """
    out = []
    for name, seed, start, rows in _lines(table[table.status == "ok"], "family"):
        line = pd.concat([start, rows]) if goes_back(rows) else rows
        for kl in kls:
            values = {column: along_root_kl(kl, line.kl, line[column]) for column in columns}
            out.append({"family": name, "seed": seed, "at_kl": kl, **values})
    return pd.DataFrame(out, columns=["family", "seed", "at_kl", *columns])


def _lines(table: pd.DataFrame, by: str) -> Iterator[tuple[str, int, pd.DataFrame, pd.DataFrame]]:
    """For each value of `by` but "sft" and each seed: both, SFT's rows with this seed, and its own."""
    for (name, seed), rows in table[table[by] != "sft"].groupby([by, "seed"], sort=False):
        yield name, seed, table[(table[by] == "sft") & (table.seed == seed)], rows


def matched_differences(matched: pd.DataFrame, against: str, columns: Sequence[str]) -> pd.DataFrame:
    """Each family minus another at the same KL, seed by seed; Holm's adjustment is over all KLs and families.

    `matched` is a table of `at_kl`.  Long form like `differences`, with at_kl and a label for figures; a family that
    misses a KL in some seed has no row there.
    """
    places = {kl: here for kl, here in matched.groupby("at_kl") if (here.family == against).any()}
    found = _minus(places, "family", against, columns).drop(columns="seeds")
    found.insert(0, "label", [f"{row.family} at KL {row.at_kl:g}" for row in found.itertuples()])
    return found


def side_by_side(found: pd.DataFrame, by: str = "label", across: str = "measure") -> pd.DataFrame:
    """Differences as texts: a row for each value of `by`, a column for each of `across`; * where Holm's p < 0.05."""
    texts = [interval_text(r.difference, r.low, r.high, 2) + " *" * (r.holm < DIFFERENT) for r in found.itertuples()]
    wide = found.assign(text=texts).pivot(index=by, columns=across, values="text").rename_axis(columns=None)
    wide = wide.loc[found[by].unique(), found[across].unique()]
    return wide.rename(columns=lambda name: f"KL {name:g}" if across == "at_kl" else name).reset_index()


def front(table: pd.DataFrame, methods: Mapping[str, str] | Sequence[str], **at: Any) -> pd.DataFrame:
    """SFT's rows, then those of each method where columns have these values.

    `methods` are methods, or what each method is called; the column family is made of it.
    """
    named = methods if isinstance(methods, Mapping) else dict(zip(methods, methods, strict=True))
    kept = table[(table[list(at)] == list(at.values())).all(axis=1)]
    parts = [kept[kept.method == method].assign(family=label) for method, label in named.items()]
    return pd.concat([table[table.method == "sft"], *parts], ignore_index=True)


def gains_over_sft(table: pd.DataFrame) -> pd.DataFrame:
    """Rows with reward and gold as gains over their seed's SFT policy: rewards of different seeds have other zeros."""
    columns = [c for c in ("reward", "gold") if c in table and table[c].notna().any()]
    start = table[table.method == "sft"].groupby("seed")[columns].mean()
    return table.assign(**{c: table[c] - table.seed.map(start[c]) for c in columns})


def volumes(table: pd.DataFrame, measures: Sequence[str], most: float = MOST_KL) -> pd.DataFrame:
    """Hypervolume of each front up to a KL of `most` for each seed; columns method, seed, tokens, status, measures.

    `table` has SFT's rows among its own, the method "sft".  A front is a line through its points (`along_root_kl`),
    level beyond the last one, so that the volume does not hang on which η were evaluated; before its first point only
    one that `goes_back` to SFT has area.  Status is "diverged" if any point is.
    """
    out = []
    for name, seed, start, rows in _lines(table, "method"):
        line, sound = pd.concat([start, rows]), (rows.status == "ok").all()
        first = 0 if goes_back(rows) else np.clip(rows.kl.min(), 0, most)
        kls = np.union1d(np.linspace(first**0.5, most**0.5, STEPS) ** 2, line.kl.clip(first, most))
        found = dict.fromkeys(measures, np.nan)
        for m in measures if sound else ():
            best = np.maximum.accumulate(along_root_kl(kls, line.kl.clip(lower=0), line[m], beyond=True))
            found[m] = hypervolume(kls[:-1], (best[:-1] + best[1:]) / 2, start[m].iloc[0], most)
        row = {"method": name, "seed": seed, "tokens": rows.tokens_generated.max(), **found}
        out.append(row | {"status": "ok" if sound else "diverged"})
    return pd.DataFrame(out)


def volume_gains(table: pd.DataFrame, base: str, others: Sequence[str], measures: Sequence[str]) -> pd.DataFrame:
    """Hypervolume of each of `others` less that of `base`, each pair up to the largest KL that both reach with a seed.

    So a front that ends early is not lower for that.  Columns of `differences`; `table` is that of `volumes`.
    """
    found = []
    for other in others:
        pair = table[table.method.isin(["sft", base, other])]
        ends = pair[pair.method != "sft"].groupby(["seed", "method"]).kl.max().groupby("seed").min().clip(0, MOST_KL)
        both = [volumes(pair[pair.seed == seed], measures, end) for seed, end in ends.items()]
        found.append(differences(pd.concat(both), base, measures))
    gains = pd.concat(found, ignore_index=True)
    return gains.assign(holm=gains.groupby("measure").p.transform(lambda p: holm(p.to_numpy())))


# Reward-model over-optimisation (Gao et al. 2023): how the true reward bends while the proxy rises.  With d = √KL its
# gain follows R(d) = d (α - β log d) for reinforcement learning and d (α - β d) for best of n, in their experiments.


BENDS = {"rl": lambda d: np.log(np.maximum(d, 1e-12)), "bon": lambda d: d}


FITTED = ["alpha", "beta", "r2", "peak_kl"]


def fit(kl: np.ndarray, gain: np.ndarray, form: str = "rl") -> pd.Series:
    """Fit d (α - β log d) ("rl") or d (α - β d) ("bon") to gains over SFT at given KLs, both (points,).

    FITTED: least-squares α and β, R², and the KL (nats) at the maximum of the fitted curve, which is 0 if it falls from
    the start and NaN if it never bends (β <= 0).  All is NaN where fewer than three points have a KL of LEAST_KL or
    more.
    """
    kl, gain = np.asarray(kl, dtype=float), np.asarray(gain, dtype=float)
    used = kl >= LEAST_KL
    if used.sum() < 3:
        return pd.Series(np.nan, FITTED)
    d, gain = np.sqrt(kl[used]), gain[used]
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, d * BENDS[form](d)], axis=1), gain, rcond=None)
    beta, peak = -minus_beta, np.nan
    r2 = 1 - ((gain - curve(d**2, alpha, beta, form)) ** 2).sum() / ((gain - gain.mean()) ** 2).sum()
    if beta > 0:
        peak = np.exp(alpha / beta - 1) if form == "rl" else max(0.0, alpha / (2 * beta))
    return pd.Series([alpha, beta, r2, peak**2], FITTED)


def curve(kl: np.ndarray, alpha: float, beta: float, form: str = "rl") -> np.ndarray:
    """The fitted gain at given KLs; 0 at KL 0."""
    d = np.sqrt(np.asarray(kl, dtype=float))
    return d * (alpha - beta * BENDS[form](d))


def fits(table: pd.DataFrame) -> pd.DataFrame:
    """Gao et al.'s d (α - β log d) fitted to the gain in gold for each family and seed; columns FITTED and most_kl.

    `table` has columns family, seed, kl, gold, SFT's rows ("sft") among them.
    """
    out = []
    for name, seed, start, rows in _lines(table[table.status == "ok"], "family"):
        found = fit(rows.kl, rows.gold - start.gold.iloc[0])
        out.append({"family": name, "seed": seed, **found, "most_kl": rows.kl.max(), "status": "ok"})
    return pd.DataFrame(out)


def shown_fits(found: pd.DataFrame) -> pd.DataFrame:
    """`fits` as pages show them: α as "rise" and β as "bend" with intervals, R² and the largest KL with their range,
    as a t interval over seeds would hold impossible values."""
    out = intervals(found.rename(columns={"alpha": "rise", "beta": "bend"}), ["rise", "bend"], by="family")
    for column, name in {"r2": "R² (range)", "most_kl": "largest KL (range)"}.items():
        if column in found:
            ends = found.groupby("family")[column].agg(["min", "max"]).loc[out.family].itertuples(index=False)
            out[name] = ["" if np.isnan(a) else f"{a:.2f}" + f" to {b:.2f}" * (b > a) for a, b in ends]
    return out


# What runs wrote


def completions(run: "Run") -> pd.DataFrame:
    """What a run drew: prompt, completion, text, finished; of an evaluation reward, kl, and gold where it is known.

    A diverged policy draws nothing.
    """
    none = pd.DataFrame(columns=["prompt", "completion", "reward", "kl"], dtype=float)
    return pd.read_parquet(run.path / "completions.parquet") if run.metrics.get("status", "ok") == "ok" else none


def first_texts(evaluations: "Mapping[str, Run]", prompts: int = 5) -> pd.DataFrame:
    """The first completion of each of the first prompts, a column for each evaluation."""
    each = {name: completions(run).groupby("prompt", sort=False).completion for name, run in evaluations.items()}
    return pd.DataFrame({name: texts.first() for name, texts in each.items()}).head(prompts).reset_index()


def histories(policies: "Sequence[Policy]", methods: Iterable[str], window: int = 1) -> pd.DataFrame:
    """The training log of the first run of each method and seed, as means over windows of steps.

    Columns method, seed, step (the middle of a window) and those of the log.
    """
    found = []
    for method in methods:
        for seed, run in sorted({p.seed: p.trained[0] for p in reversed(policies) if p.method == method}.items()):
            log = pd.read_csv(run.path / "history.csv")
            if window > 1:
                log = log.groupby((log.step - 1) // window).mean().assign(step=lambda t: t.step.round().astype(int))
            found.append(log.assign(method=method, seed=seed))
    return pd.concat(found, ignore_index=True)


def since_start(log: pd.DataFrame) -> pd.DataFrame:
    """A log of `train_dpo` at its validation points; chosen and rejected are log-probs less those of the start."""
    points = log.dropna(subset="eval_loss")
    sides = {side: points[f"eval_logps/{side}"] for side in ("chosen", "rejected")}
    groups = [points.method, points.seed]
    return points.assign(**{side: values - values.groupby(groups).transform("first") for side, values in sides.items()})


def best_of_rows(samples: pd.DataFrame, ns: Iterable[int]) -> pd.DataFrame:
    """Best of n by the reward model among the SFT policy's completions, for each n, with its KL bound in nats."""
    from alignkit.training.baselines import best_of
    from alignkit.training.evaluate import measures

    kept = [(n, measures(best_of(samples, n))) for n in ns]
    return pd.DataFrame([{"method": f"best of {n}", "n": n, "kl_bound": best_of_n_kl(n), **told} for n, told in kept])


def provenance(runs: "Mapping[int, Runs]", p: "World") -> tuple[pd.DataFrame, pd.DataFrame]:
    """The run index (run, seed, id) and the timings (run, seed, seconds, hardware)."""
    named = [(name, seed, run) for seed, by_name in runs.items() for name, run in by_name.items()]
    rows = [(name, seed, run.id, run.record["seconds"], run.record["hardware"]) for name, seed, run in named]
    table = pd.DataFrame(rows, columns=["run", "seed", "id", "seconds", "hardware"])
    return table[["run", "seed", "id"]].assign(profile=p.profile), table.drop(columns="id")


def environment(p: "World", run: "Run") -> str:
    """Version, data, libraries, numerics and hardware, a line each."""
    record = run.record
    libraries = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    numerics = ", ".join(f"{name} {value}" for name, value in record["numerics"].items())
    return (
        f"alignkit {__version__}, profile {p.profile}, seeds {p.seeds}\n"
        f"reviews: fingerprint {record['inputs']['data']}\n"
        f"libraries: {libraries}\nnumerics: {numerics}\ntrained on: {record['hardware']}"
    )
