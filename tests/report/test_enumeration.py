"""Policies whose sequences can all be listed."""

import math

import pytest
import torch

from alignkit.report.warp import estimator_table, gradient_table, random_policy, step_log_probs, tilted_optimum

REFERENCE = random_policy(4, 3, seed=0)
OTHER = random_policy(4, 3, seed=1)


def test_a_random_policy_sums_to_one_and_repeats_with_its_seed():
    assert REFERENCE.shape == (4, 4, 4)
    assert REFERENCE.sum().item() == pytest.approx(1)
    assert torch.equal(REFERENCE, random_policy(4, 3, seed=0))


def test_steps_along_a_sequence_multiply_to_its_probability():
    log_probs = step_log_probs(REFERENCE)
    tokens = torch.cartesian_prod(*[torch.arange(4)] * 3)
    chosen = log_probs.gather(2, tokens[..., None]).squeeze(2).sum(dim=1)
    assert torch.allclose(chosen, REFERENCE.log().flatten())
    assert torch.allclose(log_probs.exp().sum(dim=-1), torch.ones(64, 3, dtype=torch.float64))


def test_the_tilt_is_the_best_policy_of_the_regularised_objective():
    reward, beta = torch.randn(4, 4, 4, dtype=torch.float64), 0.7
    best = tilted_optimum(REFERENCE, reward, beta)

    def objective(policy: torch.Tensor) -> float:
        return ((policy * reward).sum() - beta * (policy * (policy / REFERENCE).log()).sum()).item()

    log_z = (REFERENCE * (reward / beta).exp()).sum().log().item()
    assert objective(best) == pytest.approx(beta * log_z)
    assert all(objective(best) > objective(policy) for policy in (REFERENCE, OTHER, 0.9 * best + 0.1 * OTHER))


def test_k1_k3_and_the_exact_estimate_are_unbiased_and_k2_is_not():
    table = estimator_table(OTHER, REFERENCE).set_index("estimate")
    kl = (OTHER * (OTHER / REFERENCE).log()).sum().item()
    for name in ("k1", "k3", "exact"):
        assert table.loc[name, "mean"] == pytest.approx(kl, abs=1e-6)
        assert table.loc[name, "bias"] == pytest.approx(0, abs=1e-6)
    assert abs(table.loc["k2", "bias"]) > 0.01


def test_k1_is_quieter_than_the_exact_estimate_at_a_sharp_optimum_only():
    mild = estimator_table(tilted_optimum(REFERENCE, OTHER.log(), 3.0), REFERENCE)
    mild = mild.set_index("estimate")["standard deviation"]
    assert mild["exact"] < mild["k1"] / 2
    prize = torch.zeros_like(REFERENCE)
    prize[0, 1, 2] = prize[3, 2, 1] = 3.0
    sharp = estimator_table(tilted_optimum(REFERENCE, prize, 0.1), REFERENCE)
    sharp = sharp.set_index("estimate")["standard deviation"]
    assert sharp["k1"] < 0.01 < sharp["exact"]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_baseline_with_the_sample_in_it_shrinks_the_gradient(k: int):
    logits, rewards = torch.randn(2, 4, dtype=torch.float64)
    if k == 1:
        with pytest.raises(ValueError, match="rloo"):
            gradient_table(logits, rewards, k)
        return
    table = gradient_table(logits, rewards, k).set_index("baseline")
    assert table["mean / exact"].tolist() == pytest.approx([1, (k - 1) / k, 1], abs=1e-9)
    assert table.bias["none"] == pytest.approx(0, abs=1e-9)
    assert table.bias["rloo"] == pytest.approx(0, abs=1e-9)
    assert all(math.isfinite(sd) for sd in table["standard deviation"])
