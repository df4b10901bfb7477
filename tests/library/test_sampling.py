"""Sampling and log-probs against sums by hand and against all completions of a tiny vocabulary."""

from collections import Counter
from copy import deepcopy
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import called
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from alignkit import decoding, sampling
from alignkit.kl import token_log_probs
from alignkit.pocket import generate_reviews
from alignkit.sampling import full_texts, pad_left, sample, sequence_log_probs
from alignkit.training.deviations import logits_of as logits_after
from alignkit.training.evaluate import sample_completions
from alignkit.world.models import train_tokenizer

TOLERANCE = 1e-5
TEXTS = generate_reviews(3000, seed=0).text.tolist()
SHORT, LONG = "a", "b a c c b a a"


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer("word", TEXTS, 400)


@pytest.fixture(scope="module")
def policy(tokenizer: PreTrainedTokenizerBase, lively_policy) -> GPT2LMHeadModel:
    return lively_policy(tokenizer, 0)


@pytest.fixture(scope="module")
def rows(tokenizer: PreTrainedTokenizerBase) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions of many lengths, the empty completion among them."""
    ids = tokenizer(TEXTS[:20])["input_ids"]
    return [row[: 1 + i % 7] for i, row in enumerate(ids)], [row[1 + i % 7 :][: i % 12] for i, row in enumerate(ids)]


@pytest.fixture(scope="module")
def tiny_tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer("word", ["a b c"], 10)


@pytest.fixture(scope="module")
def tiny_policy(tiny_tokenizer: PreTrainedTokenizerBase, lively_policy) -> GPT2LMHeadModel:
    return lively_policy(tiny_tokenizer, 0)


@torch.no_grad()
def logits_of(model: GPT2LMHeadModel, ids: list[int]) -> torch.Tensor:
    """Without padding, mask and positions: what GPT-2 itself says, shape (len(ids), vocabulary)."""
    return model(torch.tensor([ids])).logits[0]


def test_sequence_log_probs_are_the_sums_by_hand(policy: GPT2LMHeadModel, rows) -> None:
    expected = []
    for prompt, completion in zip(*rows, strict=True):
        logits = logits_of(policy, prompt + completion).double()
        places = range(len(prompt) - 1, len(prompt) + len(completion) - 1)
        terms = (logits[t, token] - logits[t].logsumexp(0) for t, token in zip(places, completion, strict=True))
        expected.append(float(sum(terms)))
    assert np.std(expected) > 1
    np.testing.assert_allclose(sequence_log_probs(policy, *rows), expected, atol=TOLERANCE)


def test_sequence_log_probs_are_the_hugging_face_loss_times_tokens(policy: GPT2LMHeadModel, rows) -> None:
    for prompt, completion, log_prob in zip(*rows, sequence_log_probs(policy, *rows), strict=True):
        if completion:
            labels = torch.tensor([[-100] * len(prompt) + completion])
            loss = policy(torch.tensor([prompt + completion]), labels=labels).loss.item()
            assert -loss * len(completion) == pytest.approx(log_prob, rel=TOLERANCE)


@pytest.mark.parametrize("pads", range(9))
def test_token_log_probs_do_not_see_padding_on_the_left(policy: GPT2LMHeadModel, tokenizer, pads: int) -> None:
    row = tokenizer(TEXTS[0])["input_ids"]
    expected = logits_of(policy, row)[:-1].log_softmax(-1).gather(1, torch.tensor(row[1:])[:, None])[:, 0]
    ids = torch.tensor([[tokenizer.pad_token_id] * pads + row])
    mask = torch.tensor([[0] * pads + [1] * len(row)])
    found = token_log_probs(logits_after(policy, ids, mask)[:, :-1], ids[:, 1:])[0, pads:]
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_token_log_probs_can_be_differentiated(policy: GPT2LMHeadModel, tokenizer) -> None:
    ids, mask = pad_left(tokenizer(TEXTS[:2])["input_ids"], tokenizer.pad_token_id)
    gradient = torch.autograd.grad(
        token_log_probs(logits_after(policy, ids, mask)[:, :-1], ids[:, 1:]).sum(), policy.lm_head.weight
    )[0]
    assert gradient.abs().max() > 0


def test_a_prompt_without_a_token_is_refused(policy: GPT2LMHeadModel) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        sequence_log_probs(policy, [[5], []], [[6], [7]])


@settings(max_examples=10, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 20))
def test_sequence_log_probs_depend_on_neither_order_nor_company(policy, rows, random, how_many: int) -> None:
    expected = sequence_log_probs(policy, *rows)
    some = random.sample(range(len(expected)), how_many)
    found = sequence_log_probs(policy, *([side[i] for i in some] for side in rows))
    np.testing.assert_allclose(found, expected[some], atol=TOLERANCE)


def test_a_long_prompt_beside_a_long_completion_needs_no_further_position(tokenizer, lively_policy) -> None:
    policy = lively_policy(tokenizer, 0)
    room = policy.config.n_positions
    prompts = [[5] * (room - 3), [6]]
    completions = [[7, 8, 9], [7] * (room - 1)]
    found = sequence_log_probs(policy, prompts, completions)
    alone = [sequence_log_probs(policy, [p], [c])[0] for p, c in zip(prompts, completions, strict=True)]
    np.testing.assert_allclose(found, alone, atol=1e-4)


def test_columns_of_a_table_are_scored_as_lists_are(policy, rows, monkeypatch) -> None:
    monkeypatch.setattr(sampling, "BLOCK", 7)
    columns = [pd.Series(side, index=range(100, 100 + len(side))) for side in rows]
    np.testing.assert_array_equal(sequence_log_probs(policy, *columns), sequence_log_probs(policy, *rows))


def test_a_prompt_without_a_token_is_not_sampled_from(policy: GPT2LMHeadModel, tokenizer) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        sample(policy, tokenizer, [[5], []], k=1, max_new_tokens=2, seed=0)


def test_rows_beyond_a_block_are_scored_as_those_within_it(policy, rows, monkeypatch) -> None:
    expected = sequence_log_probs(policy, *rows)
    monkeypatch.setattr(sampling, "BLOCK", 7)
    np.testing.assert_allclose(sequence_log_probs(policy, *rows), expected, atol=TOLERANCE)


def outcomes(tokenizer: PreTrainedTokenizerBase, length: int) -> list[list[int]]:
    """Every completion that sampling `length` tokens can give: cut after the first end-of-text token."""
    end = tokenizer.eos_token_id
    every = [list(ids) for n in range(1, length + 1) for ids in product(range(len(tokenizer)), repeat=n)]
    return [ids for ids in every if end not in ids[:-1] and (len(ids) == length or ids[-1] == end)]


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("prompt", [SHORT, LONG])
def test_probabilities_of_all_completions_sum_to_one(tiny_policy, tiny_tokenizer, prompt: str, length: int) -> None:
    ids = tiny_tokenizer(prompt)["input_ids"]
    fixed_length = [list(c) for c in product(range(len(tiny_tokenizer)), repeat=length)]
    for completions in (fixed_length, outcomes(tiny_tokenizer, length)):
        log_probs = sequence_log_probs(tiny_policy, [ids] * len(completions), completions)
        assert np.exp(log_probs).sum() == pytest.approx(1, abs=TOLERANCE)


def chi_square_p(drawn: list[list[int]], cells: list[list[int]], probability: np.ndarray) -> float:
    """The p value of the draws; cells that expect fewer than five are put together."""
    counts = Counter(map(tuple, drawn))
    assert set(counts) <= set(map(tuple, cells))
    seen, expected = np.array([counts[tuple(c)] for c in cells]), probability / probability.sum() * len(drawn)
    rare = expected < 5
    seen, expected = np.append(seen[~rare], seen[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    return chisquare(seen[expected > 0], expected[expected > 0]).pvalue


@pytest.fixture(scope="module", params=["own padding", "padded with the end token, as GPT-2", "by generate"])
def draws(request, tiny_policy, tiny_tokenizer) -> pd.DataFrame:
    """Two prompts of different lengths, mixed within each batch, so that one is padded; two tokens each."""
    tokenizer = deepcopy(tiny_tokenizer)
    if request.param != "own padding":
        tokenizer.pad_token = tokenizer.eos_token
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "by generate":
            patch.setattr(decoding, "is_known", lambda model: False)
        return sample(tiny_policy, tokenizer, [SHORT, LONG] * 100, k=40, max_new_tokens=2, seed=0, batch=400)


@pytest.mark.parametrize("prompt", [SHORT, LONG])
def test_first_tokens_are_drawn_with_the_softmax_probabilities(draws, tiny_policy, tiny_tokenizer, prompt: str) -> None:
    first = draws[draws.prompt == prompt].completion_ids.str[:1].tolist()
    assert len(first) == 4000
    softmax = logits_of(tiny_policy, tiny_tokenizer(prompt)["input_ids"])[-1].softmax(0).double().numpy()
    assert chi_square_p(first, [[i] for i in range(len(tiny_tokenizer))], softmax) > 1e-3


@pytest.mark.parametrize("prompt", [SHORT, LONG])
def test_completions_are_drawn_with_the_probabilities_they_score(
    draws, tiny_policy, tiny_tokenizer, prompt: str
) -> None:
    cells = outcomes(tiny_tokenizer, 2)
    probability = np.exp(sequence_log_probs(tiny_policy, [tiny_tokenizer(prompt)["input_ids"]] * len(cells), cells))
    assert chi_square_p(draws[draws.prompt == prompt].completion_ids.tolist(), cells, probability) > 1e-3


def test_a_completion_holds_the_first_end_token_once_and_nothing_after_it(tiny_policy, tiny_tokenizer) -> None:
    end, longest = tiny_tokenizer.eos_token_id, 6
    samples = sample(tiny_policy, tiny_tokenizer, [SHORT, LONG], k=100, max_new_tokens=longest, seed=0)
    assert 0 < samples.finished.sum() < len(samples)
    for ids, finished in zip(samples.completion_ids, samples.finished, strict=True):
        assert end not in ids[:-1]
        assert (ids[-1] == end) == finished
        assert finished or len(ids) == longest


def test_rows_stand_in_prompt_order_with_the_ids_of_their_prompt(tiny_policy, tiny_tokenizer) -> None:
    samples = sample(tiny_policy, tiny_tokenizer, [SHORT, LONG, "c c"], k=2, max_new_tokens=3, seed=0, batch=4)
    assert samples.prompt.tolist() == [SHORT, SHORT, LONG, LONG, "c c", "c c"]
    assert samples.prompt_ids.tolist() == tiny_tokenizer(samples.prompt.tolist())["input_ids"]
    hidden = {tiny_tokenizer.eos_token_id, tiny_tokenizer.pad_token_id}
    shown = [[i for i in ids if i not in hidden] for ids in samples.completion_ids]
    assert samples.completion.tolist() == tiny_tokenizer.batch_decode(shown)


def test_the_seed_decides_the_samples(policy: GPT2LMHeadModel, tokenizer) -> None:
    settings = {"k": 3, "max_new_tokens": 8}
    first, again, other = (sample(policy, tokenizer, TEXTS[:3], seed=seed, **settings) for seed in (5, 5, 6))
    pd.testing.assert_frame_equal(first, again)
    assert first.completion_ids.tolist() != other.completion_ids.tolist()


def test_sampling_leaves_the_global_random_stream_untouched(policy: GPT2LMHeadModel, tokenizer) -> None:
    before = torch.get_rng_state()
    sample(policy, tokenizer, TEXTS[:2], k=2, max_new_tokens=4, seed=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_unknown_word_stays_to_be_seen_and_end_and_padding_do_not(tiny_tokenizer) -> None:
    unknown, end, pad = (getattr(tiny_tokenizer, f"{name}_token_id") for name in ("unk", "eos", "pad"))
    a, b = tiny_tokenizer("a b")["input_ids"]
    samples = pd.DataFrame({"prompt_ids": [[pad, a]], "completion_ids": [[unknown, b, end]]})
    assert full_texts(samples, tiny_tokenizer) == ["a <unk> b"]


def test_full_texts_start_with_the_prompt_and_show_no_special_token(policy: GPT2LMHeadModel, tokenizer) -> None:
    prompts = [" ".join(text.split()[:6]) for text in TEXTS[:5]]
    samples = sample(policy, tokenizer, prompts, k=4, max_new_tokens=10, seed=0)
    texts = full_texts(samples, tokenizer)
    for text, prompt, completion in zip(texts, samples.prompt, samples.completion, strict=True):
        assert text == f"{prompt} {completion}".strip()
        assert not {tokenizer.eos_token, tokenizer.pad_token} & set(text.split())


def test_kept_completions_have_the_same_prompts_for_every_seed(policy, tokenizer, tmp_path: Path) -> None:
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    data = {"source": "pocket", "train_reviews": 20, "test_reviews": 40, "unsupervised_reviews": 20}
    lengths = {"n_prompts": 5, "k": 3, "shortest": 5, "longest": 20, "max_new_tokens": 6}
    kept = []
    for seed in (0, 1):
        metrics = called(sample_completions, tmp_path, seed=seed, data=data, policy=tmp_path / "policy", **lengths)
        kept.append(pd.read_parquet(tmp_path / "completions.parquet"))
        assert metrics["mean_tokens"] == pytest.approx(kept[-1].completion_ids.map(len).mean())
        assert metrics["finished"] == pytest.approx(kept[-1].finished.mean())
    first, other = kept
    assert len(first) == 15
    assert first.prompt_ids.map(len).between(5, 20).all()
    assert first.prompt.tolist() == other.prompt.tolist()
    assert first.text.tolist() != other.text.tolist()
    assert all(text.startswith(prompt) for text, prompt in zip(first.text, first.prompt, strict=True))
