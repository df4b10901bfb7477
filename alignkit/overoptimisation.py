"""Reward-model over-optimisation: how the true reward bends while the proxy rises (Gao et al. 2023).

With d = √KL(π ‖ π_sft), the gain in true reward follows R(d) = d (α - β log d) for reinforcement learning and
d (α - β d) for best-of-n, in their experiments.
"""

from typing import NamedTuple

import numpy as np

LEAST_KL = 0.05
"""Points below it say nothing of the bend and are left out."""


class Fit(NamedTuple):
    """Least-squares α and β of one form, its R², and where the fitted curve has its maximum."""

    alpha: float
    beta: float
    r2: float
    peak_kl: float
    """KL at the maximum, nats: 0 if the curve falls from the start; NaN if it never bends (β <= 0)."""


def fit(kl: np.ndarray, gain: np.ndarray, form: str = "rl") -> Fit:
    """Fit d (α - β log d) ("rl") or d (α - β d) ("bon") to gains over SFT at given KLs, both (points,).

    Raises ValueError for another form or fewer than three points.
    """
    bends = {"rl": np.log, "bon": lambda d: d}
    if form not in bends:
        raise ValueError(f"form: {form!r}; allowed: {', '.join(bends)}")
    kl, gain = np.asarray(kl, dtype=float), np.asarray(gain, dtype=float)
    used = kl >= LEAST_KL
    if used.sum() < 3:
        raise ValueError(f"a fit needs 3 points with a KL of {LEAST_KL} or more, got {used.sum()}")
    d, gain = np.sqrt(kl[used]), gain[used]
    (alpha, minus_beta), *_ = np.linalg.lstsq(np.stack([d, d * bends[form](d)], axis=1), gain, rcond=None)
    beta = -minus_beta
    fitted = curve(d**2, alpha, beta, form)
    r2 = 1 - ((gain - fitted) ** 2).sum() / ((gain - gain.mean()) ** 2).sum()
    if beta <= 0:
        return Fit(alpha, beta, r2, float("nan"))
    peak = np.exp(alpha / beta - 1) if form == "rl" else max(0.0, alpha / (2 * beta))
    return Fit(float(alpha), float(beta), float(r2), float(peak**2))


def curve(kl: np.ndarray, alpha: float, beta: float, form: str = "rl") -> np.ndarray:
    """The fitted gain at given KLs; 0 at KL 0."""
    d = np.sqrt(np.asarray(kl, dtype=float))
    bend = np.log(np.maximum(d, 1e-12)) if form == "rl" else d
    return d * (alpha - beta * bend)
