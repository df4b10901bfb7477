"""The reward model and the SFT policy: losses by hand, TRL's interface, and tiny runs end to end."""

import ast
import dataclasses
import inspect
import math
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from helpers import called
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import expit
from torch.nn.functional import logsigmoid
from transformers import DistilBertForSequenceClassification, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from alignkit.faults import UserFault
from alignkit.metrics import pairwise_accuracy
from alignkit.pocket import generate_reviews
from alignkit.training import reward, sft
from alignkit.training.reward import (
    TRAINERS,
    AllPairsRewardTrainer,
    _drop_words,
    _pair_up,
    all_pairs_loss,
    encode,
    pair_count,
    score,
    score_with,
    sign_boundary,
    tfidf_baseline,
    train_reward,
)
from alignkit.training.sft import cross_entropy, train_sft
from alignkit.world.models import load_policy, new_encoder, train_tokenizer, trainer_arguments
from alignkit.world.reviews import Reviews, load_reviews

TOLERANCE = 1e-5
REVIEWS = generate_reviews(60, seed=0)
TEXTS = REVIEWS.text.tolist()
POCKET = Reviews("pocket", 400, 200, 100)
REWARD = {
    **{"base": "scratch", "tokenizer": "encoder_word", "vocab": 400, "width": 16, "layers": 1, "heads": 2},
    **{"sinusoidal": True, "tokens": 64, "dropout": 0.0, "word_dropout": 0.2},
    **{"epochs": 1, "min_steps": 1, "batch": 32, "lr": 3e-2},
}
SFT = {
    **{"policy": "scratch", "tokenizer": "word", "vocab": 400, "width": 16, "layers": 1, "heads": 2},
    **{"tokens": 64, "epochs": 1, "batch": 32, "lr": 1e-2, "held_out": 50},
}


def one_line(fault: pytest.ExceptionInfo[UserFault]) -> str:
    (line,) = str(fault.value).splitlines()
    return line


# The loss


def double_loop(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """-log sigma(w - l) = log(1 + exp(l - w)), pair by pair."""
    terms = [torch.log1p(torch.exp(loser - winner)) for winner in chosen for loser in rejected]
    return torch.stack(terms).mean()


def rewards(size: int, seed: int, scale: float) -> torch.Tensor:
    values = torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (scale * values).requires_grad_()


SIZE = st.integers(1, 6)
SEED = st.integers(0, 10_000)
SCALE = st.floats(0.01, 50)


@settings(max_examples=30, deadline=None)
@given(SIZE, SIZE, SEED, SCALE)
def test_all_pairs_loss_and_its_gradient_are_those_of_the_double_loop(p: int, n: int, seed: int, scale: float) -> None:
    sides = rewards(p, seed, scale), rewards(n, seed + 1, scale)
    found, expected = all_pairs_loss(*sides), double_loop(*sides)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for gradient, by_hand in zip(torch.autograd.grad(found, sides), torch.autograd.grad(expected, sides), strict=True):
        torch.testing.assert_close(gradient, by_hand, rtol=1e-10, atol=1e-10)


@settings(max_examples=20, deadline=None)
@given(SEED, SCALE)
def test_with_one_review_on_each_side_the_loss_is_the_plain_one(seed: int, scale: float) -> None:
    chosen, rejected = rewards(1, seed, scale), rewards(1, seed + 1, scale)
    assert all_pairs_loss(chosen, rejected).item() == pytest.approx(-logsigmoid(chosen - rejected).item(), abs=1e-10)


@settings(max_examples=20, deadline=None)
@given(SIZE, SIZE, SEED, st.floats(-100, 100))
def test_a_constant_added_to_all_rewards_leaves_the_loss_as_it_is(p: int, n: int, seed: int, constant: float) -> None:
    chosen, rejected = rewards(p, seed, 1), rewards(n, seed + 1, 1)
    shifted = all_pairs_loss(chosen + constant, rejected + constant)
    assert shifted.item() == pytest.approx(all_pairs_loss(chosen, rejected).item(), abs=1e-10)


def test_equal_rewards_have_the_loss_log_2_and_far_ones_no_overflow() -> None:
    assert all_pairs_loss(torch.zeros(3), torch.zeros(5)).item() == pytest.approx(math.log(2))
    assert all_pairs_loss(torch.tensor([1e4]), torch.tensor([-1e4])).item() == 0
    assert all_pairs_loss(torch.tensor([-1e4]), torch.tensor([1e4])).item() == pytest.approx(2e4)


# The trainers


@pytest.fixture(scope="module")
def codec() -> PreTrainedTokenizerBase:
    return train_tokenizer("encoder_word", TEXTS, 400)


def lively_encoder(codec: PreTrainedTokenizerBase) -> DistilBertForSequenceClassification:
    """An encoder whose rewards differ much from text to text; those of a fresh one are nearly zero."""
    torch.manual_seed(0)
    shape = {"width": 16, "layers": 1, "heads": 2, "positions": 64, "sinusoidal": False}
    model = new_encoder(codec, **shape, dropout=0.0).eval()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.3)
    return model


