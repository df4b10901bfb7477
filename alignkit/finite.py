"""Preference learning on a finite set of responses, where population losses and their optima can be computed.

Does minimising a preference loss end in the policy that the theory promises?
"""

from collections.abc import Callable

import numpy as np
from scipy.optimize import OptimizeResult, minimize
from scipy.special import expit, log_expit, log_softmax

from alignkit.divergences import Divergence

Derivatives = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Gradient and curvature at these logits."""


def population_loss(div: Divergence, log_policy: np.ndarray, ref: np.ndarray, reward: np.ndarray, beta: float) -> float:
    """E[-log σ(β(s_w - s_l))] over pairs drawn from the reference and labelled by Bradley-Terry; nats.

    log_policy, ref and reward are (responses,).  y₁, y₂ ~ ref, y₁ wins with probability σ(r₁ - r₂), s = f'(π/ref):
    the f-DPO loss (Wang et al. 2024, equation 7) with infinitely many pairs.
    """
    h, wins, weight = _pairs(div, log_policy, ref, reward, beta)
    return float(-(weight * (wins * log_expit(h) + (1 - wins) * log_expit(-h))).sum())


def _pairs(div, log_policy, ref, reward, beta):
    score = div.score(log_policy - np.log(ref)).numpy()
    h = beta * (score[:, None] - score[None, :])
    return h, expit(reward[:, None] - reward[None, :]), ref[:, None] * ref[None, :]


def minimise_population_loss(
    div: Divergence, ref: np.ndarray, reward: np.ndarray, beta: float, *, steps: int = 2000
) -> tuple[np.ndarray, OptimizeResult]:
    """The policy (responses,) that minimises `population_loss` over the logits, starting at the reference.

    A trust-region Newton method with the Fisher matrix as curvature; returns the policy and scipy's report.
    """

    def value(logits: np.ndarray) -> float:
        return population_loss(div, log_softmax(logits), ref, reward, beta)

    def derivatives(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        log_policy = log_softmax(logits)
        h, wins, weight = _pairs(div, log_policy, ref, reward, beta)
        slope = div.slope(log_policy - np.log(ref)).numpy()
        score_by_logit = slope[:, None] * (np.eye(len(ref)) - np.exp(log_policy)[None, :])
        by_score = 2 * beta * (weight * (expit(h) - wins)).sum(axis=1)
        spread = 2 * beta**2 * weight * expit(h) * expit(-h)
        by_score_twice = np.diag(spread.sum(axis=1)) - spread
        return by_score @ score_by_logit, score_by_logit.T @ by_score_twice @ score_by_logit

    return newton(value, derivatives, ref, maxiter=steps, max_trust_radius=10.0)


def newton(
    value: Callable[[np.ndarray], float], derivatives: Derivatives, ref: np.ndarray, **options: float
) -> tuple[np.ndarray, OptimizeResult]:
    """The policy (responses,) at a minimum over the logits, from the reference on, and scipy's report (trust-exact)."""
    # Plain BFGS stalls where a score is steep (Jeffrey at beta 0.1), and where a response's probability has vanished.
    found = minimize(
        value,
        np.log(ref),
        method="trust-exact",
        jac=lambda logits: derivatives(logits)[0],
        hess=lambda logits: derivatives(logits)[1],
        options={"gtol": 1e-12, **options},
    )
    return np.exp(log_softmax(found.x)), found


def total_variation(p: np.ndarray, q: np.ndarray) -> float:
    """Half the sum of |p - q|: the largest difference in probability that p and q give to any event."""
    return float(np.abs(p - q).sum() / 2)
