"""The best that any policy can do: the optimal KL-reward frontier, best-of-n, and distances from them.

For E_π[r] - β KL(π ‖ π_ref) the optimum is known, π* ∝ π_ref exp(r/β) (Peters and Schaal 2007; Rafailov et al. 2023,
eq. 4).  So its reward and KL can be computed from samples of the reference, reweighted, without training anything.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy.special import gammaln, logsumexp

LEAST_ESS = 10.0
"""Effective samples below which a tilted mean is no longer believed."""
MOST_BELOW = 0.05
"""Share of prompts that may fall below it."""
LEAST_KL = 0.05
"""Nats below which an efficiency is a ratio of two noises."""


def optimal_frontier(
    rewards: np.ndarray, betas: Sequence[float], log_weights: np.ndarray | None = None
) -> pd.DataFrame:
    """Reward and KL of π* ∝ π_ref exp(r/β) for each β, from scored samples; the first row is β = inf, the reference.

    rewards is (prompts, n).  Without log_weights the samples of a prompt are drawn from the reference; otherwise from
    anything, with log_weights = log(π_ref / sampling density), same shape (`balance_log_weights`).  With
    Z = E_ref[exp(r/β)] the optimum has reward E_ref[r exp(r/β)] / Z and KL E_π*[r]/β - log Z, means over prompts.

    Columns beta, kl (nats), reward, ess: the effective sample size that all but MOST_BELOW of the prompts reach.  Where
    it is below LEAST_ESS, kl and reward are NaN: few samples miss the best texts, and an optimum that is too low
    flatters every method.
    """
    rewards = np.asarray(rewards, dtype=float)
    start = np.zeros_like(rewards) if log_weights is None else np.asarray(log_weights, dtype=float)
    rows = []
    for beta in [np.inf, *sorted(betas, reverse=True)]:
        log_w = start + rewards / beta
        log_sum = logsumexp(log_w, axis=1, keepdims=True)
        shares = np.exp(log_w - log_sum)
        reward = (shares * rewards).sum(axis=1)
        log_z = log_sum[:, 0] - logsumexp(start, axis=1)
        kl = 0.0 if np.isinf(beta) else (reward / beta - log_z).mean()
        ess = float(np.quantile(1 / (shares**2).sum(axis=1), MOST_BELOW))
        rows.append((beta, kl, reward.mean(), ess) if ess >= LEAST_ESS else (beta, np.nan, np.nan, ess))
    return pd.DataFrame(rows, columns=["beta", "kl", "reward", "ess"])


def balance_log_weights(log_probs: np.ndarray, counts: Sequence[int], reference: int = 0) -> np.ndarray:
    """log(π_ref / mixture) for samples of several policies pooled, the balance heuristic (Veach and Guibas 1995).

    log_probs is (policies, prompts, n): every pooled sample under every policy, in nats.  counts says how many of the n
    samples of a prompt each policy drew; the mixture has these shares.  `reference` is the position of π_ref.
    Returns (prompts, n).
    """
    with np.errstate(divide="ignore"):  # a policy that drew nothing
        shares = np.log(np.asarray(counts, dtype=float) / np.sum(counts))
    mixture = logsumexp(log_probs + shares[:, None, None], axis=0)
    return log_probs[reference] - mixture


def best_of_n(rewards: np.ndarray, ns: Sequence[int]) -> pd.DataFrame:
    """Expected reward of the best of n, from (prompts, N) rewards of reference samples; columns n, kl_bound, reward.

    The mean over all subsets of n of a prompt's N samples, which is unbiased.  kl_bound is log n - (n-1)/n, an upper
    bound of its KL (Beirami et al. 2024).  Raises ValueError if n is larger than N.
    """
    ordered = np.sort(np.asarray(rewards, dtype=float), axis=1)
    total = ordered.shape[1]
    rows = []
    for n in ns:
        if not 1 <= n <= total:
            raise ValueError(f"best of {n}: allowed: 1 to {total}, the samples of a prompt")
        rows.append((n, np.log(n) - (n - 1) / n, float((ordered @ chance_of_best(total, n)).mean())))
    return pd.DataFrame(rows, columns=["n", "kl_bound", "reward"])


def chance_of_best(total: int, n: int) -> np.ndarray:
    """The chance that each of `total` samples, in ascending order, is the best of a random subset of n; sum 1."""
    below = np.arange(total)
    with np.errstate(divide="ignore"):
        return np.exp(np.where(below >= n - 1, _log_choose(below, n - 1), -np.inf) - _log_choose(total, n))


def _log_choose(n: np.ndarray | int, k: int) -> np.ndarray:
    n = np.maximum(n, k)
    return gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)


def optimal_reward(kl: float, frontier: pd.DataFrame) -> float:
    """The frontier's reward at a KL, linear in √KL between its points, near which it is straight; NaN beyond them."""
    known = frontier.dropna(subset=["kl", "reward"]).sort_values("kl")
    if not known.kl.min() <= kl <= known.kl.max():
        return float("nan")
    return float(np.interp(np.sqrt(kl), np.sqrt(known.kl), known.reward))


def efficiency(kl: float, reward: float, frontier: pd.DataFrame) -> float:
    """(reward - SFT) / (optimal reward at that KL - SFT); NaN below LEAST_KL nats and where the frontier is unknown."""
    if not kl >= LEAST_KL:
        return float("nan")
    start = optimal_reward(0.0, frontier)
    return (reward - start) / (optimal_reward(kl, frontier) - start)


def hypervolume(kl: Sequence[float], reward: Sequence[float], sft_reward: float, most_kl: float = 4.0) -> float:
    """Area that a set of policies dominates on the KL-reward plane, above SFT's reward and left of `most_kl`.

    In nats times reward; 0 for policies that are no better than SFT or beyond `most_kl`.
    """
    order = np.argsort(kl, kind="stable")
    kls = np.append(np.minimum(np.asarray(kl, dtype=float)[order], most_kl), most_kl)
    best = np.maximum.accumulate(np.asarray(reward, dtype=float)[order]) - sft_reward
    return float((np.diff(kls) * np.maximum(best, 0)).sum())
