"""Notebook 1: how good a reward model is, and what it rewards; its runs, tables and figures."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from datasets import DatasetDict
from matplotlib.figure import Figure
from scipy.optimize import minimize_scalar
from scipy.special import expit
from scipy.stats import pearsonr, spearmanr
from sklearn.pipeline import Pipeline
from transformers import AutoTokenizer

from alignkit.metrics import expected_calibration_error, pairwise_accuracy, sign_accuracy
from alignkit.report.looks import NEGATIVE, POSITIVE
from alignkit.report.policies import Runs, finite, shared, supervised
from alignkit.training.evaluate import SamplingSettings, sample_completions
from alignkit.training.reward import RewardSettings, pair_count, score_with, sign_boundary, train_reward, zero_of
from alignkit.workflow.schema import RewardModel
from alignkit.workflow.store import Run, get
from alignkit.world.known import Truth

TRAINED = ("reviews", "epochs", "forwards_per_epoch", "pairs_per_epoch", "status")
"""What tables tell of how a reward model was trained."""
TEXTS = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
"""By world: the texts that are put to a reward model."""


def recipe(p: RewardModel, seed: int) -> Runs:
    """The reward model, what it is compared with, and the SFT policy with its samples.

    - reward: all pairs, all train reviews; of every seed its own, whatever later notebooks share
    - curve_N: the same on N reviews, with others held out, which give validation and the sign boundary
    - matched: the largest of these, with one partner for each review in place of all pairs
    """
    small = RewardSettings(**p.reward_training(), held_out=p.held_out, min_steps=p.curve_min_steps)
    runs = {
        "reward": finite("reward", get(train_reward, RewardSettings(**p.reward_training()), **shared(p, seed))),
        **{f"curve_{n}": get(train_reward, replace(small, n_train=n), **shared(p, seed)) for n in p.curve_reviews},
        "matched": get(train_reward, replace(small, n_train=max(p.curve_reviews), pairs="matched"), **shared(p, seed)),
        "sft": supervised(p, seed),
    }
    # The task's prompts: 5-20 tokens of test reviews.
    sizes = {"n_prompts": p.prompts, "k": p.completions, "max_new_tokens": p.new_tokens, "shortest": 5, "longest": 20}
    drawn = get(sample_completions, SamplingSettings(**sizes), **shared(p, seed), policy=runs["sft"])
    finite("reward", runs[f"curve_{max(p.curve_reviews)}"])  # it gives all models their sign boundary
    return runs | {"completions": drawn}


def scores(run: Run) -> pd.DataFrame:
    """Columns split, label, reward: the reward of the test, held-out and anchor reviews."""
    return pd.read_parquet(run.path / "scores.parquet")


def history(run: Run) -> pd.DataFrame:
    """The trainer's log, with the number of texts seen so far."""
    return pd.read_csv(run.path / "history.csv").assign(texts=lambda log: log.epoch * run.metrics["forwards_per_epoch"])


def sign_zero(p: RewardModel, runs: Runs, name: str = "reward") -> float:
    """The reward that means "as likely positive as negative" for run `name`.

    The boundary is set on reviews that were held out from the largest model of the learning curve, and carried over by
    the mean reward of the unlabelled anchor reviews, since Bradley-Terry leaves each model's zero free.
    """
    largest = runs[f"curve_{max(p.curve_reviews)}"]
    held_out = scores(largest).query("split == 'held_out'")
    boundary = sign_boundary(held_out.reward.to_numpy() - zero_of(largest.path), held_out.label.to_numpy())
    return boundary + zero_of(runs[name].path)


def from_zero(p: RewardModel, runs: Mapping[int, Runs]) -> pd.DataFrame:
    """Test reviews with each reward model's reward less its `sign_zero`; columns seed, method, label, reward."""
    out = []
    for seed, by_name in runs.items():
        for name in (name for name in by_name if name not in ("sft", "completions")):
            test = scores(by_name[name]).query("split == 'test'")
            out.append(test.assign(seed=seed, method=name, reward=test.reward - sign_zero(p, by_name, name)))
    return pd.concat(out, ignore_index=True)[["seed", "method", "label", "reward"]]