@pytest.fixture(scope="module")
def encoder(codec: PreTrainedTokenizerBase) -> DistilBertForSequenceClassification:
    return lively_encoder(codec)


def paired(codec: PreTrainedTokenizerBase, n: int) -> Dataset:
    """n pairs of reviews of many lengths."""
    ids = codec(TEXTS[: 2 * n])["input_ids"]
    return Dataset.from_dict({"chosen_ids": ids[:n], "rejected_ids": ids[n:]})


def tiny_trainer(kind: str, model, codec, folder: Path, rows: Dataset, **changed: Any) -> RewardTrainer:
    arguments = trainer_arguments(folder, seed=0, epochs=1, batch=8, lr=1.0, reports=1)
    arguments |= {"use_cpu": True, "bf16": False, "fp16": False, "eval_strategy": "no", "eval_on_start": False}
    config = RewardConfig(**arguments | changed, max_length=64)
    return TRAINERS[kind](model=model, args=config, train_dataset=rows, processing_class=codec)


def own_rewards(model, rows: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards text by text, without padding; chosen and rejected."""
    sides = ([model(torch.tensor([ids])).logits[0, 0] for ids in rows[name]] for name in ("chosen_ids", "rejected_ids"))
    return tuple(torch.stack(side) for side in sides)


def diagonal(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    return torch.log1p(torch.exp(rejected - chosen)).mean()


BY_HAND = {"all": double_loop, "matched": diagonal}
BOTH = pytest.mark.parametrize("kind", ["all", "matched"])


@BOTH
def test_a_trainers_loss_and_gradient_are_those_by_hand(kind: str, encoder, codec, tmp_path: Path) -> None:
    rows = paired(codec, 7)
    trainer = tiny_trainer(kind, encoder, codec, tmp_path, rows)
    weights = list(encoder.parameters())
    expected = BY_HAND[kind](*own_rewards(encoder, rows))
    by_hand = torch.autograd.grad(expected, weights, allow_unused=True)
    loss = trainer.compute_loss(encoder, trainer.data_collator(list(rows)))
    encoder.zero_grad()
    loss.backward()
    assert loss.item() == pytest.approx(expected.item(), abs=TOLERANCE)
    assert max(gradient.abs().max() for gradient in by_hand if gradient is not None) > 0.01
    for weight, gradient in zip(weights, by_hand, strict=True):
        assert (weight.grad is None) == (gradient is None)
        if gradient is not None:
            torch.testing.assert_close(weight.grad, gradient, rtol=0, atol=TOLERANCE)
    encoder.zero_grad()


def test_the_two_losses_differ_on_the_same_batch(encoder, codec) -> None:
    sides = own_rewards(encoder, paired(codec, 7))
    assert abs(double_loop(*sides) - diagonal(*sides)) > 100 * TOLERANCE


@BOTH
def test_compute_loss_gives_the_outputs_when_asked(kind: str, encoder, codec, tmp_path: Path) -> None:
    rows = paired(codec, 4)
    trainer = tiny_trainer(kind, encoder, codec, tmp_path, rows)
    loss, outputs = trainer.compute_loss(encoder, trainer.data_collator(list(rows)), return_outputs=True)
    chosen, rejected = outputs.logits.squeeze(-1).chunk(2)
    torch.testing.assert_close(loss, BY_HAND[kind](chosen, rejected), rtol=0, atol=TOLERANCE)


@BOTH
def test_a_training_step_moves_the_weights_along_the_gradient(kind: str, codec, tmp_path: Path) -> None:
    model, rows = lively_encoder(codec), paired(codec, 8)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    by_hand = torch.autograd.grad(BY_HAND[kind](*own_rewards(model, rows)), weights)
    before = [weight.detach().clone() for weight in weights]
    plain = {"max_steps": 1, "optim": "sgd", "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0}
    tiny_trainer(kind, model, codec, tmp_path, rows, **plain).train()
    for weight, old, gradient in zip(weights, before, by_hand, strict=True):
        torch.testing.assert_close(weight.detach(), old - gradient, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("rows", "batch"), [(12, 8), (19, 16), (16, 16), (5, 32)])
def test_pair_count_counts_what_the_trainer_compares(rows: int, batch: int, encoder, codec, tmp_path: Path) -> None:
    size = {"per_device_train_batch_size": batch // 2}
    trainer = tiny_trainer("all", encoder, codec, tmp_path, paired(codec, rows), **size)
    texts = [len(inputs["input_ids"]) for inputs in trainer.get_train_dataloader()]
    every = pair_count(rows, batch, "all")
    assert every == {"forwards_per_epoch": sum(texts), "pairs_per_epoch": sum((n // 2) ** 2 for n in texts)}
    assert pair_count(rows, batch, "matched") == {"forwards_per_epoch": sum(texts), "pairs_per_epoch": sum(texts) // 2}


def test_an_epoch_of_imdb_compares_16_pairs_for_each_review() -> None:
    count = pair_count(12_500, 64, "all")
    assert count["forwards_per_epoch"] == 25_000
    assert 0 <= 25_000 * 64 / 4 - count["pairs_per_epoch"] < 32**2  # the last batch is short
    assert pair_count(12_800, 64, "all")["pairs_per_epoch"] == 25_600 * 64 / 4


# Word dropout


def test_word_dropout_leaves_out_its_share_of_inner_tokens_anew() -> None:
    row = list(range(100, 202))
    first, same, again = (
        _drop_words(0.3, {"chosen_ids": [row] * 200, "rejected_ids": [row[:2]] * others}) for others in (1, 1, 2)
    )
    assert same == first
    for kept in first["chosen_ids"]:
        assert (kept[0], kept[-1]) == (row[0], row[-1])
        assert kept == sorted(set(kept) & set(row))
    inner = [len(kept) - 2 for kept in first["chosen_ids"]]
    assert np.mean(inner) == pytest.approx(70, abs=4 * np.sqrt(100 * 0.3 * 0.7 / 200))
    assert first["chosen_ids"] != again["chosen_ids"]
    assert first["rejected_ids"] == [row[:2]]


def test_no_word_dropout_leaves_every_token() -> None:
    rows = {"chosen_ids": [[1, 2, 3]], "rejected_ids": [[4, 5]]}
    assert _drop_words(0.0, rows) == rows


# TRL's interface


def keywords_of(module, function: str) -> set[str]:
    """The keywords, by name, that the module passes to the function (or to an entry of the table of that name)."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(module))) if isinstance(node, ast.Call)]
    heads = {call: call.func.value if isinstance(call.func, ast.Subscript) else call.func for call in calls}
    mine = [call for call, head in heads.items() if isinstance(head, ast.Name) and head.id == function]
    assert mine, f"no call of {function}"
    return {keyword.arg for call in mine for keyword in call.keywords if keyword.arg}


@pytest.mark.parametrize(("module", "config"), [(reward, RewardConfig), (sft, SFTConfig)])
def test_trl_configs_have_every_field_that_is_passed_to_them(module, config: type, tmp_path: Path) -> None:
    shared = trainer_arguments(tmp_path, seed=0, epochs=1, batch=2, lr=1e-3, reports=2)
    passed = keywords_of(module, config.__name__) | set(shared)
    assert "max_length" in passed
    assert passed <= {field.name for field in dataclasses.fields(config)}


@pytest.mark.parametrize(
    ("module", "name", "trainer"), [(reward, "TRAINERS", RewardTrainer), (sft, "PlainSFTTrainer", SFTTrainer)]
)
def test_trl_trainers_take_every_argument_that_is_passed_to_them(module, name: str, trainer: type) -> None:
    passed = keywords_of(module, name)
    assert {"model", "args", "train_dataset"} <= passed
    assert passed <= set(inspect.signature(trainer.__init__).parameters)


def test_compute_loss_has_the_signature_of_trl() -> None:
    ours, theirs = (inspect.signature(c.compute_loss).parameters for c in (AllPairsRewardTrainer, RewardTrainer))
    assert [(p.name, p.kind, p.default) for p in ours.values()] == [
        (p.name, p.kind, p.default) for p in theirs.values()
    ]
    assert "compute_loss" in vars(RewardTrainer)


# Scoring


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 70), st.integers(0, len(TEXTS) - 1))
def test_encode_keeps_short_texts_whole_and_both_ends_of_long_ones(codec, tokens: int, i: int) -> None:
    whole = codec(TEXTS[i])["input_ids"]
    (row,) = encode(codec, [TEXTS[i]], tokens)
    if len(whole) <= tokens:
        assert row == whole
    else:
        head = tokens // 2
        assert len(row) == tokens
        assert row[:head] == whole[:head]
        assert row[head:] == whole[len(whole) - (tokens - head) :]
        assert (row[0], row[-1]) == (codec.cls_token_id, codec.sep_token_id)


