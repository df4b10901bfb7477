"""The policy gradient against enumeration and against TRL."""

import inspect
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel, PreTrainedTokenizerBase
from trl import RLOOConfig, RLOOTrainer

from alignkit.faults import UserFault
from alignkit.pocket import generate_reviews
from alignkit.policy_gradient import advantages, completion_sums, reinforce_loss
from alignkit.sampling import sample, sequence_log_probs
from alignkit.training.deviations import mean_with_prompt
from alignkit.world.models import train_tokenizer, trainer_arguments

TOLERANCE = 1e-5
TEXTS = generate_reviews(300, seed=0).text.tolist()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer("word", TEXTS, 400)


@pytest.fixture(scope="module")
def policy(tokenizer, lively_policy) -> GPT2LMHeadModel:
    return lively_policy(tokenizer, seed=0)


@pytest.fixture(scope="module")
def anchor(tokenizer, lively_policy) -> GPT2LMHeadModel:
    return lively_policy(tokenizer, seed=1)


@pytest.fixture(scope="module")
def samples(tokenizer) -> pd.DataFrame:
    """Prompts and completions of many lengths."""
    rows = tokenizer(TEXTS[:14])["input_ids"]
    return frame([row[: 1 + i % 7] for i, row in enumerate(rows)], [row[9 : 10 + i % 9] for i, row in enumerate(rows)])


def frame(prompt_ids: list[list[int]], completion_ids: list[list[int]]) -> pd.DataFrame:
    return pd.DataFrame({"prompt_ids": prompt_ids, "completion_ids": completion_ids})


# The gradient, where all completions can be listed


PROMPTS = [[3], [1, 3, 2, 3, 3]]
BETA = 0.3


@pytest.fixture(scope="module")
def tiny(lively_policy) -> tuple[GPT2LMHeadModel, GPT2LMHeadModel]:
    """Policy and anchor over four tokens, one of which ends a text, in float64 as far as their logits."""
    codec = train_tokenizer("word", ["a"], 4)
    assert len(codec) == 4
    return tuple(lively_policy(codec, seed).double() for seed in (0, 1))


def outcomes(end: int, length: int) -> list[list[int]]:
    """Every completion of at most this length: cut after the first end token."""
    every = [list(ids) for n in range(1, length + 1) for ids in product(range(4), repeat=n)]
    return [ids for ids in every if end not in ids[:-1] and (len(ids) == length or ids[-1] == end)]


def log_probs_alone(model: GPT2LMHeadModel, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """log π(completion | prompt) from GPT-2 itself: one row, no padding; differentiable, float64."""
    logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, dim=-1).gather(1, torch.tensor(completion)[:, None]).sum()


class Listed:
    """All completions of all prompts up to a length, with random rewards, and the exact gradient of the objective."""

    def __init__(self, tiny: tuple[GPT2LMHeadModel, GPT2LMHeadModel], length: int) -> None:
        self.policy, self.anchor = tiny
        self.weights = list(self.policy.parameters())
        self.completions = outcomes(self.policy.config.eos_token_id, length)
        shape = len(PROMPTS), len(self.completions)
        self.rewards = 1 + torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        own, other = (
            torch.stack([log_probs_alone(model, p, c) for p in PROMPTS for c in self.completions]).view(shape)
            for model in tiny
        )
        self.probability = own.exp().detach()
        objective = (own.exp() * (self.rewards - BETA * (own - other.detach()))).sum(dim=1).mean()
        self.exact = torch.autograd.grad(objective, self.weights)

    def by_reinforce(self, baseline: str, k: int) -> tuple[torch.Tensor, ...]:
        """Minus the loss's gradient, its mean over all draws of k completions of each prompt."""
        rows = [(p, c) for p in PROMPTS for c in self.completions]
        log_probs, against = completion_sums(self.policy, self.anchor, frame(*map(list, zip(*rows, strict=True))))
        shape = self.rewards.shape
        penalised = self.rewards - BETA * against["k1"].double().view(shape)
        draws = torch.tensor(list(product(range(shape[1]), repeat=k)))
        total = torch.zeros((), dtype=torch.float64)
        for chance, reward, own in zip(self.probability, penalised, log_probs.view(shape), strict=True):
            gain = advantages(reward[draws], baseline)
            losses = torch.stack([reinforce_loss(own[d], g.to(own)) for d, g in zip(draws, gain, strict=True)])
            total = total - (chance[draws].prod(dim=1) * losses.double()).sum() / len(PROMPTS)
        return torch.autograd.grad(total, self.weights)


