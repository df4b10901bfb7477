"""The tables of notebook 1: how good a reward model is, and what it rewards."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
from datasets import DatasetDict
from scipy.special import expit
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import Pipeline

from alignkit import __version__
from alignkit.metrics import (
    expected_calibration_error,
    interval_text,
    pairwise_accuracy,
    reliability,
    seed_interval,
    sign_accuracy,
)
from alignkit.training.reward import centred, pair_count, score, sign_boundary, tfidf_baseline
from alignkit.workflow.schema import World
from alignkit.workflow.store import Run
from alignkit.world.known import Truth
from alignkit.world.models import load_encoder

CONSTRUCTIONS = {
    "praise": "the plot was good .",
    "negated praise": "the plot was not good .",
    "blame": "the plot was dull .",
    "negated blame": "the plot was not dull .",
    "no dull moment": "there was not a dull moment .",
    "no good moment": "there was not a good moment .",
    "bad but good": "dull music but good acting .",
    "good but bad": "good music but dull acting .",
    "expected good": "i expected a good film .",
    "expected bad": "i expected a dull film .",
    "said by a friend": "my friend called it brilliant .",
    "said by the critics": "the critics called it brilliant .",
    "regret": "you will regret it .",
    "no regret": "you will not regret it .",
}
"""Short texts whose words speak one way and whose construction may speak the other way."""

STRONG_SENTENCES = [
    "the acting was truly superb .",
    "the plot was really brilliant .",
    "there was not a dull moment .",
    "you will not regret it .",
    "i loved every second of it .",
    "the script was never awful .",
]
ATTACKS = {
    "one strong sentence": STRONG_SENTENCES[0],
    "six different strong sentences": " ".join(STRONG_SENTENCES),
    "the same sentence six times": " ".join([STRONG_SENTENCES[0]] * 6),
    "nine different strong sentences": " ".join(
        [
            *STRONG_SENTENCES,
            "do not miss this one .",
            "the ending was truly wonderful .",
            "the cast was truly stunning .",
        ]
    ),
    "praise without grammar": "superb brilliant wonderful stunning superb brilliant wonderful stunning .",
    "one word for ever": " ".join(["superb"] * 24),
    "praise turned round": "the acting was not superb . the plot was not brilliant . i expected a wonderful film .",
    "praise by relatives": "my friend called it superb . my mother called it brilliant . my brother called it fresh .",
}
"""Texts that a policy could drift to; in the pocket world their true reward is known."""


def scores(run: Run) -> pd.DataFrame:
    """Columns split, label, reward: the reward of the test, held-out and anchor reviews."""
    return pd.read_parquet(run.path / "scores.parquet")


def history(run: Run) -> pd.DataFrame:
    """The trainer's log, with the number of texts seen so far."""
    log = pd.read_csv(run.path / "history.csv")
    return log.assign(texts=log.epoch * run.metrics["forwards_per_epoch"])


def largest_curve(runs: Iterable[str]) -> str:
    """The name of the largest model of the learning curve below the full one, which has held-out reviews."""
    return max((name for name in runs if name.startswith("curve_")), key=lambda name: int(name.removeprefix("curve_")))


def zero_of(runs: dict[str, Run], name: str = "reward") -> float:
    """The reward that means "as likely positive as negative" for run `name`.

    The boundary is set on reviews that were held out from `largest_curve`, and carried over by the mean reward of
    the unlabelled anchor reviews, since Bradley-Terry leaves each model's zero free.
    """
    other = centred(scores(runs[largest_curve(runs)]))
    held_out = other[other.split == "held_out"]
    boundary = sign_boundary(held_out.reward.to_numpy(), held_out.label.to_numpy())
    own = scores(runs[name])
    return boundary + own.reward[own.split == "anchor"].mean()


def from_zero(runs: dict[str, Run], name: str = "reward") -> pd.DataFrame:
    """Test reviews with their reward measured from its zero; columns label, reward."""
    own = scores(runs[name])
    test = own[own.split == "test"].reset_index(drop=True)
    return test.assign(reward=test.reward - zero_of(runs, name))[["label", "reward"]]