def test_encode_takes_no_texts_as_well(codec) -> None:
    assert encode(codec, [], 8) == []


def test_score_is_the_models_output_for_each_text_alone(encoder, codec) -> None:
    with torch.no_grad():
        expected = [encoder(torch.tensor([ids])).logits.item() for ids in codec(TEXTS)["input_ids"]]
    assert np.std(expected) > 0.1
    np.testing.assert_allclose(score(encoder, codec, TEXTS, tokens=64), expected, atol=TOLERANCE)


@settings(max_examples=10, deadline=None)
@given(st.permutations(range(len(TEXTS))), st.integers(1, 70))
def test_score_depends_on_neither_order_nor_batch_size_nor_padding(
    encoder, codec, order: list[int], batch: int
) -> None:
    expected = score(encoder, codec, TEXTS, tokens=64)
    found = score(encoder, codec, [TEXTS[i] for i in order], tokens=64, batch=batch)
    np.testing.assert_allclose(found, expected[order], atol=TOLERANCE)


def test_score_cuts_texts_as_encode_does(encoder, codec) -> None:
    with torch.no_grad():
        expected = [encoder(torch.tensor([ids])).logits.item() for ids in encode(codec, TEXTS, 9)]
    np.testing.assert_allclose(score(encoder, codec, TEXTS, tokens=9), expected, atol=TOLERANCE)