def quality(log_odds: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Pairwise accuracy, sign accuracy and calibration error of scores that are meant as log-odds of "positive"."""
    accuracies = {measure.__name__: measure(log_odds, labels) for measure in (pairwise_accuracy, sign_accuracy)}
    return accuracies | {"ece": expected_calibration_error(expit(log_odds), labels)}


def run_rows(runs: Mapping[int, Runs], rewards: pd.DataFrame) -> pd.DataFrame:
    """One row for each (reward model, seed) in `from_zero`: what it was trained on and how good it is."""
    rows = []
    for (seed, name), test in rewards.groupby(["seed", "method"], sort=False):
        metrics = runs[seed][name].metrics
        measured = quality(test.reward.to_numpy(), test.label.to_numpy()) if metrics["status"] == "ok" else {}
        rows.append({"method": name, "seed": seed, **{key: metrics[key] for key in TRAINED}, **measured})
    return pd.DataFrame(rows)


def length_correlation(texts: list[str], rewards: np.ndarray, labels: np.ndarray) -> pd.DataFrame:
    """Spearman correlation of reward and number of words within each label, and its 95 % interval.

    By Fisher's z, with the factor 1.03 of ranks (Fieller et al. 1957).
    """
    length = np.array([len(text.split()) for text in texts])
    rows = []
    for label, name in ((1, "positive"), (0, "negative")):
        here = labels == label
        rho = spearmanr(length[here], rewards[here]).statistic
        half = 1.96 * 1.03 / np.sqrt(here.sum() - 3)
        low, high = np.tanh(np.arctanh(rho) - half), np.tanh(np.arctanh(rho) + half)
        rows.append({"reviews": name, "rho": rho, "low": low, "high": high})
    return pd.DataFrame(rows)


def pair_costs(rows: Mapping[str, tuple[int, int]], batch: int) -> pd.DataFrame:
    """Forwards and distinct pairs of an epoch over so many positives and negatives, `batch` texts a step.

    In training the reviews of the rarer label are used again, so that both sides have as many.
    """
    out = []
    for name, (positives, negatives) in rows.items():
        n, every = max(positives, negatives), positives * negatives
        out.append((name, "every pair spelled out", 2 * every, every))
        for label, pairs in (("plain pairs", "matched"), (f"in-batch all pairs, {batch} a step", "all")):
            count = pair_count(n, batch, pairs)
            out.append((name, label, count["forwards_per_epoch"], count["pairs_per_epoch"]))
    return pd.DataFrame(out, columns=["reviews", "training", "forwards", "distinct pairs"])


def baseline_rows(baselines: dict[str, Pipeline], reviews: DatasetDict, gold: np.ndarray | None) -> pd.DataFrame:
    """Rows like `run_rows` for the baselines and, if it is known, the exact posterior of the test reviews."""
    test, labels = reviews["test"], np.array(reviews["test"]["label"])
    scored = {name: model.decision_function(test["text"]) for name, model in baselines.items()}
    rows = [{"method": name, "reviews": len(reviews["train"]), **quality(x, labels)} for name, x in scored.items()]
    if gold is not None:
        rows.append({"method": "exact posterior", **quality(gold, labels)})
    return pd.DataFrame(rows).assign(status="ok")


def opinions(
    texts: Iterable[str], p: RewardModel, runs: Mapping[int, Runs], baselines: dict[str, Pipeline], truth: Truth | None
) -> pd.DataFrame:
    """Mean reward of each text over seeds, from their zeros, what the baselines say, and the truth if it is known."""
    texts = list(texts)
    each = [score_with(of["reward"].path, texts, tokens=p.reward_tokens) - sign_zero(p, of) for of in runs.values()]
    others = {name: model.decision_function(texts) for name, model in baselines.items()}
    known = {"gold": truth.gold_reward(texts), "well formed": truth.well_formed(texts)} if truth else {}
    return pd.DataFrame({"reward": np.mean(each, axis=0), **others, **known})


def sft_rows(runs: Mapping[int, Runs], texts: pd.Series, truth: Truth | None) -> pd.DataFrame:
    """Cross-entropy of each SFT policy and, where the truth is known, the exact entropy on the same tokens.

    Both are nats a token, given the first token of each text and including its end.  Also nats a character, which
    compares policies of other vocabularies, and the tokens that training saw.  Seeds that share a policy have one row.
    """
    first = {by_name["sft"]: seed for seed, by_name in reversed(runs.items())}
    each = [by_name["sft"] for seed, by_name in runs.items() if first[by_name["sft"]] == seed]
    table = pd.DataFrame([{"seed": first[run], **run.metrics} for run in each])
    read = list(texts[: int(table.texts.iloc[0])])
    characters = [characters_a_token(run.path, read, run.record["settings"]["tokens"]) for run in each]
    table["nats_a_character"] = table.test_cross_entropy / characters
    table = table.drop(columns="status").rename(columns={"tokens_trained": "tokens_seen"})
    if truth:
        nats = truth.log_probability([text.split()[0] for text in read], prefix=True) - truth.log_probability(read)
        table["entropy"] = nats.sum() / sum(len(text.split()) for text in read)
        table["ratio"] = table.test_cross_entropy / table.entropy
    return table


def characters_a_token(policy: Path, texts: Sequence[str], tokens: int) -> float:
    """Characters a predicted token, of texts as a policy is tested on them: cut to `tokens`, without the first."""
    tokenizer = AutoTokenizer.from_pretrained(policy, trust_remote_code=False)
    places = tokenizer(list(texts), return_offsets_mapping=True, verbose=False)["offset_mapping"]
    return sum(row[:tokens][-1][1] - row[0][1] for row in places) / sum(min(len(row), tokens - 1) for row in places)


# The scale of the reward


def temperature(rewards: np.ndarray, labels: np.ndarray) -> float:
    """The T that makes σ((r - b)/T) most likely for the labels of held-out reviews (Guo et al. 2017, temperature
    scaling); b is the model's own zero on them, `sign_boundary`.

    Raises ValueError if only one label is present.
    """
    signed = (rewards - sign_boundary(rewards, labels)) * np.where(labels == 1, 1.0, -1.0)
    found = minimize_scalar(lambda log_t: np.logaddexp(0, -signed / np.exp(log_t)).sum(), bounds=(-7, 7))
    return float(np.exp(found.x))


def calibrated(rewards: Mapping[int, Run], values: pd.DataFrame) -> pd.DataFrame:
    """What dividing by each seed's temperature does to numbers in its reward; columns of `values` seed, quantity, nats.

    For each quantity the mean over seeds and the spread between them (standard deviation), as scored and divided, the
    spread also as a share of the mean: a scale that is common to all seeds leaves that one as it is.  p says whether
    these shares differ (`spreads_differ`).
    """
    tests = {seed: scores(run).query("split == 'test'") for seed, run in rewards.items()}
    scale = {seed: temperature(t.reward.to_numpy(), t.label.to_numpy()) for seed, t in tests.items()}
    both = values.assign(divided=values.nats / values.seed.map(scale))
    # Seeds that share a model share its temperature.
    first = {run.path: seed for seed, run in reversed(rewards.items())}
    own = pd.DataFrame({"quantity": "temperature", "nats": [scale[seed] for seed in first.values()], "divided": np.nan})
    groups = pd.concat([own, both]).groupby("quantity", sort=False)
    table = pd.DataFrame({"seeds": groups.size()})
    for name, column in (("", "nats"), (", divided", "divided")):
        table[[f"mean{name}", f"spread{name}"]] = groups[column].agg(["mean", "std"])
        table[f"spread / mean{name}"] = table[f"spread{name}"] / table[f"mean{name}"].abs()
    shares = (values[["nats", "divided"]] / values[["nats", "divided"]].mean() for _, values in groups)
    table["p"] = [spreads_differ(share.nats, share.divided) for share in shares]
    return table.reset_index()


def spreads_differ(one: pd.Series, other: pd.Series) -> float:
    """Two-sided p-value that two measurements of the same seeds, both (seeds,), spread equally (Pitman 1939, Morgan).

    Sum and difference are correlated if, and only if, the variances differ.  NaN for fewer than three seeds, where
    a value is missing, and where both are the same, as with one scale for all seeds.
    """
    if len(one) < 3 or not np.isfinite([one, other]).all() or np.allclose(one, other):
        return float("nan")
    return float(pearsonr(one + other, one - other).pvalue)


# Figures


def reliability_diagram(bins: pd.DataFrame) -> Figure:
    """Reliability diagram; columns seed, predicted, observed, low, high."""
    figure, axis = plt.subplots(figsize=(4.8, 4.6))
    axis.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle=":", label="calibrated")
    for seed, one in bins.groupby("seed"):
        bars = [one.observed - one.low, one.high - one.observed]
        axis.errorbar(one.predicted, one.observed, yerr=bars, fmt="o-", label=f"seed {seed}")
    axis.set(xlabel="predicted P(positive) = σ(reward)", ylabel="observed share of positives", xlim=(0, 1), ylim=(0, 1))
    axis.legend()
    return figure


def distributions(rewards: np.ndarray, labels: np.ndarray, generated: np.ndarray) -> Figure:
    """Reward of test reviews by label, and of generated texts."""
    figure, axis = plt.subplots()
    edges = np.histogram_bin_edges(np.concatenate([rewards, generated]), bins=40)
    for label, colour, name in ((0, NEGATIVE, "negative reviews"), (1, POSITIVE, "positive reviews")):
        axis.hist(rewards[labels == label], edges, density=True, alpha=0.5, color=colour, label=name)
    axis.hist(generated, edges, density=True, label="SFT generations", histtype="step", linewidth=2, color="black")
    axis.axvline(0, color="black", linewidth=1, linestyle=":")
    axis.set(xlabel="reward (nats from its zero; mean over the seeds' models)", ylabel="density")
    axis.legend()
    return figure
