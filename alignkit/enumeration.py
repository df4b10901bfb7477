"""Policies whose sequences can all be listed: what estimates of a KL and of a gradient are worth, without sampling.

A policy here is the tensor of its sequence probabilities, shape (vocabulary,) * length.
"""

from itertools import product

import pandas as pd
import torch

from alignkit.kl import kl_estimates
from alignkit.policy_gradient import BASELINES, advantages


def random_policy(vocabulary: int, length: int, seed: int) -> torch.Tensor:
    """Probabilities of all sequences under random logits, each step depending on all tokens before; float64."""
    random = torch.Generator().manual_seed(seed)
    probabilities = torch.ones((), dtype=torch.float64)
    for _ in range(length):
        logits = torch.randn(*probabilities.shape, vocabulary, generator=random, dtype=torch.float64)
        probabilities = probabilities[..., None] * logits.softmax(dim=-1)
    return probabilities


def tilted(reference: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """The optimum of E[r] - β KL, π ∝ π_ref exp(r/β); reward has the shape of the reference."""
    return (reference.log() + reward / beta).flatten().softmax(dim=0).view_as(reference)


def step_log_probs(policy: torch.Tensor) -> torch.Tensor:
    """log p(next token | prefix) along every sequence: (sequences, length, vocabulary)."""
    length, vocabulary = policy.ndim, policy.shape[0]
    steps = []
    for t in range(length):
        prefixes = policy.flatten(start_dim=t + 1).sum(dim=-1) if t + 1 < length else policy
        following = (prefixes / prefixes.sum(dim=-1, keepdim=True)).log()
        here = following.view(*[vocabulary] * t, *[1] * (length - t), vocabulary)
        steps.append(here.expand(*[vocabulary] * length, vocabulary).reshape(-1, vocabulary))
    return torch.stack(steps, dim=1)


def estimator_table(policy: torch.Tensor, reference: torch.Tensor) -> pd.DataFrame:
    """Mean, bias and standard deviation of each estimate in `kl_estimates` from one sequence of the policy, in nats."""
    tokens = torch.tensor(list(product(range(policy.shape[0]), repeat=policy.ndim)))
    estimates = kl_estimates(step_log_probs(policy), step_log_probs(reference), tokens, torch.ones_like(tokens))
    weights = policy.flatten()
    kl = (weights * (weights / reference.flatten()).log()).sum()
    rows = []
    for name, values in estimates.items():
        mean = (weights * values).sum()
        deviation = (weights * (values - mean) ** 2).sum().sqrt()
        rows.append((name, mean.item(), (mean - kl).item(), deviation.item()))
    return pd.DataFrame(rows, columns=["estimate", "mean", "bias", "standard deviation"])


def gradient_table(logits: torch.Tensor, rewards: torch.Tensor, k: int) -> pd.DataFrame:
    """REINFORCE's gradient of E[r] in the logits of one choice, over all k-tuples of samples, for each baseline.

    `share` is how much of the exact gradient it is on average, bias the length of what is wrong, and
    standard deviation the root mean squared distance of one estimate from their mean.
    """
    choices = torch.tensor(list(product(range(len(logits)), repeat=k)))
    probabilities = logits.softmax(dim=0)
    weights = probabilities[choices].prod(dim=1)
    exact = probabilities * (rewards - probabilities @ rewards)
    log_prob_gradients = torch.eye(len(logits), dtype=logits.dtype) - probabilities
    rows = []
    for baseline in BASELINES:
        advantage = advantages(rewards[choices], baseline)
        estimates = (advantage[..., None] * log_prob_gradients[choices]).mean(dim=1)
        mean = weights @ estimates
        spread = (weights @ ((estimates - mean) ** 2).sum(dim=1)).sqrt()
        rows.append((baseline, k, (mean @ exact / (exact @ exact)).item(), (mean - exact).norm().item(), spread.item()))
    return pd.DataFrame(rows, columns=["baseline", "k", "share", "bias", "standard deviation"])