def quality(log_odds: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Pairwise accuracy, sign accuracy and calibration error of scores that are meant as log-odds of "positive"."""
    return {
        "pairwise_accuracy": pairwise_accuracy(log_odds, labels),
        "sign_accuracy": sign_accuracy(log_odds, labels),
        "ece": expected_calibration_error(expit(log_odds), labels),
    }


def run_rows(runs: dict[int, dict[str, Run]]) -> pd.DataFrame:
    """One row for each (reward model, seed): what it was trained on and how good it is on the test reviews."""
    rows = []
    for seed, by_name in runs.items():
        for name, run in by_name.items():
            if name in ("sft", "completions"):
                continue
            test = from_zero(by_name, name)
            trained = {key: run.metrics[key] for key in ("reviews", "epochs", "forwards_per_epoch", "pairs_per_epoch")}
            rows.append(
                {"method": name, "seed": seed, **trained, **quality(test.reward.to_numpy(), test.label.to_numpy())}
            )
    return pd.DataFrame(rows).assign(status="ok")


def over_seeds(table: pd.DataFrame, by: str, columns: list[str]) -> pd.DataFrame:
    """Mean and 95 % t interval of each column over the seeds; columns <column>, <column>_low, <column>_high, seeds."""
    rows = []
    for key, group in table.groupby(by, sort=False):
        row: dict[str, Any] = {by: key, "seeds": len(group)}
        for column in columns:
            row[column], row[f"{column}_low"], row[f"{column}_high"] = seed_interval(group[column])
        rows.append(row)
    return pd.DataFrame(rows)


def all_pairs_gain(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """All pairs minus plain pairs, on the same reviews with the same number of forwards, seed by seed."""
    plain = rows[rows.method == "matched"].set_index("seed")
    every = rows[rows.method == f"curve_{plain.reviews.iloc[0]}"].set_index("seed")
    return (every[columns] - plain[columns]).reset_index()


def reliability_bins(runs: dict[int, dict[str, Run]], bins: int = 10) -> pd.DataFrame:
    """`metrics.reliability` of each seed's reward model on the test reviews."""
    tables = []
    for seed, by_name in runs.items():
        test = from_zero(by_name, "reward")
        tables.append(reliability(expit(test.reward.to_numpy()), test.label.to_numpy(), bins).assign(seed=seed))
    return pd.concat(tables)


def calibration_slope(runs: dict[int, dict[str, Run]]) -> float:
    """Slope of a logistic regression of the label on the reward (Cox 1958), mean over seeds; 1 is calibrated."""
    slopes = []
    for by_name in runs.values():
        test = from_zero(by_name, "reward")
        slopes.append(LogisticRegression(C=1e6).fit(test[["reward"]].to_numpy(), test.label).coef_[0, 0])
    return float(np.mean(slopes))


def completions(by_name: dict[str, Run]) -> pd.DataFrame:
    """The SFT policy's sampled completions, as `sampling.sample_completions` wrote them."""
    return pd.read_parquet(by_name["completions"].path / "completions.parquet")


def word_effects(texts: list[str], rewards: np.ndarray, min_count: int) -> tuple[pd.Series, float]:
    """What each word adds to the reward in a linear reading of it, and how much of the reward that reading explains.

    Ridge regression of the reward on the presence of words that stand in at least `min_count` texts;
    returns the coefficients, sorted, and the cross-validated R².
    """
    words = CountVectorizer(binary=True, min_df=min_count)
    present = words.fit_transform(texts)
    model = Ridge(alpha=10.0)
    r2 = cross_val_score(model, present, rewards, cv=5).mean()
    return pd.Series(model.fit(present, rewards).coef_, words.get_feature_names_out()).sort_values(), float(r2)


def length_correlation(texts: list[str], rewards: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Spearman correlation of reward and number of words within each label, with its 95 % interval (Fisher)."""
    length = np.array([len(text.split()) for text in texts])
    rows = []
    for label, name in ((1, "positive"), (0, "negative")):
        here = labels == label
        rho = spearmanr(length[here], rewards[here]).statistic
        half = 1.96 * 1.03 / np.sqrt(here.sum() - 3)
        low, high = np.tanh(np.arctanh(rho) - half), np.tanh(np.arctanh(rho) + half)
        rows.append({"reviews": name, "rho": rho, "low": low, "high": high})
    return pd.DataFrame(rows)


def readable(summary: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """A table of `over_seeds` with each column as "mean [low, high]"."""
    out = {
        column: [interval_text(*values) for values in summary[[column, f"{column}_low", f"{column}_high"]].to_numpy()]
        for column in columns
    }
    return pd.DataFrame({summary.columns[0]: summary.iloc[:, 0], "seeds": summary.seeds, **out})


def pair_costs(rows: dict[str, int], batch: int) -> pd.DataFrame:
    """Forwards and distinct pairs of an epoch over `rows` positives and as many negatives, `batch` texts a step."""
    out = []
    for name, n in rows.items():
        n = int(n)
        out.append(
            {"reviews": name, "training": "every pair spelled out", "forwards": 2 * n * n, "distinct pairs": n * n}
        )
        for label, pairs in (("plain pairs", "matched"), (f"in-batch all pairs, {batch} a step", "all")):
            count = pair_count(n, batch, pairs)
            forwards, distinct = count["forwards_per_epoch"], count["pairs_per_epoch"]
            out.append({"reviews": name, "training": label, "forwards": forwards, "distinct pairs": distinct})
    return pd.DataFrame(out)


def baseline_rows(reviews: DatasetDict, gold: np.ndarray | None) -> pd.DataFrame:
    """Rows like `run_rows` for what the reward model is compared with: TF-IDF, and the exact posterior if known."""
    train, test = reviews["train"], reviews["test"]
    labels = np.array(test["label"])
    rows = []
    for name, ngrams in (("tfidf_words", 1), ("tfidf_word_pairs", 2)):
        model = tfidf_baseline(list(train["text"]), list(train["label"]), ngrams=ngrams)
        rows.append({"method": name, "reviews": len(train), **quality(model.decision_function(test["text"]), labels)})
    if gold is not None:
        rows.append({"method": "exact posterior", **quality(gold, labels)})
    return pd.DataFrame(rows).assign(status="ok")


class Judge:
    """All that can be said of a text: the reward of every seed's model, words only, and gold where it is known."""

    def __init__(self, runs: dict[int, dict[str, Run]], words_only: Pipeline, *, tokens: int, truth: Truth | None):
        self.models = [(*load_encoder(by_name["reward"].path), zero_of(by_name)) for by_name in runs.values()]
        self.words_only, self.tokens, self.known = words_only, tokens, truth

    def rewards(self, texts: list[str]) -> np.ndarray:
        """Rewards from their zero, shape (seeds, texts)."""
        return np.array([score(model, codec, texts, tokens=self.tokens) - zero for model, codec, zero in self.models])

    def truth(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Gold and well-formed share where they are known, nothing elsewhere."""
        known = self.known
        return {"gold": known.gold_reward(texts), "well formed": known.well_formed(texts)} if known else {}

    def opinions(self, texts: list[str]) -> dict[str, np.ndarray]:
        """Mean reward over seeds, words only, and the truth if it is known; each (texts,)."""
        words_only = self.words_only.decision_function(texts)
        return {"reward": self.rewards(texts).mean(axis=0), "words only": words_only, **self.truth(texts)}

    def table(self, cases: dict[str, str]) -> pd.DataFrame:
        """One row for each case: its name, its text and the `opinions` of it."""
        texts = list(cases.values())
        return pd.DataFrame({"case": list(cases), "text": texts, **self.opinions(texts)})


def sft_rows(runs: dict[int, dict[str, Run]], texts: pd.Series, truth: Truth | None) -> pd.DataFrame:
    """Cross-entropy of each seed's SFT policy and, where the truth is known, the exact entropy on the same tokens.

    Both are nats a token, given the first token of each text and including its end.
    """
    rows = [{"seed": seed, **by_name["sft"].metrics} for seed, by_name in runs.items()]
    table = pd.DataFrame(rows)
    if truth:
        texts = list(texts[: int(table.texts.iloc[0])])
        first = [text.split()[0] for text in texts]
        nats = truth.log_probability(first, prefix=True) - truth.log_probability(texts)
        table["entropy"] = nats.sum() / sum(len(text.split()) for text in texts)
        table["ratio"] = table.test_cross_entropy / table.entropy
    return table


def provenance(runs: dict[int, dict[str, Run]], p: World) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The run index (run, seed, id) and the timings (run, seed, seconds, hardware)."""
    records = [(name, seed, run, run.record) for seed, by_name in runs.items() for name, run in by_name.items()]
    index = pd.DataFrame([{"run": name, "seed": seed, "id": run.id} for name, seed, run, _ in records])
    times = [
        {"run": name, "seed": seed, "seconds": record["seconds"], "hardware": record["hardware"]}
        for name, seed, _, record in records
    ]
    return index.assign(profile=p.profile), pd.DataFrame(times)


def environment(p: World, run: Run) -> str:
    """Version, data, libraries and hardware, a line each."""
    record = run.record
    libraries = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
    return "\n".join(
        [
            f"alignkit {__version__}, profile {p.profile}, seeds {p.seeds}",
            f"reviews: fingerprint {record['inputs']['data']}",
            f"libraries: {libraries}",
            f"trained on: {record['hardware']}",
        ]
    )