@pytest.fixture(scope="module")
def listed(tiny) -> dict[int, Listed]:
    """By the length of the longest completion."""
    return {length: Listed(tiny, length) for length in (1, 2, 3)}


def test_the_listed_completions_have_probability_one_and_gradients(listed) -> None:
    assert [len(some.completions) for some in listed.values()] == [4, 13, 40]
    for some in listed.values():
        torch.testing.assert_close(some.probability.sum(dim=1), torch.ones(2).double())
        assert max(gradient.abs().max() for gradient in some.exact) > 0.05


@pytest.mark.parametrize(
    ("baseline", "k", "length", "share"),
    [
        ("none", 1, 3, 1),
        ("none", 2, 3, 1),
        ("rloo", 2, 3, 1),
        ("rloo", 3, 2, 1),
        ("rloo", 4, 1, 1),
        ("mean", 2, 3, 1 / 2),
        ("mean", 3, 2, 2 / 3),
    ],
)
def test_the_mean_gradient_is_that_of_reward_less_beta_kl_or_its_share(
    listed, baseline: str, k: int, length: int, share: float
) -> None:
    found = listed[length].by_reinforce(baseline, k)
    for gradient, exact in zip(found, listed[length].exact, strict=True):
        torch.testing.assert_close(gradient, share * exact, rtol=0, atol=1e-6)


def test_single_tokens_are_summed_over_a_completion() -> None:
    log_probs, gain = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]]), torch.tensor([[2.0, 1.0], [1.0, 0.0]])
    assert reinforce_loss(log_probs, gain).item() == pytest.approx((2 + 2 + 3) / 2)


def test_no_gradient_flows_through_the_advantage() -> None:
    log_probs, gain = (torch.tensor(v, requires_grad=True) for v in ([-1.0, -2.0], [3.0, 5.0]))
    reinforce_loss(log_probs, gain).backward()
    assert gain.grad is None
    assert log_probs.grad.tolist() == [-1.5, -2.5]


# Advantages


