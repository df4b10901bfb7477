"""The best that any policy can do: the optimal KL-reward frontier, best of n, resampling; and distances from them.

For E_π[r] - β KL(π ‖ π_ref) the optimum is known, π* ∝ π_ref exp(r/β) (Peters and Schaal 2007; Rafailov et al. 2023,
eq. 4).  So its reward and KL can be computed from samples of the reference, reweighted, without training anything.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import betaln, logsumexp

LEAST_ESS = 10.0
"""Effective samples below which a tilted mean is no longer believed."""
MOST_BELOW = 0.05
"""Share of prompts that may fall below it."""
LEAST_KL = 0.05
"""KL (nats) below which an efficiency is noise divided by noise, and a point does not count in a fit (`tables.fit`)."""
REPEATS = 256
"""How many random groups of n - 1 other draws each draw is compared with (`kept_share`)."""


def optimal_frontier(
    rewards: np.ndarray, betas: Sequence[float], log_weights: np.ndarray | None = None, gold: np.ndarray | None = None
) -> pd.DataFrame:
    """Reward and KL of π* ∝ π_ref exp(r/β) for each β, from scored samples; the first row is β = inf, the reference.

    rewards is (prompts, n).  Without log_weights the samples of a prompt are drawn from the reference; otherwise from
    anything, with log_weights = log(π_ref / sampling density), same shape (`balance_log_weights`).  With
    Z = E_ref[exp(r/β)] the optimum has reward E_ref[r exp(r/β)] / Z and KL E_π*[r]/β - log Z, means over prompts.

    Columns beta, kl (nats), reward, ess: the effective sample size that all but MOST_BELOW of the prompts reach; with
    gold, same shape, what the truth is along these policies, which are optimal for the reward.  Where ess is below
    LEAST_ESS, kl, reward and gold are NaN: few samples miss the best texts, and an optimum that is too low flatters
    every method.
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
        row = {"kl": 0.0 if np.isinf(beta) else (reward / beta - log_z).mean(), "reward": reward.mean()}
        row |= {} if gold is None else {"gold": (shares * gold).sum(axis=1).mean()}
        ess = float(np.quantile(1 / (shares**2).sum(axis=1), MOST_BELOW))
        rows.append({"beta": beta, **(row if ess >= LEAST_ESS else dict.fromkeys(row, np.nan)), "ess": ess})
    return pd.DataFrame(rows)


def balance_log_weights(log_probs: np.ndarray, counts: Sequence[int]) -> np.ndarray:
    """log(π_ref / mixture) for samples of several policies pooled, the balance heuristic (Veach and Guibas 1995).

    log_probs is (policies, prompts, n): every pooled sample under every policy, π_ref first, in nats.  counts says how
    many of the n samples of a prompt each policy drew; the mixture has these shares.  Returns (prompts, n).
    """
    with np.errstate(divide="ignore"):  # a policy that drew nothing
        shares = np.log(np.asarray(counts, dtype=float) / np.sum(counts))
    return log_probs[0] - logsumexp(log_probs + shares[:, None, None], axis=0)


def best_of_n(rewards: np.ndarray, ns: Sequence[int]) -> pd.DataFrame:
    """Expected reward of the best of n, from (prompts, N) rewards of reference samples; columns n, kl_bound, reward.

    The mean over all subsets of n of a prompt's N samples, which is unbiased.  kl_bound is log n - (n-1)/n, an upper
    bound of its KL (Beirami et al. 2024).  Raises ValueError if n is larger than N.
    """
    ordered = np.sort(np.asarray(rewards, dtype=float), axis=1)
    total = ordered.shape[1]
    rows = []
    for n in ns:
        if not 1 <= n <= total or n % 1:
            raise ValueError(f"best of {n}: allowed: 1 to {total}, the samples of a prompt")
        rows.append((n, best_of_n_kl(n), float((ordered @ chance_of_best(total, n)).mean())))
    return pd.DataFrame(rows, columns=["n", "kl_bound", "reward"])


def best_of_n_kl(n: int) -> float:
    """log n - (n-1)/n, which the KL of best of n does not exceed (Beirami et al. 2024); nats."""
    return float(np.log(n) - (n - 1) / n)


def chance_of_best(total: int, n: int) -> np.ndarray:
    """The chance that each of `total` samples, in ascending order, is the best of a random subset of n; sum 1."""
    place = np.arange(1, total + 1)  # a ratio of binomials, by logarithms, as these overflow
    return np.exp(betaln(total - n + 1, n + 1) - betaln(np.maximum(place - n + 1, 0), n)) * (total + 1) / place