LABELLED = st.lists(st.tuples(st.floats(-5, 5), st.integers(0, 1)), min_size=2, max_size=20).filter(
    lambda rows: len({label for _, label in rows}) == 2
)


@settings(max_examples=50, deadline=None)
@given(LABELLED, st.floats(-20, 20))
def test_the_sign_boundary_expects_as_many_positives_as_there_are(rows: list[tuple[float, int]], shift: float) -> None:
    r, y = (np.array(column) for column in zip(*rows, strict=True))
    b = sign_boundary(r, y)
    assert expit(r - b).sum() == pytest.approx(y.sum(), abs=1e-8)
    assert sign_boundary(r + shift, y) == pytest.approx(b + shift, abs=1e-6)
    assert sign_boundary(-r, 1 - y) == pytest.approx(-b, abs=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_one_label_gives_no_sign_boundary(label: int) -> None:
    with pytest.raises(ValueError, match="both labels"):
        sign_boundary(np.array([0.1, 0.2]), np.array([label, label]))


def test_pairs_of_the_tfidf_baseline_are_neighbours() -> None:
    model = tfidf_baseline(["not a dull one . it ends", "it is dull . it ends"] * 4, [1, 0] * 4, ngrams=2)
    terms = set(model[0].vocabulary_)
    assert {"not a", "a dull", "dull .", ". it"} <= terms
    assert not {"not dull", "dull it", "one it"} & terms


@pytest.mark.parametrize("ngrams", [1, 2])
def test_the_tfidf_baseline_learns_the_pocket_reviews(ngrams: int) -> None:
    train, test = generate_reviews(1000, seed=1), generate_reviews(300, seed=2)
    baseline = tfidf_baseline(train.text.tolist(), train.label.tolist(), ngrams=ngrams)
    logit = baseline.decision_function(test.text)
    assert pairwise_accuracy(logit, test.label.to_numpy()) > 0.65
    assert any(" " in word for word in baseline[0].get_feature_names_out()) == (ngrams == 2)


# Reward models end to end


RUNS: dict[str, dict[str, Any]] = {
    "all": {"seed": 0, "held_out": 60},
    "again": {"seed": 0, "held_out": 60},
    "other_seed": {"seed": 1, "held_out": 60},
    "matched": {"seed": 0, "held_out": 60, "pairs": "matched"},
    "small": {"seed": 0, "held_out": 60, "n_train": 100, "min_steps": 9},
    "everything": {"seed": 1, "dropout": 0.3},
    "every_word": {"seed": 0, "held_out": 60, "word_dropout": 0.0},
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, dict[str, float]]]:
    done = {}
    for name, changed in RUNS.items():
        out = tmp_path_factory.mktemp(name)
        done[name] = out, called(train_reward, out, data=POCKET, **REWARD | changed)
    return done