REWARDS = st.tuples(st.integers(1, 4), st.integers(2, 6)).flatmap(
    lambda shape: st.lists(
        st.lists(st.floats(-100, 100), min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
    )
)


@given(REWARDS)
def test_rloo_subtracts_the_mean_of_the_others(values: list[list[float]]) -> None:
    rewards = torch.tensor(values, dtype=torch.float64)
    k = rewards.shape[1]
    found = advantages(rewards, "rloo")
    by_hand = [[row[i] - (sum(row) - row[i]) / (k - 1) for i in range(k)] for row in values]
    torch.testing.assert_close(found, torch.tensor(by_hand, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(found, k / (k - 1) * advantages(rewards, "mean"), rtol=0, atol=1e-9)


@given(REWARDS, st.floats(-100, 100))
def test_what_is_added_to_all_rewards_of_a_prompt_changes_no_advantage(values: list[list[float]], added: float) -> None:
    rewards = torch.tensor(values, dtype=torch.float64)
    shifted = rewards + added * torch.arange(1, len(values) + 1)[:, None]
    for baseline in ("mean", "rloo"):
        found = advantages(shifted, baseline)
        torch.testing.assert_close(found, advantages(rewards, baseline), rtol=0, atol=1e-9)
        torch.testing.assert_close(found.sum(dim=1), torch.zeros(len(values)).double(), rtol=0, atol=1e-9)


def test_without_a_baseline_rewards_are_the_advantages() -> None:
    rewards = torch.tensor([[2.0], [-3.0]])
    assert torch.equal(advantages(rewards, "none"), rewards)
    assert advantages(rewards, "mean").tolist() == [[0], [0]]


@pytest.mark.parametrize(("shape", "baseline", "named"), [((3, 1), "rloo", "1 sample"), ((3, 2), "median", "'median'")])
def test_a_baseline_that_cannot_be_had_is_refused_in_one_line(shape: tuple, baseline: str, named: str) -> None:
    with pytest.raises(UserFault, match=f"baseline: .*{named}.*allowed: ") as refused:
        advantages(torch.zeros(shape), baseline)
    assert "\n" not in str(refused.value)


# Against TRL


@pytest.fixture(scope="module")
def trl_trainer(policy, tokenizer, tmp_path_factory) -> tuple[RLOOTrainer, list[float]]:
    """TRL's trainer of the policy, and the random rewards that it has given so far."""
    given: list[float] = []
    chance = np.random.default_rng(0)

    def reward(completions: list[str], **_: Any) -> list[float]:
        given.extend(chance.normal(size=len(completions)))
        return given[-len(completions) :]

    arguments = trainer_arguments(tmp_path_factory.mktemp("trl"), seed=0, epochs=1, batch=8, lr=1e-3, reports=1)
    plain = {"use_cpu": True, "bf16": False, "fp16": False, "eval_strategy": "no", "eval_on_start": False}
    config = RLOOConfig(**arguments | plain, num_generations=4, max_completion_length=6, beta=0.0)
    with torch.random.fork_rng():
        trainer = RLOOTrainer(
            model=policy, reward_funcs=reward, args=config, processing_class=tokenizer,
            train_dataset=Dataset.from_dict({"prompt": TEXTS[:4]}),
        )  # fmt: skip
    return trainer, given


def test_trl_has_the_methods_that_are_compared() -> None:
    def parameters(name: str) -> list[str]:
        return list(inspect.signature(getattr(RLOOTrainer, name)).parameters)

    assert parameters("_generate_and_score_completions") == ["self", "inputs"]
    log_probs = ["self", "model", "input_ids", "attention_mask", "logits_to_keep"]
    assert parameters("_get_per_token_logps_and_entropies")[:5] == log_probs


def test_rloo_advantages_are_those_of_trl(trl_trainer) -> None:
    trainer, given = trl_trainer
    trainer.model.train()  # in evaluation TRL asks for another number of completions
    given.clear()
    asked = [{"prompt": " ".join(text.split()[:4])} for text in TEXTS[:3] for _ in range(4)]
    with torch.random.fork_rng():
        theirs = trainer._generate_and_score_completions(asked)["advantages"]
    trainer.model.eval()
    assert len(given) == len(asked) == len(theirs)
    ours = advantages(torch.tensor(given, dtype=torch.float64).view(-1, 4), "rloo").flatten()
    torch.testing.assert_close(theirs.double().cpu(), ours, rtol=0, atol=1e-6)
    assert not torch.equal(theirs.sign().cpu(), torch.tensor(given).sign())


def by_trl(trainer: RLOOTrainer, prompt: list[int], completion: list[int], pads: int) -> float:
    ids = torch.tensor([[trainer.processing_class.pad_token_id] * pads + prompt + completion])
    mask = torch.tensor([[0] * pads + [1] * len(prompt + completion)])
    with torch.no_grad():
        return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, len(completion))[0].sum().item()


@pytest.mark.parametrize("pads", range(9))
def test_padding_on_the_left_changes_the_log_probs_of_trl_and_not_ours(
    trl_trainer, policy, anchor, tokenizer, pads: int
) -> None:
    row, other = tokenizer(TEXTS[:2])["input_ids"]
    prompt, completion = row[:4], row[4:9]
    alone = log_probs_alone(policy, prompt, completion).item()
    ratio = alone - log_probs_alone(anchor, prompt, completion).item()
    # Every second prompt is longer, so each part of the batch is padded.
    longer = (prompt + other)[: 4 + pads]
    found, against = completion_sums(policy, anchor, frame([prompt, longer] * 4, [completion] * 8))
    np.testing.assert_allclose(found.detach()[::2], alone, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(against["k1"][::2], ratio, rtol=0, atol=TOLERANCE)
    apart = abs(by_trl(trl_trainer[0], prompt, completion, pads) - alone)
    # TRL passes no positions, so GPT-2 counts the padding as words.
    assert apart > 1e-2 if pads else apart < TOLERANCE


# The sums over a completion


def test_log_probs_of_completions_are_those_of_sampling(policy, anchor, samples) -> None:
    expected = sequence_log_probs(policy, samples.prompt_ids.tolist(), samples.completion_ids.tolist())
    found, against = completion_sums(policy, anchor, samples)
    assert expected.std() > 1
    np.testing.assert_allclose(found.detach(), expected, rtol=0, atol=TOLERANCE)
    other = sequence_log_probs(anchor, samples.prompt_ids.tolist(), samples.completion_ids.tolist())
    np.testing.assert_allclose(against["k1"], expected - other, rtol=0, atol=TOLERANCE)


@torch.no_grad()
def test_entropy_and_exact_kl_are_those_by_hand(policy, anchor, samples) -> None:
    _, against = completion_sums(policy, anchor, samples)
    for i, (prompt, completion) in samples.iterrows():
        own, other = (
            model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].double().log_softmax(-1)
            for model in (policy, anchor)
        )
        entropy = -(own.exp() * own).sum() / len(completion)
        assert against["entropy"][i].item() == pytest.approx(entropy.item(), abs=TOLERANCE)
        assert against["exact"][i].item() == pytest.approx((own.exp() * (own - other)).sum().item(), rel=TOLERANCE)


@pytest.mark.parametrize("n", [1, 2, 5, 14])
def test_rows_keep_their_order(policy, anchor, samples, n: int) -> None:
    own, against = completion_sums(policy, anchor, samples)
    order = np.random.default_rng(0).permutation(len(samples))[:n]
    shuffled, among = completion_sums(policy, anchor, samples.iloc[order].reset_index(drop=True))
    assert (own.diff().abs() > 1e-3).all()
    torch.testing.assert_close(shuffled, own[order], rtol=0, atol=TOLERANCE)
    for name, values in against.items():
        torch.testing.assert_close(among[name], values[order], rtol=TOLERANCE, atol=TOLERANCE, msg=name)


def test_a_policy_has_no_kl_to_itself(policy, samples) -> None:
    _, against = completion_sums(policy, policy, samples)
    for name in ("k1", "k2", "k3", "exact"):
        assert against[name].tolist() == [0] * len(samples)
    assert against["entropy"].min() > 0


def test_gradient_flows_through_the_log_probs_only_and_only_to_the_policy(policy, anchor, samples) -> None:
    own, against = completion_sums(policy, anchor, samples)
    assert own.requires_grad
    assert not any(values.requires_grad for values in against.values())
    own.sum().backward()
    assert policy.lm_head.weight.grad.abs().max() > 0
    assert all(weight.grad is None for weight in anchor.parameters())
    policy.zero_grad()


# What an earlier report did


def test_greedy_gives_k_times_the_most_likely_tokens_and_draws_nothing(policy, tokenizer) -> None:
    texts = [" ".join(text.split()[:n]) for text, n in zip(TEXTS, (3, 6, 1), strict=False)]
    before = torch.get_rng_state()
    found, other = (sample(policy, tokenizer, texts, k=3, max_new_tokens=5, seed=seed, greedy=True) for seed in (0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    pd.testing.assert_frame_equal(found, other)
    assert found.prompt_ids.tolist() == [ids for ids in tokenizer(texts)["input_ids"] for _ in range(3)]
    for start in (0, 3, 6):
        prompt, completion = found.prompt_ids[start], []
        while len(completion) < 5 and tokenizer.eos_token_id not in completion:
            completion.append(policy(torch.tensor([prompt + completion])).logits[0, -1].argmax().item())
        assert found.completion_ids[start : start + 3].tolist() == [completion] * 3
        assert found.completion[start : start + 3].nunique() == 1


def test_greedy_ends_with_the_first_end_token(lively_policy) -> None:
    codec = train_tokenizer("word", ["a"], 4)
    model = lively_policy(codec, seed=0)
    with torch.no_grad():  # whatever was said, the end comes next
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(model.lm_head.weight[codec.eos_token_id])
    found = sample(model, codec, ["a", "a a a"], k=2, max_new_tokens=4, seed=0, greedy=True)
    assert found.completion_ids.tolist() == [[codec.eos_token_id]] * 4


@torch.no_grad()
def test_mean_with_prompt_is_the_mean_over_prompt_and_completion_by_hand(policy, anchor, samples) -> None:
    terms = mean_with_prompt(policy, anchor, samples, {})
    assert terms["mask"].tolist() == [[1]] * len(samples)
    for i, (prompt, completion) in samples.iterrows():
        row = prompt + completion
        by_hand, other = (log_probs_alone(m, row[:1], row[1:]).item() / (len(row) - 1) for m in (policy, anchor))
        assert terms["own"][i].item() == pytest.approx(by_hand, abs=TOLERANCE)
        assert terms["k1"][i].item() == pytest.approx(by_hand - other, abs=TOLERANCE)


def test_only_the_log_probs_of_mean_with_prompt_can_be_differentiated(policy, anchor, samples) -> None:
    terms = mean_with_prompt(policy, anchor, samples, {})
    assert {name: values.requires_grad for name, values in terms.items()} == {"own": True, "k1": False, "mask": False}
