"""The evaluation of policies against KLs that can be counted, and the baselines that need no pairs."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import called
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase

from alignkit import sampling
from alignkit.metrics import distinct_n, repetition_rate, self_bleu, unigram_entropy
from alignkit.pocket import ADJECTIVES, VERDICTS, generate_reviews, gold_reward, well_formed
from alignkit.sampling import completion_logits, sample, sequence_kl, sequence_log_probs
from alignkit.training import baselines
from alignkit.training.baselines import best_of, guided_search, positive_words, train_on_positive
from alignkit.training.evaluate import FEW, evaluate, evaluation_prompts, measures, with_rewards
from alignkit.training.reward import score_with, zero_of
from alignkit.training.sft import cross_entropy
from alignkit.world.known import truth_of
from alignkit.world.models import load_policy, save, train_tokenizer
from alignkit.world.reviews import Reviews, prompts

TOLERANCE = 1e-5
SHORT, LONG = "a", "b a c c b a a"


# Sequence KL on a vocabulary that can be listed


@pytest.fixture(scope="module")
def codec() -> PreTrainedTokenizerBase:
    return train_tokenizer("word", ["a b c"], 10)


@pytest.fixture(scope="module")
def two(codec, lively_policy) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    """A policy and its reference."""
    return lively_policy(codec, 0), lively_policy(codec, 1)


@torch.no_grad()
def next_log_probs(model: GPT2LMHeadModel, ids: list[int], added: torch.Tensor | float = 0.0) -> torch.Tensor:
    """log p of each next token, without padding, (vocabulary,)."""
    return (model(torch.tensor([ids])).logits[0, -1].double() + added).log_softmax(0)


def kl_of(p: torch.Tensor, q: torch.Tensor) -> float:
    return (p.exp() * (p - q)).sum().item()


def test_equal_policies_have_no_kl(two, codec) -> None:
    ids = codec([SHORT, LONG])["input_ids"]
    for model in two:
        exact, k1 = sequence_kl(model, copy.deepcopy(model), ids, ids, [[3, 4], [5]])
        np.testing.assert_allclose(exact, 0, atol=1e-6)
        np.testing.assert_allclose(k1, 0, atol=1e-6)


@pytest.mark.parametrize("prompt", [SHORT, LONG])
def test_for_one_token_the_exact_kl_sums_over_the_vocabulary(two, codec, prompt) -> None:
    ids = codec(prompt)["input_ids"]
    p, q = (next_log_probs(model, ids) for model in two)
    every = [[token] for token in range(len(codec))]
    exact, k1 = sequence_kl(*two, [ids] * len(every), [ids] * len(every), every)
    assert kl_of(p, q) > 0.05
    np.testing.assert_allclose(exact, kl_of(p, q), rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(k1, p - q, rtol=0, atol=TOLERANCE)


def test_kls_are_sums_over_steps_in_the_order_of_the_rows(two, codec) -> None:
    prompt_ids = codec([LONG, SHORT, "b c", LONG])["input_ids"]
    completions = [[3], [4, 5, 3, 4], [5, 5], [4, 3, 5]]
    exact, k1 = sequence_kl(*two, prompt_ids, prompt_ids, completions)
    for i, (prompt, completion) in enumerate(zip(prompt_ids, completions, strict=True)):
        steps = [(*(next_log_probs(m, prompt + completion[:t]) for m in two), c) for t, c in enumerate(completion)]
        assert exact[i] == pytest.approx(sum(kl_of(p, q) for p, q, _ in steps), abs=TOLERANCE)
        assert k1[i] == pytest.approx(sum((p[c] - q[c]).item() for p, q, c in steps), abs=TOLERANCE)


def test_k1_is_the_difference_of_the_sequence_log_probs(two, codec) -> None:
    samples = sample(two[0], codec, [SHORT, LONG], k=20, max_new_tokens=5, seed=0)
    ids = samples.prompt_ids.tolist(), samples.completion_ids.tolist()
    _, k1 = sequence_kl(*two, ids[0], *ids)
    own, reference = (sequence_log_probs(model, *ids) for model in two)
    np.testing.assert_allclose(k1, own - reference, rtol=0, atol=TOLERANCE)


def test_kls_beyond_a_block_are_those_within_it(two, codec, monkeypatch) -> None:
    drawn = sample(two[0], codec, [SHORT, LONG, "b c"] * 4, k=2, max_new_tokens=5, seed=0)
    ids = drawn.prompt_ids.tolist(), drawn.prompt_ids.tolist()[::-1], drawn.completion_ids.tolist()
    expected = sequence_kl(*two, *ids)
    monkeypatch.setattr(sampling, "BLOCK", 7)
    np.testing.assert_allclose(sequence_kl(*two, *ids), expected, atol=TOLERANCE)


def test_over_many_samples_k1_and_the_exact_kl_have_one_mean(two, codec) -> None:
    samples = sample(two[0], codec, [LONG], k=1500, max_new_tokens=4, seed=0)
    ids = samples.prompt_ids.tolist(), samples.completion_ids.tolist()
    exact, k1 = sequence_kl(*two, ids[0], *ids)
    difference = k1 - exact
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    assert 0 < error < 0.2 * exact.mean()
    assert abs(difference.mean()) < 4 * error


def test_a_bias_makes_the_policy_softmax_of_logits_plus_bias(two, codec) -> None:
    policy, reference = two
    ids, bias = codec(LONG)["input_ids"], {3: 1.5, 5: -0.7}
    added = torch.zeros(len(codec), dtype=torch.float64)
    for token, value in bias.items():
        added[token] = value
    every = [[token] for token in range(len(codec))]
    for other in (policy, reference):
        p, q = next_log_probs(policy, ids, added), next_log_probs(other, ids)
        exact, k1 = sequence_kl(policy, other, [ids] * len(every), [ids] * len(every), every, bias)
        np.testing.assert_allclose(exact, kl_of(p, q), rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(k1, p - q, rtol=0, atol=TOLERANCE)


def test_samples_with_a_bias_come_from_the_policy_whose_kl_is_taken(two, codec) -> None:
    ids, bias = codec(LONG)["input_ids"], {3: 1.5, 5: -0.7}
    drawn = sample(two[0], codec, [LONG], k=3000, max_new_tokens=1, seed=0, bias=bias)
    share = np.bincount(drawn.completion_ids.str[0], minlength=len(codec)) / len(drawn)
    added = torch.zeros(len(codec), dtype=torch.float64).scatter(
        0, torch.tensor([3, 5]), torch.tensor([1.5, -0.7]).double()
    )
    p = next_log_probs(two[0], ids, added).exp().numpy()
    assert (np.abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / len(drawn))).all()


def test_the_two_policies_may_see_different_prompts(two, codec) -> None:
    ids, longer = codec(SHORT)["input_ids"], codec(LONG)["input_ids"]
    for mine, theirs in ((ids, longer), (longer, ids)):
        exact, _ = sequence_kl(two[0], two[0], [mine], [theirs], [[4]])
        expected = kl_of(next_log_probs(two[0], mine), next_log_probs(two[0], theirs))
        assert expected > 0.01
        assert exact[0] == pytest.approx(expected, abs=TOLERANCE)


@torch.no_grad()
def test_completion_logits_stand_before_each_token_without_padding(two, codec) -> None:
    prompt_ids, completions = codec([SHORT, LONG])["input_ids"], [[4, 5, 3], [3]]
    (found,) = completion_logits(two[0], prompt_ids, completions, [[1, 0]])
    assert found.shape == (2, 3, len(codec))
    for i, (prompt, completion) in enumerate(zip(prompt_ids, completions, strict=True)):
        expected = two[0](torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(found[1 - i, : len(completion)], expected, rtol=0, atol=TOLERANCE)


# Measures


def test_measures_are_those_of_the_completions() -> None:
    completions = ["good film .", "bad film .", "good good good good good", "the end"]
    samples = pd.DataFrame({"prompt": ["x", "x", "y", "y"], "completion": completions, "reward": [1.0, 2.0, 3.0, 6.0]})
    found = measures(samples)
    assert set(found) == {"reward", "unigram_entropy", "distinct_2", "self_bleu", "repetition"}
    assert found == pytest.approx(
        {
            "reward": 3.0,
            "unigram_entropy": unigram_entropy(completions),
            "distinct_2": distinct_n(completions, 2),
            "self_bleu": self_bleu([completions[:2], completions[2:]]),
            "repetition": repetition_rate(completions).mean(),
        }
    )
    truth = measures(samples.assign(gold=[0.0, 0, 0, 2], well_formed=[1.0, 1, 1, 0]))
    assert (truth["gold"], truth["well_formed"]) == (0.5, 0.75)


def test_diversity_is_that_of_the_first_of_several_completions() -> None:
    single = pd.DataFrame({"prompt": ["x", "y"], "completion": ["a b", "c d"], "reward": 0.0})
    assert np.isnan(measures(single)["self_bleu"])
    texts = [f"word{i} and so on" for i in range(FEW)]
    many = pd.DataFrame({"prompt": "x", "completion": texts + ["other words entirely here"] * 5, "reward": 0.0})
    assert measures(many)["self_bleu"] == pytest.approx(self_bleu([texts]))
    assert measures(many)["distinct_2"] == pytest.approx(distinct_n(texts, 2))


# A policy of the pocket world, evaluated


SIZES = {"n_prompts": 10, "k": 4, "max_new_tokens": 16, "reward_tokens": 64}
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "other seed": {"seed": 1},
    "prefix": {"prefix": "i loved every second of it ."},
    "bias": {"bias": {"superb": 4.0, "dull": -4.0}},
}


@pytest.fixture(scope="module")
def evaluations(world, tmp_path_factory) -> dict[str, tuple[dict[str, Any], pd.DataFrame]]:
    """The SFT policy against itself."""
    models = {"policy": world.sft, "reference": world.sft, "reward": world.reward}
    done = {}
    for name, changed in SETTINGS.items():
        out = tmp_path_factory.mktemp("evaluation")
        metrics = called(evaluate, out, **{"seed": 0, "data": world.data, **models, **SIZES, **changed})
        done[name] = metrics, pd.read_parquet(out / "completions.parquet")
    return done


def test_an_evaluation_returns_the_means_of_what_it_keeps(evaluations, world) -> None:
    for metrics, kept in evaluations.values():
        columns = {"prompt", "completion", "text", "finished", "reward", "gold", "well_formed", "kl", "k1"}
        assert set(kept.columns) == columns
        assert len(kept) == 40
        assert metrics["status"] == "ok"
        assert metrics["completions"] == 4
        for name in ("kl", "finished"):
            assert metrics[name] == pytest.approx(kept[name].mean())
        assert {name: metrics[name] for name in measures(kept)} == pytest.approx(measures(kept), abs=1e-12)
        rewards = score_with(world.reward, kept.text.tolist(), tokens=64) - zero_of(world.reward)
        np.testing.assert_allclose(kept.reward, rewards, atol=TOLERANCE)
        np.testing.assert_array_equal(kept.gold, gold_reward(kept.text))
        np.testing.assert_array_equal(kept.well_formed, well_formed(kept.text))


def test_the_kl_is_that_of_the_policy_to_the_reference(world, lively_policy, tmp_path: Path) -> None:
    sft, codec = load_policy(world.sft)
    policy = lively_policy(codec, 3).to(sft.device)
    save(tmp_path / "policy", policy, codec)
    models = {"policy": tmp_path / "policy", "reference": world.sft, "reward": world.reward}
    called(evaluate, tmp_path, seed=0, data=world.data, **models, **SIZES)
    drawn = sample(policy, codec, evaluation_prompts(world.data, codec, 10), k=4, max_new_tokens=16, seed=0)
    ids = drawn.prompt_ids.tolist(), drawn.completion_ids.tolist()
    kept = pd.read_parquet(tmp_path / "completions.parquet")
    log_ratios = sequence_log_probs(policy, *ids) - sequence_log_probs(sft, *ids)
    np.testing.assert_allclose(kept.k1, log_ratios, atol=1e-3)
    assert kept.kl.mean() > 1
    np.testing.assert_allclose(kept.kl, sequence_kl(policy, sft, ids[0], *ids)[0], rtol=1e-4)


def test_the_prompts_are_the_same_test_prompts_for_every_seed_and_setting(evaluations, world) -> None:
    _, tokenizer = load_policy(world.sft)
    test = list(world.data.load(0)["test"]["text"])
    expected = [text for text in prompts(test, tokenizer, n=10, shortest=5, longest=20, seed=0) for _ in range(4)]
    for _, kept in evaluations.values():
        assert kept.prompt.tolist() == expected
    assert evaluations["plain"][1].completion.tolist() != evaluations["other seed"][1].completion.tolist()


def test_the_reference_has_a_kl_only_with_a_prefix_or_a_bias(evaluations) -> None:
    for name, (metrics, kept) in evaluations.items():
        if name in ("plain", "other seed"):
            np.testing.assert_allclose(kept[["kl", "k1"]], 0, atol=1e-6)
        else:
            assert metrics["kl"] > 0.02
            assert (kept.kl > -1e-6).all()


def test_a_prompt_that_ends_in_a_blank_is_one_for_both(world, lively_policy, tmp_path: Path, monkeypatch) -> None:
    asked = ["it was a ", " the film had less than "]
    codec = train_tokenizer("bpe", ["it was a film", "the film had less than"], 270)
    assert [codec(text)["input_ids"] for text in asked] != [codec(text.strip())["input_ids"] for text in asked]
    save(tmp_path / "policy", lively_policy(codec, 3), codec)
    monkeypatch.setattr("alignkit.training.evaluate.evaluation_prompts", lambda *_: asked)
    models = {"policy": tmp_path / "policy", "reference": tmp_path / "policy", "reward": world.reward}
    called(evaluate, tmp_path, seed=0, data=world.data, **models, **SIZES)
    kept = pd.read_parquet(tmp_path / "completions.parquet")
    np.testing.assert_allclose(kept[["kl", "k1"]], 0, atol=1e-6)
    assert [text[: len(prompt)] for text, prompt in zip(kept.text, kept.prompt, strict=True)] == kept.prompt.tolist()


def test_a_prefix_stands_before_the_policys_prompt_and_in_no_text(evaluations, world) -> None:
    kept = evaluations["prefix"][1]
    assert all(text.startswith(prompt) for text, prompt in zip(kept.text, kept.prompt, strict=True))
    model, tokenizer = load_policy(world.sft)
    prefix = SETTINGS["prefix"]["prefix"]
    asked = [f"{prefix} {prompt}" for prompt in kept.prompt.drop_duplicates()]
    drawn = sample(model, tokenizer, asked, k=4, max_new_tokens=16, seed=0)
    assert drawn.completion.tolist() == kept.completion.tolist()
    own, plain = (tokenizer(texts.tolist())["input_ids"] for texts in (drawn.prompt, kept.prompt))
    k1 = np.subtract(*(sequence_log_probs(model, ids, drawn.completion_ids.tolist()) for ids in (own, plain)))
    np.testing.assert_allclose(kept.k1, k1, atol=1e-4)


def test_a_biased_word_is_written_more_often_and_a_penalised_one_less(evaluations) -> None:
    plain, biased = (" ".join(evaluations[name][1].completion).split() for name in ("plain", "bias"))
    assert biased.count("superb") > plain.count("superb") + 5
    assert biased.count("dull") <= plain.count("dull")


@pytest.mark.parametrize("broken", [float("nan"), 1e38], ids=["not a number", "finite, but the logits overflow"])
def test_broken_weights_are_a_diverged_policy_without_numbers(broken: float, world, tmp_path: Path) -> None:
    model, tokenizer = load_policy(world.sft)
    with torch.no_grad():
        model.transformer.ln_f.bias.fill_(broken)
        model.transformer.wte.weight.mul_(100)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "broken")
    models = {"policy": tmp_path / "broken", "reference": world.sft, "reward": world.reward}
    assert called(evaluate, tmp_path, seed=0, data=world.data, **models, **SIZES) == {"status": "diverged"}
    assert not (tmp_path / "completions.parquet").exists()


def test_rewards_are_given_with_the_truth_only_where_it_is_known(world) -> None:
    texts = generate_reviews(5, seed=3).text.tolist()
    for source in ("pocket", "reviews.csv"):
        found = with_rewards(pd.DataFrame({"text": texts}), world.reward, 64, truth_of(source))
        known = ("gold", "well_formed") if source == "pocket" else ()
        assert set(found.columns) == {"text", "reward", *known}


# Baselines


def test_best_of_keeps_the_highest_reward_of_each_n_completions() -> None:
    rewards = [1.0, 3, 2, 0, -1, -2, 7, 8]
    samples = pd.DataFrame({"prompt": ["x"] * 4 + ["y"] * 4, "completion": list("abcdefgh"), "reward": rewards})
    assert best_of(samples, 2).completion.tolist() == ["b", "c", "e", "h"]
    assert best_of(samples, 4).completion.tolist() == ["b", "h"]
    pd.testing.assert_frame_equal(best_of(samples, 1), samples)
    # Rows of a prompt need not stand together.
    mixed = samples.iloc[[0, 4, 1, 5, 2, 6, 3, 7]]
    assert sorted(best_of(mixed, 2).completion) == ["b", "c", "e", "h"]


def test_best_of_refuses_completions_that_n_does_not_divide() -> None:
    samples = pd.DataFrame({"prompt": list("xxxxx"), "completion": list("abcde"), "reward": range(5)})
    with pytest.raises(ValueError, match="best of 2: 2 must divide"):
        best_of(samples, 2)


def test_the_best_of_more_has_a_higher_mean_reward(evaluations) -> None:
    kept = evaluations["plain"][1]
    one, two, four = (best_of(kept, n) for n in (1, 2, 4))
    assert [len(table) for table in (one, two, four)] == [40, 20, 10]
    assert one.reward.mean() < two.reward.mean() < four.reward.mean()
    np.testing.assert_array_equal(four.reward, kept.groupby("prompt", sort=False).reward.max())


def test_guided_search_gives_one_text_a_prompt_above_plain_sampling(evaluations, world, tmp_path: Path) -> None:
    # The last step is a shorter one: 14 is no multiple of 8.
    search = {"beams": 2, "tries": 4, "chunk": 8, "n_prompts": 10, "max_new_tokens": 14, "reward_tokens": 64}
    models = {"policy": world.sft, "reward": world.reward}
    metrics = called(guided_search, tmp_path, seed=0, data=world.data, **models, **search)
    kept = pd.read_parquet(tmp_path / "completions.parquet")
    plain = evaluations["plain"][1]
    assert kept.prompt.tolist() == plain.prompt.drop_duplicates().tolist()
    assert all(text == f"{p} {c}".strip() for text, p, c in zip(kept.text, kept.prompt, kept.completion, strict=True))
    assert (kept.completion.str.split().map(len) <= 14).all()
    assert (metrics["status"], metrics["completions"]) == ("ok", 1)
    assert "kl" not in metrics
    assert 10 * 14 < metrics["tokens_generated"] <= 10 * (4 + 2 * 4) * 8
    assert metrics["reward"] == pytest.approx(kept.reward.mean())
    rewards = score_with(world.reward, kept.text.tolist(), tokens=64) - zero_of(world.reward)
    np.testing.assert_allclose(kept.reward, rewards, atol=TOLERANCE)
    assert metrics["reward"] > best_of(plain, 2).reward.mean()


def test_each_step_of_guided_search_has_chances_of_its_own(world, tmp_path: Path, monkeypatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(baselines, "sample", lambda *a, **s: seeds.append(s["seed"]) or sample(*a, **s))
    search = {"beams": 2, "tries": 2, "chunk": 4, "n_prompts": 4, "max_new_tokens": 8, "reward_tokens": 64}
    called(guided_search, tmp_path, seed=0, data=world.data, policy=world.sft, reward=world.reward, **search)
    assert len(seeds) == len(set(seeds)) == 2


def test_positive_words_are_words_of_praise_in_the_pocket_world(world) -> None:
    _, tokenizer = load_policy(world.sft)
    data = Reviews("pocket", 4000, 100, 100)
    words = positive_words(data, tokenizer, 12, 1.5)
    assert len(words) == 12
    assert set(words.values()) == {1.5}
    praise, blame = (
        {word for said, (valence, _) in (ADJECTIVES | VERDICTS).items() if valence == sign for word in said.split()}
        for sign in (1, -1)
    )
    assert set(words) <= praise - blame
    # Every one of them stands in more positive than negative reviews.
    train = data.load(0)["train"].to_pandas()
    for word in words:
        assert train.label[train.text.str.split().map(lambda text, w=word: w in text)].mean() > 0.7, word


def test_fine_tuning_on_praise_makes_praise_likelier(world, tmp_path: Path) -> None:
    metrics = called(
        train_on_positive,
        tmp_path,
        seed=0,
        data=world.data,
        policy=world.sft,
        epochs=2,
        **world.sft_training | {"lr": 3e-3},
    )
    assert metrics["status"] == "ok"
    test = world.data.load(0)["test"].to_pandas()
    change = {}
    for label, texts in test.groupby("label").text:
        before, after = (
            cross_entropy(*load_policy(folder), texts.tolist(), tokens=64) for folder in (world.sft, tmp_path)
        )
        change[label] = after - before
    assert change[1] < -0.01
    assert change[0] > change[1] + 0.02
    train = world.data.load(0)["train"].to_pandas()
    lengths = train.text[train.label == 1].str.split().map(len).clip(upper=64)
    assert metrics["tokens_trained"] == 2 * lengths.iloc[50:].sum()
    assert (tmp_path / "history.csv").exists()