def along_root_kl(kl: Any, kls: Any, values: Any, *, beyond: bool = False) -> Any:
    """Values between points at given KLs, linear in √KL, in which rewards are nearly straight; shape of kl.

    NaN outside the points' KLs; with beyond, the value of the nearest point.
    """
    if not len(kls):
        return np.full(np.shape(kl), np.nan)[()]
    order = np.argsort(kls, kind="stable")
    at, known = np.sqrt(np.maximum(np.asarray(kls, dtype=float), 0)[order]), np.asarray(values, dtype=float)[order]
    outside = {} if beyond else {"left": np.nan, "right": np.nan}
    return np.interp(np.sqrt(np.maximum(kl, 0)), at, known, **outside)  # a KL of nothing may be -1e-9


def optimal_reward(kl: Any, frontier: pd.DataFrame, column: str = "reward") -> Any:
    """The frontier's reward (or gold) at one KL or several, by `along_root_kl`; NaN beyond its points."""
    known = frontier.dropna(subset=["kl", column])
    return along_root_kl(kl, known.kl, known[column])


def efficiency(kl: Any, reward: Any, frontier: pd.DataFrame) -> Any:
    """(reward - SFT) / (optimal reward at that KL - SFT), of one policy or several; NaN below LEAST_KL nats and where
    the frontier is unknown."""
    far = np.where(np.greater_equal(kl, LEAST_KL), kl, np.nan)[()]
    start = optimal_reward(0.0, frontier)
    return (reward - start) / (optimal_reward(far, frontier) - start)


def hypervolume(kl: Sequence[float], reward: Sequence[float], sft_reward: float, most_kl: float = 4.0) -> float:
    """Area that a set of policies dominates on the KL-reward plane, above SFT's reward and left of `most_kl`.

    In nats times reward; 0 for policies that are no better than SFT or beyond `most_kl`.
    """
    order = np.argsort(kl, kind="stable")
    kls = np.append(np.minimum(np.asarray(kl, dtype=float)[order], most_kl), most_kl)
    best = np.maximum.accumulate(np.asarray(reward, dtype=float)[order]) - sft_reward
    return float((np.diff(kls) * np.maximum(best, 0)).sum())


def kept_share(log_weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """For each draw, (prompts, N): how many times likelier keeping one of n makes it; the mean of a prompt's is 1.

    n E[w / (w + Σ of n - 1 others' w)], over groups of n - 1 *other* draws of the pool.  log_weights is
    (prompts, N), up to a constant a prompt.  Raises ValueError if a prompt has fewer than n draws.
    """
    size = log_weights.shape[1]
    if not 1 <= n <= size:
        raise ValueError(f"{n} draws; allowed: 1 to {size}, those of a prompt")
    # A draw e^600 times less likely than the best of its prompt keeps a tiny weight, so that no sum is zero.
    weights = np.ascontiguousarray(np.exp(np.maximum(log_weights - log_weights.max(axis=1, keepdims=True), -600.0)).T)
    share = np.zeros_like(weights)
    for _ in range(REPEATS):
        # One order serves all prompts: their draws are independent of each other.
        order = rng.permutation(size)
        shuffled = weights[order]
        shuffled /= ring_sums(shuffled, n)
        share += shuffled[np.argsort(order)]
    share = np.ascontiguousarray(share.T) * (n / REPEATS)
    return share / share.mean(axis=1, keepdims=True)


def ring_sums(values: np.ndarray, n: int) -> np.ndarray:
    """For each row the sum of it and the n - 1 rows after it, round a ring; both (rows, columns).

    Sums of 1, 2, 4, ... rows put together: a difference of cumulative sums would lose small values beside large ones.
    """
    sums, total, taken, width = np.concatenate([values, values[: n - 1]]), 0.0, 0, 1
    while width <= n:
        if n & width:
            total = total + sums[taken : taken + len(values)]
            taken += width
        sums = sums[:-width] + sums[width:]
        width *= 2
    return total


def resampled(
    rewards: np.ndarray,
    log_ratios: np.ndarray,
    n: int,
    betas: Sequence[float],
    gold: np.ndarray | None = None,
    seed: int = 0,
    **others: np.ndarray,
) -> pd.DataFrame:
    """Reward, gold and KL of keeping one of n draws with weight exp(r/β - log-ratio), for each β.

    rewards and log_ratios = log π/π_ref of the whole completion (nats) are (prompts, N) for draws of π; for draws of
    the reference the log-ratios are 0.  The KL to the reference is E[log share + log-ratio] over what is kept, with
    `kept_share`, too high with few draws (13 % with N = 16 and n = 6, 3 % with 64).  Columns n, beta, kl, reward, gold,
    and the mean of each of the others, same shape.
    """
    rng = np.random.default_rng(seed)
    averaged = {"reward": rewards, "gold": np.nan if gold is None else gold, **others}
    rows = []
    for beta in betas:
        share = kept_share(rewards / beta - log_ratios, n, rng)
        kl = np.where(share > 0, share * (np.log(np.maximum(share, 1e-300)) + log_ratios), 0).mean()
        means = {name: float((share * values).mean()) for name, values in averaged.items()}
        rows.append({"n": n, "beta": beta, "kl": float(kl), **means})
    return pd.DataFrame(rows)
