"""KL estimates against the KL of a policy whose sequences can all be listed."""

import math
from itertools import product

import pytest
import torch

from alignkit.kl import kl_estimates

VOCABULARY, LENGTH = 4, 3


@pytest.fixture(scope="module")
def listed():
    """All sequences with their probabilities under the policy and the estimates for each."""
    torch.manual_seed(0)
    # One table of logits for each prefix: tokens depend on all that came before.
    tables = {
        prefix: torch.randn(2, VOCABULARY, dtype=torch.float64)
        for length in range(LENGTH)
        for prefix in product(range(VOCABULARY), repeat=length)
    }
    sequences = list(product(range(VOCABULARY), repeat=LENGTH))
    logits = torch.stack([torch.stack([tables[s[:t]] for t in range(LENGTH)]) for s in sequences])
    tokens = torch.tensor(sequences)
    log_probs = torch.log_softmax(logits, dim=-1).gather(3, tokens[:, :, None, None].expand(-1, -1, 2, 1)).squeeze(3)
    log_pi, log_ref = log_probs.sum(dim=1).unbind(1)
    exact = (log_pi.exp() * (log_pi - log_ref)).sum()
    estimates = kl_estimates(logits[:, :, 0], logits[:, :, 1], tokens, torch.ones_like(tokens))
    return log_pi.exp(), exact, estimates


@pytest.mark.parametrize("name", ["k1", "k3", "exact"])
def test_an_unbiased_estimate_has_the_enumerated_kl_as_its_mean(listed, name: str):
    probability, exact, estimates = listed
    assert (probability * estimates[name]).sum().item() == pytest.approx(exact.item(), abs=1e-6)


def test_k2_is_biased_and_k3_and_the_exact_one_are_never_negative(listed):
    probability, exact, estimates = listed
    assert abs((probability * estimates["k2"]).sum().item() - exact.item()) > 0.01
    assert (estimates["k1"] < 0).any()
    assert (estimates["k3"] >= 0).all()
    assert (estimates["exact"] >= 0).all()


def test_the_estimates_of_one_token_are_schulmans():
    policy, reference = (torch.tensor([[row]]).double() for row in ([0.3, -1, 2], [1.0, 0, 0.5]))
    ratio = (policy.log_softmax(-1) - reference.log_softmax(-1))[0, 0, 2].item()
    found = kl_estimates(policy, reference, torch.tensor([[2]]), torch.ones(1, 1))
    expected = {"k1": ratio, "k2": ratio**2 / 2, "k3": math.exp(-ratio) - 1 + ratio}
    assert {name: found[name].item() for name in expected} == pytest.approx(expected, abs=1e-5)


def test_masked_tokens_do_not_count():
    logits, others, tokens = torch.randn(2, 5, 7), torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    full = kl_estimates(logits[:1, 2:], others[:1, 2:], tokens[:1, 2:], mask[:1, 2:])
    for name, value in kl_estimates(logits, others, tokens, mask).items():
        assert value.shape == (2,)
        assert value[0].item() == pytest.approx(full[name].item(), rel=1e-6)


def test_every_estimate_is_zero_for_equal_policies():
    logits, tokens = torch.randn(3, 4, 6), torch.randint(6, (3, 4))
    for value in kl_estimates(logits, logits, tokens, torch.ones(3, 4)).values():
        assert value.tolist() == [0, 0, 0]