def scores_of(runs, name: str) -> pd.DataFrame:
    return pd.read_parquet(runs[name][0] / "scores.parquet")


@pytest.mark.parametrize(
    ("name", "reviews", "held_out"),
    [("all", 340, 60), ("matched", 340, 60), ("small", 100, 60), ("everything", 400, 0)],
)
def test_a_run_trains_on_what_is_not_held_out_and_scores_every_split(runs, name, reviews: int, held_out: int) -> None:
    metrics = runs[name][1]
    counts = scores_of(runs, name).groupby(["split", "label"]).size().to_dict()
    expected = {("test", 0): 100, ("test", 1): 100, ("anchor", -1): 100}
    if held_out:
        expected |= {("held_out", 0): held_out // 2, ("held_out", 1): held_out // 2}
    assert counts == expected
    assert metrics["reviews"] == reviews
    assert metrics["forwards_per_epoch"] == reviews
    assert metrics["pairs_per_epoch"] == pair_count(reviews // 2, 32, RUNS[name].get("pairs", "all"))["pairs_per_epoch"]


def test_kept_scores_are_those_of_the_kept_model_in_the_order_of_seed_0(runs) -> None:
    out, metrics = runs["everything"]
    test = POCKET.load(0)["test"]
    kept = scores_of(runs, "everything").query("split == 'test'")
    assert kept.label.tolist() == list(test["label"])
    np.testing.assert_allclose(score_with(out, list(test["text"]), tokens=64), kept.reward, atol=TOLERANCE)
    accuracy = pairwise_accuracy(kept.reward.to_numpy(), kept.label.to_numpy())
    assert metrics["pairwise_accuracy"] == pytest.approx(accuracy)


def test_the_same_seed_gives_the_same_scores_and_settings_matter(runs) -> None:
    pd.testing.assert_frame_equal(scores_of(runs, "all"), scores_of(runs, "again"))
    for other in ("other_seed", "matched", "every_word"):
        assert not np.allclose(scores_of(runs, "all").reward, scores_of(runs, other).reward, atol=1e-4)


def test_a_small_run_takes_at_least_the_steps_asked_for(runs) -> None:
    assert pd.read_csv(runs["small"][0] / "history.csv").step.max() >= 9
    assert runs["small"][1]["epochs"] > 1


def test_runs_keep_weights_as_safetensors_and_no_pickle(runs) -> None:
    for out, _ in runs.values():
        assert (out / "model.safetensors").is_file()
        assert {path.suffix for path in out.iterdir()} <= {".safetensors", ".json", ".csv", ".parquet"}


def test_more_training_reviews_than_are_left_are_a_fault(tmp_path: Path) -> None:
    with pytest.raises(UserFault) as fault:
        called(train_reward, tmp_path, seed=0, data=POCKET, **REWARD, held_out=60, n_train=342)
    assert "342" in one_line(fault)
    assert "340" in one_line(fault)


@pytest.mark.parametrize("held_out", [400, 600])
def test_holding_out_every_labelled_review_is_a_fault(tmp_path: Path, held_out: int) -> None:
    with pytest.raises(UserFault) as fault:
        called(train_reward, tmp_path, seed=0, data=POCKET, **REWARD, held_out=held_out)
    assert one_line(fault).startswith(f"held_out: {held_out} asked for")
    assert "less than 400" in one_line(fault)


def test_labels_of_scores_are_integers_with_and_without_held_out_reviews(runs) -> None:
    assert {name: scores_of(runs, name).label.dtype.kind for name in ("all", "everything")} == {
        "all": "i",
        "everything": "i",
    }


def write_own_words(file: Path, n_positive: int, n_negative: int) -> str:
    """A CSV of "good w7" and "bad w8": a telling word, and a number that no other review has."""
    parts = [("train", 1, n_positive), ("train", 0, n_negative), ("test", 1, 10), ("test", 0, 10)]
    rows = [(split, label) for split, label, n in parts for _ in range(n)]
    frame = pd.DataFrame(rows, columns=["split", "label"])
    numbers = pd.Series([f" w{i}" for i in range(len(frame))])
    frame.assign(text=frame.label.map({0: "bad", 1: "good"}) + numbers).to_csv(file, index=False)
    return str(file)


def numbers_of(texts: list[str]) -> set[str]:
    return {word for text in texts for word in text.split() if word[0] == "w"}


@pytest.mark.parametrize("n_train", [None, 40])
def test_the_tokenizer_has_seen_the_training_reviews_and_no_others(tmp_path: Path, n_train: int | None) -> None:
    data = {"source": write_own_words(tmp_path / "r.csv", 40, 40)}
    called(train_reward, tmp_path, seed=0, data=data, **REWARD, held_out=20, n_train=n_train)
    seen = numbers_of(list(PreTrainedTokenizerFast.from_pretrained(tmp_path).get_vocab()))
    train = load_reviews(**data, seed=0)["train"].to_pandas()
    kept = [train[train.label == label].text.tolist()[:-10][: n_train and n_train // 2] for label in (0, 1)]
    assert len(seen) == (n_train or 60)
    assert seen == numbers_of(kept[0] + kept[1])


@pytest.mark.parametrize(("positive", "negative"), [(7, 3), (3, 7), (4, 4)])
def test_pairing_uses_every_review_and_repeats_the_shorter_side(codec, positive: int, negative: int) -> None:
    sides = {"chosen_ids": TEXTS[:positive], "rejected_ids": TEXTS[20 : 20 + negative]}
    rows = _pair_up(*sides.values(), codec, 64)
    for name, texts in sides.items():
        expected = list(islice(cycle(codec(texts)["input_ids"]), max(positive, negative)))
        assert list(rows[name]) == expected


@pytest.mark.parametrize("pairs", ["all", "matched"])
@pytest.mark.parametrize("sizes", [(60, 25), (25, 60)])
def test_unbalanced_reviews_are_learned_from_with_either_loss(tmp_path: Path, pairs: str, sizes) -> None:
    data = {"source": write_own_words(tmp_path / "r.csv", *sizes)}
    taught = REWARD | {"batch": 16, "lr": 1e-2, "epochs": 5}
    metrics = called(train_reward, tmp_path, seed=0, data=data, **taught, held_out=10, pairs=pairs)
    assert metrics["reviews"] == sum(sizes) - 10
    assert metrics["forwards_per_epoch"] == 2 * (60 - 5)
    assert metrics["pairwise_accuracy"] > 0.95
    # The last validation loss is that of the held-out rewards: no dropout, every word, each with its own label.
    held_out = pd.read_parquet(tmp_path / "scores.parquet").query("split == 'held_out'")
    sides = (torch.tensor(held_out.reward[held_out.label == label].to_numpy()) for label in (1, 0))
    loss = pd.read_csv(tmp_path / "history.csv").eval_loss.iloc[-1]
    assert loss == pytest.approx(BY_HAND[pairs](*sides).item(), abs=TOLERANCE)
    assert loss < 0.5


def test_a_kept_reward_model_can_be_trained_on(runs, tmp_path: Path) -> None:
    metrics = called(train_reward, tmp_path, seed=0, data=POCKET, **REWARD | {"base": str(runs["all"][0]), "lr": 1e-9})
    test = pd.read_parquet(tmp_path / "scores.parquet").query("split == 'test'")
    np.testing.assert_allclose(test.reward, scores_of(runs, "all").query("split == 'test'").reward, atol=TOLERANCE)
    assert metrics["reviews"] == 400


# SFT end to end


@pytest.fixture(scope="module")
def untrained(tmp_path_factory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("untrained")
    return out, called(train_sft, out, seed=0, data=POCKET, **SFT | {"epochs": 0})


@pytest.fixture(scope="module")
def tuned(tmp_path_factory) -> tuple[Path, dict[str, float]]:
    out = tmp_path_factory.mktemp("tuned")
    return out, called(train_sft, out, seed=0, data=POCKET, **SFT)


def test_fine_tuning_lowers_the_cross_entropy_of_test_reviews(untrained, tuned) -> None:
    assert untrained[1]["test_cross_entropy"] == pytest.approx(math.log(200), abs=0.3)  # about 200 words, all alike
    assert tuned[1]["test_cross_entropy"] < untrained[1]["test_cross_entropy"] - 0.5
    assert tuned[1]["texts"] == SFT["held_out"]


def test_the_validation_loss_of_sft_is_the_held_out_cross_entropy(tuned) -> None:
    history = pd.read_csv(tuned[0] / "history.csv")
    assert history.eval_loss.iloc[-1] == pytest.approx(tuned[1]["held_out_cross_entropy"], abs=TOLERANCE)


@pytest.mark.parametrize("tokens", [5, 64])
def test_cross_entropy_is_the_mean_loss_of_all_tokens_and_the_end(tuned, tokens: int) -> None:
    model, tokenizer = load_policy(tuned[0])
    total, count = 0.0, 0
    for text in TEXTS[:10]:
        ids = torch.tensor([tokenizer(text + tokenizer.eos_token)["input_ids"][:tokens]], device=model.device)
        with torch.no_grad():
            total += model(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert cross_entropy(model, tokenizer, TEXTS[:10], tokens) == pytest.approx(total / count, abs=TOLERANCE)


def test_no_epochs_keep_a_policy_as_it_is(tuned, tmp_path: Path) -> None:
    metrics = called(train_sft, tmp_path, seed=0, data=POCKET, **SFT | {"epochs": 0, "policy": str(tuned[0])})
    before, after = (load_policy(folder)[0].state_dict() for folder in (tuned[0], tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert metrics["tokens_trained"] == 0
    assert metrics["test_cross_entropy"] == pytest.approx(tuned[1]["test_cross_entropy"], abs=TOLERANCE)
    assert not (tmp_path / "history.csv").exists()


def test_sft_keeps_weights_as_safetensors_and_no_pickle(tuned) -> None:
    assert {path.suffix for path in tuned[0].iterdir()} == {".safetensors", ".json", ".csv"}


def test_sft_is_the_same_for_the_same_seed(tuned, tmp_path: Path) -> None:
    assert called(train_sft, tmp_path, seed=0, data=POCKET, **SFT) == tuned[1]


def test_holding_out_every_review_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(UserFault) as fault:
        called(train_sft, tmp_path, seed=0, data=POCKET, **SFT | {"held_out": 500})
    line = one_line(fault)
    assert line.startswith("sft_held_out: 500 ")
    assert line.endswith("only 500 reviews")
