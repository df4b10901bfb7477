"""Token advantages against the exact gradient of E[r] - β KL, on policies whose texts can all be listed."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import GPT2LMHeadModel

from alignkit.policy_gradient import token_advantages, token_terms
from alignkit.sampling import full_texts, sample
from alignkit.training.credit import sentence_starts, values_before
from alignkit.world.models import load_policy, train_tokenizer

BETA, PROMPT, STOP = 0.3, [1, 3, 2], 2


@pytest.fixture(scope="module")
def listed(lively_policy) -> tuple[GPT2LMHeadModel, pd.DataFrame, dict[str, torch.Tensor], torch.Tensor]:
    """A policy over four tokens, all of its completions of at most three, their terms, and random rewards."""
    codec = train_tokenizer("word", ["a"], 4)
    policy, anchor = lively_policy(codec, 0).double(), lively_policy(codec, 1).double()
    end = policy.config.eos_token_id
    every = [list(ids) for n in (1, 2, 3) for ids in product(range(4), repeat=n)]
    kept = [ids for ids in every if end not in ids[:-1] and (len(ids) == 3 or ids[-1] == end)]
    samples = pd.DataFrame({"prompt_ids": [PROMPT] * len(kept), "completion_ids": kept})
    rewards = 1 + torch.randn(len(kept), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return policy, samples, token_terms(policy, anchor, samples, differentiable_kl=True), rewards


def value_of(ids: list[int]) -> float:
    """Some number that depends on the text so far and on nothing else."""
    return float(np.random.default_rng(ids).normal())


def mean_gradient(listed, k: int, values: torch.Tensor | None, exact_kl: bool) -> tuple[torch.Tensor, ...]:
    """Of the objective, by the mean over all draws of two completions of one prompt."""
    policy, _, terms, rewards = listed
    chance = terms["own"].detach().sum(dim=1).double().exp()
    weights = torch.zeros_like(terms["own"], dtype=torch.float64)
    for pair in product(range(len(rewards)), repeat=2):
        some = list(pair)
        here = {name: term[some] for name, term in terms.items()}
        gains = token_advantages(
            rewards[some], here, beta=BETA, k=k, values=None if values is None else values[some], exact_kl=exact_kl
        )
        weights.index_add_(0, torch.tensor(some), chance[some].prod() * gains / 2)
    objective = (weights * terms["own"].double()).sum()
    if exact_kl:
        objective = objective - BETA * (chance * terms["exact"].double().sum(dim=1)).sum()
    return torch.autograd.grad(objective, list(policy.parameters()), retain_graph=True)


def exact_gradient(listed) -> tuple[torch.Tensor, ...]:
    policy, _, terms, rewards = listed
    own = terms["own"].double().sum(dim=1)
    log_ratio = own - (own.detach() - terms["k1"].double().sum(dim=1))
    objective = (own.exp() * (rewards - BETA * log_ratio)).sum()
    return torch.autograd.grad(objective, list(policy.parameters()), retain_graph=True)


def test_the_listed_completions_have_probability_one(listed):
    assert float(listed[2]["own"].detach().sum(dim=1).exp().sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("exact_kl", [False, True])
@pytest.mark.parametrize("baseline", ["rloo", "sentence"])
def test_the_mean_gradient_over_all_draws_is_that_of_reward_less_beta_kl(listed, baseline: str, exact_kl: bool):
    samples, values = listed[1], None
    if baseline == "sentence":
        starts = sentence_starts(samples, {STOP})
        values = torch.zeros(listed[2]["own"].shape, dtype=torch.float64)
        for row, (ids, here) in enumerate(zip(samples.completion_ids, starts, strict=True)):
            for start in here:
                values[row, start:] = value_of(PROMPT + ids[:start])
    found = mean_gradient(listed, 2 if values is None else 1, values, exact_kl)
    exact = exact_gradient(listed)
    assert max(gradient.abs().max() for gradient in exact) > 0.01
    for gradient, expected in zip(found, exact, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-6)


def test_terms_stand_at_their_tokens_and_are_zero_after_the_end(world, lively_policy):
    model, tokenizer = load_policy(world.sft)
    other = lively_policy(tokenizer, 3)
    samples = sample(model, tokenizer, ["the film", "a dull story about", "i"], k=3, max_new_tokens=12, seed=0)
    terms = token_terms(model, other, samples)
    for row, (prompt, completion) in enumerate(zip(samples.prompt_ids, samples.completion_ids, strict=True)):
        own, ref = (
            m(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            for m in (model, other)
        )
        n, at = len(completion), torch.tensor(completion)[:, None]
        ratio = own - ref
        alone = {"own": own, "k1": ratio, "exact": (own.exp() * ratio).sum(dim=-1, keepdim=True).expand_as(own)}
        for name, expected in alone.items():
            torch.testing.assert_close(terms[name][row, :n], expected.gather(1, at)[:, 0], rtol=1e-5, atol=1e-4)
            assert not terms[name][row, n:].any()
        assert terms["mask"][row].tolist() == [1] * n + [0] * (terms["mask"].shape[1] - n)


def test_a_sentence_is_worth_what_it_adds_to_the_text_before_it():
    samples = pd.DataFrame({"prompt_ids": [[5]], "completion_ids": [[6, 9, 7, 8, 9, 1]]})
    starts = sentence_starts(samples, {9})
    assert starts == [[0, 2, 5]]

    read = lambda texts: torch.tensor([float(len(t.split())) for t in texts])  # noqa: E731
    codec = train_tokenizer("word", ["a b c d e f g h i j"], 20)
    values = values_before(samples, starts, codec, read)
    assert values.tolist() == [[1, 1, 3, 3, 3, 6]]

    two = pd.DataFrame({"prompt_ids": [[5], [5, 6]], "completion_ids": [[6, 9, 7], [7, 8]]})
    values = values_before(two, [[0, 2], [0]], codec, read)
    assert (values[0].tolist(), values[1, :2].tolist()) == ([1, 1, 3], [2, 2])


def test_a_tokens_credit_is_what_follows_it_less_the_mean_of_the_others():
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]])
    k1 = torch.tensor([[0.1, 0.2, 0.3], [0.4, 0.5, 0], [0.6, 0, 0]])
    values = torch.tensor([[1.0, 1, 3], [0, 4, 4], [2, 2, 2]], dtype=torch.float64)
    rewards = torch.tensor([2.0, 5, 1]).double()
    found = token_advantages(rewards, {"k1": k1, "mask": mask}, beta=0.5, values=values)
    own = [[2 - 1 - 0.3, 2 - 1 - 0.25, 2 - 3 - 0.15], [5 - 0 - 0.45, 5 - 4 - 0.25, 0], [1 - 2 - 0.3, 0, 0]]
    total = sum(row[0] for row in own)
    first = [row[0] - (total - row[0]) / 2 for row in own]
    expected = [[first[0], own[0][1] - own[1][1], own[0][2]], [first[1], own[1][1] - own[0][1], 0], [first[2], 0, 0]]
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=0, atol=1e-6)


def test_the_text_before_a_sentence_keeps_its_unknown_words():
    codec = train_tokenizer("word", ["a b c"], 20)
    first, unknown, end = codec.convert_tokens_to_ids("a"), codec.unk_token_id, codec.eos_token_id
    samples = pd.DataFrame({"prompt_ids": [[first]], "completion_ids": [[unknown, first, end]]})
    texts: list[str] = []

    def read(some: list[str]) -> torch.Tensor:
        texts.extend(some)
        return torch.zeros(len(some))

    values_before(samples, [[0, 3]], codec, read)
    assert texts[1] == full_texts(samples, codec)[0]
    assert codec.unk_token in texts[1]
