"""Draw several completions, keep one with probability ∝ exp(r/β): a policy that comes close to the optimum.

With completions of the SFT policy this is soft best-of-n (Verdun et al. 2025), which becomes best-of-n as β → 0.  With
those of a trained policy it is sampling-importance resampling (Rubin 1987): weights exp(r/β) π_ref/π.  The kept
completion has the optimum's distribution π* ∝ π_ref exp(r/β) as n grows; for finite n its reward and KL are computed
here, from a pool of draws.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

REPEATS = 256
"""Random companies of n - 1 other draws that a draw is put into."""


def kept_share(log_weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """How many times as often a draw is kept as it is drawn, (prompts, N); its mean over a prompt's draws is 1.

    n E[w / (w + Σ of n - 1 others' w)], over companies of n - 1 *other* draws of the pool.  log_weights is
    (prompts, N), up to a constant a prompt.  Raises ValueError if a prompt has fewer than n draws.
    """
    size = log_weights.shape[1]
    if not 1 <= n <= size:
        raise ValueError(f"{n} draws; allowed: 1 to {size}, those of a prompt")
    # What is e^600 times less likely than the best of its prompt is not told apart from its like, and not lost either.
    weights = np.exp(np.maximum(log_weights - log_weights.max(axis=1, keepdims=True), -600.0)).T
    share = np.zeros_like(weights)
    for _ in range(REPEATS):
        # The same order for all prompts, whose draws have nothing to do with each other.
        order = rng.permutation(size)
        shuffled = weights[order]
        share[order] += shuffled / ring_sums(shuffled, n)
    share = share.T * (n / REPEATS)
    return share / share.mean(axis=1, keepdims=True)


def ring_sums(values: np.ndarray, n: int) -> np.ndarray:
    """For each row the sum of it and the n - 1 rows after it, round a ring; both (rows, columns).

    Sums of 1, 2, 4, ... rows put together: a difference of cumulative sums would lose small values beside large ones.
    """
    total, taken, width = np.zeros_like(values), 0, 1
    while width <= n:
        if n & width:
            total = total + np.roll(values, -taken, axis=0)
            taken += width
        values = values + np.roll(values, -width, axis=0)
        width *= 2
    return total


def resampled(
    rewards: np.ndarray,
    log_ratios: np.ndarray,
    n: int,
    betas: Sequence[float],
    gold: np.ndarray | None = None,
    seed: int = 0,
) -> pd.DataFrame:
    """Reward, gold and KL of keeping one of n draws with weight exp(r/β - log-ratio), for each β.

    rewards and log_ratios = log π/π_ref of the whole completion (nats) are (prompts, N) for draws of π; for draws of
    the reference the log-ratios are 0.  The KL to the reference is E[log share + log-ratio] over what is kept, with
    `kept_share`.  Columns n, beta, kl, reward, gold.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for beta in betas:
        share = kept_share(rewards / beta - log_ratios, n, rng)
        kl = np.where(share > 0, share * (np.log(np.maximum(share, 1e-300)) + log_ratios), 0).mean()
        truth = np.nan if gold is None else (share * gold).mean()
        rows.append((n, beta, float(kl), float((share * rewards).mean()), float(truth)))
    return pd.DataFrame(rows, columns=["n", "beta", "kl", "reward", "gold"])
