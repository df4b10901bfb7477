"""Generations and pairs: each construction by hand, and the files that training reads."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import load_dataset
from helpers import called
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit

from alignkit.faults import UserFault
from alignkit.sampling import full_texts, sequence_log_probs
from alignkit.training.pairs import (
    CONSTRUCTIONS,
    _too_alike,
    all_pairs,
    bernoulli,
    build_pairs,
    fewer_pairs,
    generate,
    threshold,
    top_bottom,
)
from alignkit.training.reward import score_with, zero_of
from alignkit.world.models import load_policy, save
from alignkit.world.reviews import prompts

SIX = np.array([3.0, -1.0, 5.0, 0.0, 4.0, 1.0])
"""From best to worst: positions 2, 4, 0, 5, 3, 1."""
COLUMNS = {
    *("prompt", "prompt_ids", "ref_chosen_logps", "ref_rejected_logps"),
    *(f"{side}{suffix}" for side in ("chosen", "rejected") for suffix in ("", "_ids", "_reward")),
}
DISTINCT = st.lists(st.floats(-50, 50), min_size=2, max_size=9, unique=True).map(np.array)


def chance(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# Constructions


def test_top_bottom_of_six_are_the_pairs_of_its_definition() -> None:
    found = top_bottom(SIX, chance())
    assert len(found) == 5
    assert set(found) == {(2, 5), (2, 3), (2, 1), (4, 1), (0, 1)}


def test_threshold_compares_every_winner_with_every_loser() -> None:
    found = threshold(SIX, chance(), winner=4.0, loser=0.0)
    assert sorted(found) == [(2, 1), (4, 1)]
    assert threshold(SIX, chance(), winner=5.5, loser=0.0) == []
    # What lies between the two thresholds is compared with nothing; at equal ones nothing is left out.
    assert len(threshold(SIX, chance(), winner=1.0, loser=1.0)) == 4 * 2


@settings(max_examples=30, deadline=None)
@given(DISTINCT)
def test_all_pairs_compares_every_two_completions_once(rewards: np.ndarray) -> None:
    found = all_pairs(rewards, chance())
    assert len(found) == len(rewards) * (len(rewards) - 1) // 2
    assert {frozenset(pair) for pair in found} == {frozenset(c) for c in combinations(range(len(rewards)), 2)}


@settings(max_examples=30, deadline=None)
@given(DISTINCT, st.floats(-50, 50))
def test_chosen_has_the_higher_reward_and_no_pair_comes_twice(rewards: np.ndarray, cut: float) -> None:
    found = {
        "all_pairs": all_pairs(rewards, chance()),
        "top_bottom": top_bottom(rewards, chance()),
        "threshold": threshold(rewards, chance(), winner=cut, loser=cut),
    }
    for rows in found.values():
        assert all(rewards[chosen] > rewards[rejected] for chosen, rejected in rows)
        assert len(set(rows)) == len(rows)
    assert found["top_bottom"][0][0] == rewards.argmax()


@pytest.mark.parametrize("gap", [-1.5, 0.0, 0.7, 3.0])
def test_bernoulli_chooses_with_bradley_and_terrys_probability(gap: float) -> None:
    rng, n, p = chance(), 4000, expit(gap)
    first = sum(bernoulli(np.array([gap + 2, 2.0]), rng) == [(0, 1)] for _ in range(n))
    assert first / n == pytest.approx(p, abs=4 * np.sqrt(p * (1 - p) / n))


def test_bernoulli_compares_every_two_completions_once() -> None:
    found = bernoulli(SIX, chance())
    assert sorted(tuple(sorted(pair)) for pair in found) == list(combinations(range(6), 2))


# Files of pairs, from completions by hand


TEN = [f"prompt {i}" for i in range(10)]
WORDS = "alpha beta gamma delta epsilon zeta".split()
Build = Callable[..., tuple[dict[str, float], dict[str, pd.DataFrame]]]


def by_hand(completions: list[str] = WORDS, rewards: np.ndarray = SIX) -> pd.DataFrame:
    """The same completions and rewards for ten prompts; a log-prob and ids that name the row."""
    table = pd.DataFrame(
        [(p, c, float(r)) for p in TEN for c, r in zip(completions, rewards, strict=True)],
        columns=["prompt", "completion", "reward"],
    )
    table["prompt_ids"] = [[1000 + TEN.index(prompt), 7] for prompt in table.prompt]
    table["completion_ids"] = [[i] for i in range(len(table))]
    return table.assign(ref_logps=-1.0 * np.arange(len(table)))


@pytest.fixture
def build_from(tmp_path: Path) -> Build:
    """A function that writes generations, builds pairs of them and returns metrics and both tables."""
    calls = iter(range(100))

    def build(table: pd.DataFrame, construction: str = "top_bottom", seed: int = 0, **changed):
        out = tmp_path / f"{next(calls)}"
        out.mkdir()
        table.to_parquet(out / "generations.parquet", index=False)
        metrics = called(build_pairs, out, seed=seed, generations=out, construction=construction, **changed)
        return metrics, {name: pd.read_parquet(out / "pairs" / f"{name}.parquet") for name in ("train", "test")}

    return build


def test_a_fifth_of_the_prompts_is_held_out_and_none_stands_on_both_sides(build_from: Build) -> None:
    metrics, tables = build_from(by_hand())
    assert tables["test"].prompt.nunique() == 2
    assert tables["train"].prompt.nunique() == 8
    assert not set(tables["test"].prompt) & set(tables["train"].prompt)
    assert (metrics["train_pairs"], metrics["test_pairs"]) == (len(tables["train"]), len(tables["test"])) == (40, 10)


def test_a_pair_has_text_ids_reward_and_log_prob_of_its_two_completions(build_from: Build) -> None:
    table = by_hand()
    metrics, tables = build_from(table)
    for row in pd.concat(tables.values()).itertuples():
        for side in ("chosen", "rejected"):
            (i,) = getattr(row, f"{side}_ids")
            given = table.loc[i]
            assert (row.prompt, getattr(row, side)) == (given.prompt, given.completion)
            assert (getattr(row, f"{side}_reward"), getattr(row, f"ref_{side}_logps")) == (
                given.reward,
                given.ref_logps,
            )
        assert list(row.prompt_ids) == table.prompt_ids[i]
    gaps = tables["train"].chosen_reward - tables["train"].rejected_reward
    assert (gaps > 0).all()
    assert metrics["reward_gap"] == pytest.approx(gaps.mean())
    # (5-1, 5-0, 5+1, 4+1, 3+1) / 5
    assert metrics["reward_gap"] == pytest.approx(24 / 5)


@pytest.mark.parametrize(
    ("construction", "pairs"), [("all_pairs", 15), ("bernoulli", 15), ("top_bottom", 5), ("threshold", 8)]
)
def test_each_construction_gives_its_number_of_pairs_a_prompt(build_from: Build, construction: str, pairs: int) -> None:
    cut = {"winner": 1.0, "loser": 1.0} if construction == "threshold" else {}
    _, tables = build_from(by_hand(), construction, **cut)
    for table in tables.values():
        assert (table.groupby("prompt").size() == pairs).all()
        assert (table.chosen_reward > table.rejected_reward).all() == (construction != "bernoulli")
    assert {*CONSTRUCTIONS} == {"all_pairs", "bernoulli", "top_bottom", "threshold"}


def test_identical_completions_are_never_compared(build_from: Build) -> None:
    _, tables = build_from(by_hand(["same", "same", "same", "same", "other", "other"]), "all_pairs")
    for table in tables.values():
        assert (table.groupby("prompt").size() == 8).all()
        assert (table.chosen != table.rejected).all()


def test_near_duplicates_are_not_compared(build_from: Build) -> None:
    texts = ["a b c d", "a b c e", "v w x y z"]  # the first two share three of four words: 0.75
    for limit, pairs in ((1.0, 3), (0.8, 3), (0.7, 2)):
        _, tables = build_from(by_hand(texts, SIX[:3]), "all_pairs", max_similarity=limit)
        assert (tables["train"].groupby("prompt").size() == pairs).all(), limit


@pytest.mark.parametrize(
    ("limit", "alike"), [(1.0, False), (0.76, False), (0.75, False), (0.74, True), (0.1, True), (0.0, True)]
)
def test_texts_are_too_alike_above_the_limit(limit: float, alike: bool) -> None:
    assert _too_alike("a b c d", "a b c e", limit) == alike
    assert _too_alike("a b", "a b", limit)
    assert not _too_alike("a b", "c d", limit)


@pytest.mark.parametrize("construction", ["all_pairs", "bernoulli"])
def test_the_seed_decides_order_held_out_prompts_and_labels(build_from: Build, construction: str) -> None:
    first, again, other = (build_from(by_hand(), construction, seed=seed)[1] for seed in (3, 3, 4))
    for name in first:
        pd.testing.assert_frame_equal(first[name], again[name])
    assert set(first["test"].prompt) != set(other["test"].prompt)
    assert not first["train"].prompt.is_monotonic_increasing


@pytest.mark.parametrize("thresholds", [{}, {"winner": 1.0}, {"winner": -1.0, "loser": 1.0}])
def test_threshold_without_thresholds_or_with_crossed_ones_is_a_fault(build_from: Build, thresholds: dict) -> None:
    with pytest.raises(UserFault, match="allowed: winner >= loser"):
        build_from(by_hand(), construction="threshold", **thresholds)


def test_an_unknown_construction_is_a_fault(build_from: Build) -> None:
    with pytest.raises(UserFault, match=r"^pairs: 'best_worst'; allowed: threshold, .*bernoulli$") as fault:
        build_from(by_hand(), "best_worst")
    assert "\n" not in str(fault.value)


@pytest.mark.parametrize(
    ("table", "changed"),
    [
        (by_hand(["same"] * 6), {}),
        (by_hand(), {"construction": "threshold", "winner": 9.0, "loser": 9.0}),
        (by_hand(), {"test_share": 0.0}),
    ],
)
def test_pairs_that_leave_nothing_are_a_fault(build_from: Build, table: pd.DataFrame, changed: dict) -> None:
    with pytest.raises(UserFault, match="leaves no pair in t") as fault:
        build_from(table, **changed)
    assert "\n" not in str(fault.value)


# Files of a small world


@pytest.fixture(scope="module")
def generations(world) -> pd.DataFrame:
    return pd.read_parquet(world.generations / "generations.parquet")


def test_datasets_reads_the_pairs_with_their_columns_in_two_splits(world) -> None:
    rows = load_dataset(str(world.pairs / "pairs"))
    assert set(rows) == {"train", "test"}
    for split in rows.values():
        assert set(split.column_names) == COLUMNS
        assert all(isinstance(i, int) for i in split[0]["chosen_ids"])


def test_generations_are_k_completions_of_each_train_prompt_in_order(world, generations: pd.DataFrame) -> None:
    given = {"prompt", "completion", "prompt_ids", "completion_ids", "finished", "text", "reward", "ref_logps"}
    assert set(generations.columns) == given | {"place", "own_logps"}
    _, tokenizer = load_policy(world.sft)
    train = list(world.data.load(0)["train"]["text"])
    texts = prompts(train, tokenizer, n=30, shortest=5, longest=15, seed=0)
    assert generations.prompt.tolist() == [text for text in texts for _ in range(6)]
    assert generations.prompt_ids.map(len).between(5, 15).all()
    assert generations.completion_ids.map(len).max() == 16
    assert generations.text.tolist() == full_texts(
        generations.assign(**{n: generations[n].map(list) for n in ("prompt_ids", "completion_ids")}), tokenizer
    )


def test_rewards_have_their_zero_at_an_average_review(world, generations: pd.DataFrame) -> None:
    scores = pd.read_parquet(world.reward / "scores.parquet")
    zero = scores[scores.split == "anchor"].reward.mean()
    assert zero_of(world.reward) == pytest.approx(zero)
    found = score_with(world.reward, generations.text.tolist(), tokens=64) - zero
    np.testing.assert_allclose(generations.reward, found, atol=1e-5)
    unlabelled = list(world.data.load(0)["unsupervised"]["text"])
    centred = score_with(world.reward, unlabelled, tokens=64) - zero_of(world.reward)
    assert centred.mean() == pytest.approx(0, abs=1e-5)
    assert generations.reward.std() > 0.1


def test_log_probs_are_those_of_the_sft_policy(world, generations: pd.DataFrame) -> None:
    model, _ = load_policy(world.sft)
    ids = (generations[name].map(list).tolist() for name in ("prompt_ids", "completion_ids"))
    np.testing.assert_allclose(generations.ref_logps, sequence_log_probs(model, *ids), atol=1e-5)


def test_the_seed_decides_the_generations(world, generations: pd.DataFrame, tmp_path: Path) -> None:
    metrics = called(generate, tmp_path, seed=0, data=world.data, **world.generation)
    again = pd.read_parquet(tmp_path / "generations.parquet")
    pd.testing.assert_frame_equal(again, generations)
    assert metrics["tokens_generated"] == generations.completion_ids.map(len).sum()
    assert metrics["reward"] == pytest.approx(generations.reward.mean())
    called(generate, tmp_path, seed=1, data=world.data, **world.generation)
    other = pd.read_parquet(tmp_path / "generations.parquet")
    assert other.completion.tolist() != generations.completion.tolist()


def test_fewer_pairs_lie_within_more_and_are_of_a_part_of_the_prompts(build_from, tmp_path: Path) -> None:
    _, whole = build_from(by_hand())
    kept = {}
    for share in (0.25, 0.5, 1.0):
        out = tmp_path / f"share {share}"
        out.mkdir()
        metrics = fewer_pairs(out, pairs=tmp_path / "0", share=share)
        kept[share], test = (pd.read_parquet(out / "pairs" / f"{name}.parquet") for name in ("train", "test"))
        assert kept[share].prompt.nunique() == share * whole["train"].prompt.nunique()
        assert metrics["train_pairs"] == len(kept[share]) == share * len(whole["train"])
        pd.testing.assert_frame_equal(test, whole["test"])
    assert set(kept[0.25].prompt) < set(kept[0.5].prompt)
    pd.testing.assert_frame_equal(kept[1.0], whole["train"])


def test_a_part_of_the_prompts_is_not_those_with_most_pairs(tmp_path: Path) -> None:
    often = [f"often {i}" for i in range(10) for _ in range(30)]
    rows = pd.DataFrame({"prompt": [*often, *(f"once {i}" for i in range(90))]})
    rows = rows.assign(chosen_reward=1.0, rejected_reward=0.0).sample(frac=1, random_state=0)
    for folder in ("all/pairs", "part"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("train", "test"):
        rows.to_parquet(tmp_path / f"all/pairs/{name}.parquet")
    fewer_pairs(tmp_path / "part", pairs=tmp_path / "all", share=0.1)
    kept = pd.read_parquet(tmp_path / "part" / "pairs" / "train.parquet").prompt.unique()
    assert len(kept) == 10
    assert sum(prompt.startswith("often") for prompt in kept) < 5  # one is expected; of those that come first, eight


def test_rounds_share_the_prompts_and_log_probs_are_the_references(world, tmp_path: Path) -> None:
    model, tokenizer = load_policy(world.sft)
    with torch.no_grad():
        model.lm_head.weight.mul_(2)
    other = tmp_path / "other"
    save(other, model, tokenizer)
    given = {"seed": 0, "data": world.data, **world.generation, "policy": other, "reference": world.sft, "parts": 3}
    drawn = []
    for part in range(3):
        (tmp_path / f"{part}").mkdir()
        called(generate, tmp_path / f"{part}", **given, part=part)
        drawn.append(pd.read_parquet(tmp_path / f"{part}" / "generations.parquet"))
    usual = pd.read_parquet(world.generations / "generations.parquet")
    assert sorted(pd.concat(drawn).prompt) == sorted(usual.prompt)
    asked = drawn[1].prompt_ids.tolist(), drawn[1].completion_ids.tolist()
    anchor, _ = load_policy(world.sft)
    np.testing.assert_allclose(drawn[1].ref_logps, sequence_log_probs(anchor, *asked), atol=1e-4)
    assert np.abs(drawn[1].ref_logps - sequence_log_probs(model, *asked)).max() > 0.1
