"""f-divergences D_f(π ‖ ρ) = E_ρ[f(π/ρ)]: f, f', the score f'(u) in log space, the closed-form optimum.

u = π(y|x) / ρ(y|x) is the ratio of policy to reference, log_u the log-ratio in nats.  Wang et al. 2024, "Beyond
Reverse KL: Generalizing Direct Preference Optimization with Diverse Divergence Constraints" (f-DPO), Table 1 and
Theorem 1; χPO from Huang et al. 2024, "Correcting the Mythos of KL-Regularization".  α is that of the f-DPO paper:
α → 0 is reverse KL, α → 1 forward KL (TRL's is 1 - α).
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.special import wrightomega
from torch.nn.functional import logsigmoid

from alignkit.faults import UserFault

Function = Callable[[Any], Any]
KL, CHI, OTHER = "relatives of KL", "relatives of χ²", "the others"


@dataclass(frozen=True)
class Divergence:
    """One f-divergence; every function is elementwise, on tensors of any shape (numbers and arrays become float64)."""

    name: str
    family: str
    """The group in which figures show it: `KL`, `CHI` or `OTHER`."""
    formulas: tuple[str, str]
    """f and f' as tables write them, in Python's signs, with u and α."""
    generator: Function
    """f, convex on u > 0, with f(1) = 0 except for GAN."""
    derivative: Function
    """f'."""
    centred: Function
    """f'(exp(log_u)) - f'(1), written in log_u."""
    log_slope: Function
    """u f''(u), written in log_u."""
    inverse: Function | None = None
    """u with f'(u) = x, on float64 arrays, 0 below f'(0+); None where f' has no inverse."""
    supports_dpo: bool = True
    """Whether f'(0+) = -inf, so that the optimum gives mass to every response, as f-DPO's change of variables needs."""
    powers: tuple[float, ...] = ()
    """The exponents of u in f'; u to one of them can overflow."""
    uncentred: Function | None = None
    """f'(exp(log_u)), written in log_u; None where f'(1) = 0."""
    alpha: float | None = None

    @property
    def label(self) -> str:
        """Its name as figures and tables write it, with its α."""
        return self.name if self.alpha is None else f"{self.name}, α = {self.alpha:g}"

    def f(self, u: Any) -> torch.Tensor:
        """f(u) for u > 0."""
        return self.generator(_tensor(u))

    def f_prime(self, u: Any) -> torch.Tensor:
        """f'(u) for u > 0."""
        return self.derivative(_tensor(u))

    def score(self, log_u: Any) -> torch.Tensor:
        """f'(exp(log_u)), the score of a response whose log-ratio is log_u; clamped (in float32 at powers of e^80)."""
        return (self.uncentred or self.centred)(_tensor(log_u))

    def centred_score(self, log_u: Any) -> torch.Tensor:
        """score(log_u) - score(0): a response as likely as under the reference scores 0, whatever f is.

        GAN and Jensen-Shannon have the same one, to the bit: as losses they are one.
        """
        return self.centred(_tensor(log_u))

    def slope(self, log_u: Any) -> torch.Tensor:
        """d score / d log_u = u f''(u), as if nothing were clamped: how strongly a response is pushed."""
        return self.log_slope(_tensor(log_u))

    def clamped(self, log_u: Any) -> torch.Tensor:
        """True where `score` had to clamp a power of u, which then adds nothing to the gradient."""
        log_u = _tensor(log_u)
        over = [power * log_u > _largest_exponent(log_u.dtype) for power in self.powers]
        return torch.stack(over).any(dim=0) if over else torch.zeros_like(log_u, dtype=torch.bool)

    def optimal_policy(self, ref: Any, reward: Any, beta: float) -> Any:
        """argmax_π E_π[r] - β D_f(π ‖ ref) on a finite set: π = ref · (f')⁻¹((r - λ)/β), with λ such that it sums to 1.

        ref (positive, sum 1) and reward are (responses,); so is the result, in float64, as a tensor if ref is one.
        Wang et al. 2024, Theorem 1; where f'(0+) is finite, responses of low reward get no mass at all.  Where f' is
        bounded above, a probability in ref below 1e-9 (Neyman, α = 2: 1e-5) is lost to rounding, and the result wrong.
        """
        if isinstance(ref, torch.Tensor):
            return torch.from_numpy(self.optimal_policy(ref.numpy(), np.asarray(reward), beta))
        ref, reward = np.asarray(ref, dtype=np.float64), np.asarray(reward, dtype=np.float64)
        if self.inverse is None:
            return _optimum_under_total_variation(ref, reward, beta)

        def policy(normaliser: float) -> np.ndarray:
            return ref * self.inverse((reward - normaliser) / beta)

        # At the upper end no response gains mass, at the lower end one of them alone reaches mass 1.
        high = (reward - beta * self.f_prime(1.0).item()).max()
        low = (reward - beta * self.f_prime(1 / ref).numpy()).max()
        if policy(low).sum() <= 1 or policy(high).sum() >= 1:  # by rounding, an end is the solution itself
            normaliser = low if policy(low).sum() <= 1 else high
        else:
            normaliser = brentq(lambda value: policy(value).sum() - 1, low, high, xtol=1e-14, rtol=1e-14, maxiter=500)
        pi = policy(normaliser)
        return pi / pi.sum()


def divergence(name: str, alpha: float | None = None) -> Divergence:
    """The f-divergence of this name; "alpha" needs alpha > 0, "chi_alpha" needs alpha > 1.

    Raises UserFault for a name that is not in `NAMES` and for an alpha that is missing, needless or out of range.
    """
    if name in WITH_ALPHA:
        build, least, _ = WITH_ALPHA[name]
        if alpha is None or not alpha > least:
            raise UserFault(f"divergence: {name!r} with alpha {alpha}; allowed: alpha > {least}")
        return build(float(alpha))
    if name not in FIXED:
        raise UserFault(f"divergence: {name!r}; allowed: {', '.join(NAMES)}")
    if alpha is not None:
        raise UserFault(f"divergence: {name!r} takes no alpha; only {' and '.join(WITH_ALPHA)} do")
    return FIXED[name]


def _tensor(x: Any) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else torch.as_tensor(x, dtype=torch.float64)


def _largest_exponent(dtype: torch.dtype) -> float:
    # Room for a factor of e^8 before the type overflows: 80.7 in float32.
    return log(torch.finfo(dtype).max) - 8


def _power(log_u: torch.Tensor, power: float) -> torch.Tensor:
    """u^power, clamped before it overflows."""
    return torch.exp((power * log_u).clamp(max=_largest_exponent(log_u.dtype)))


def _power_minus_one(log_u: torch.Tensor, power: float) -> torch.Tensor:
    """u^power - 1, accurate near u = 1, clamped likewise."""
    return torch.expm1((power * log_u).clamp(max=_largest_exponent(log_u.dtype)))


def _alpha(alpha: float) -> Divergence:
    if alpha == 1:
        f = lambda u: u - 1 - torch.log(u)  # noqa: E731 - the limit, forward KL up to a multiple of u - 1
    else:
        f = lambda u: (u ** (1 - alpha) - (1 - alpha) * u - alpha) / (alpha * (alpha - 1))  # noqa: E731
    return Divergence(
        name="alpha",
        family=OTHER,
        formulas=("(u**(1 - α) - (1 - α)*u - α)/(α*(α - 1))", "(1 - u**(-α))/α"),
        generator=f,
        derivative=lambda u: (1 - u**-alpha) / alpha,
        centred=lambda v: -_power_minus_one(v, -alpha) / alpha,
        log_slope=lambda v: _power(v, -alpha),
        inverse=lambda x: (1 - alpha * x) ** (-1 / alpha),
        powers=(-alpha,),
        alpha=alpha,
    )


def _chi_alpha(alpha: float) -> Divergence:
    def log_distance(v: torch.Tensor) -> torch.Tensor:
        # log |u - 1|; the floor keeps the slope finite at u = 1, where |u - 1|^(α-1) has a kink for α < 2.
        return torch.log(_power_minus_one(v, 1).abs().clamp(min=1e-6))

    def centred(v: torch.Tensor) -> torch.Tensor:
        x = _power_minus_one(v, 1)
        inside = x * 1e-6 ** (alpha - 2)
        outside = torch.sign(x) * _power(log_distance(v), alpha - 1)
        return 0.5 * alpha * torch.where(x.abs() < 1e-6, inside, outside)

    return Divergence(
        name="chi_alpha",
        family=CHI,
        formulas=("abs(u - 1)**α/2", "α*sign(u - 1)*abs(u - 1)**(α - 1)/2"),
        generator=lambda u: 0.5 * (u - 1).abs() ** alpha,
        derivative=lambda u: 0.5 * alpha * torch.sign(u - 1) * (u - 1).abs() ** (alpha - 1),
        centred=centred,
        log_slope=lambda v: 0.5 * alpha * (alpha - 1) * _power(v, 1) * _power(log_distance(v), alpha - 2),
        inverse=lambda x: np.maximum(0, 1 + np.sign(x) * (2 * np.abs(x) / alpha) ** (1 / (alpha - 1))),
        supports_dpo=False,
        powers=(1, alpha - 1),
        alpha=alpha,
    )


def _inverse_of_cnp(x: np.ndarray) -> np.ndarray:
    # 4u - 3 - 1/u² = 3x is v³ + c v - 4 = 0 in v = 1/u with c = 3x + 3: one positive root (Cardano, in three cases).
    c = 3 * np.asarray(x) + 3
    width = np.sqrt(np.maximum(np.abs(c), 1e-12) / 3)
    angle = 2 / width**3
    one_real = np.where(c >= 0, np.sinh(np.arcsinh(angle) / 3), np.cosh(np.arccosh(np.maximum(angle, 1)) / 3))
    v = np.where((c < 0) & (angle < 1), np.cos(np.arccos(np.minimum(angle, 1)) / 3), one_real)
    return 1 / (2 * width * v)


def _inverse_of_jensen_shannon(x: np.ndarray) -> np.ndarray:
    # exp(x) = 2u / (1 + u); the range of f' ends at log 2.
    return np.exp(x) / np.maximum(2 - np.exp(x), 1e-300)


FIXED: dict[str, Divergence] = {
    d.name: d
    for d in (
        Divergence(
            name="reverse_kl",
            family=KL,
            formulas=("u*log(u)", "log(u) + 1"),
            generator=lambda u: torch.xlogy(u, u),
            derivative=lambda u: torch.log(u) + 1,
            centred=lambda v: v,
            uncentred=lambda v: v + 1,
            log_slope=torch.ones_like,
            inverse=lambda x: np.exp(x - 1),
        ),
        Divergence(
            name="forward_kl",
            family=KL,
            formulas=("-log(u)", "-1/u"),
            generator=lambda u: -torch.log(u),
            derivative=lambda u: -1 / u,
            centred=lambda v: -_power_minus_one(v, -1),
            uncentred=lambda v: -_power(v, -1),
            log_slope=lambda v: _power(v, -1),
            inverse=lambda x: -1 / x,
            powers=(-1,),
        ),
        Divergence(
            name="js",
            family=KL,
            formulas=("u*log(u) - (u + 1)*log((u + 1)/2)", "log(2*u/(1 + u))"),
            generator=lambda u: torch.xlogy(u, u) - (u + 1) * torch.log((u + 1) / 2),
            derivative=lambda u: torch.log(2 * u / (1 + u)),
            centred=lambda v: log(2) + logsigmoid(v),
            log_slope=lambda v: torch.sigmoid(-v),
            inverse=_inverse_of_jensen_shannon,
        ),
        Divergence(
            name="pearson_chi2",
            family=CHI,
            formulas=("(u - 1)**2", "2*(u - 1)"),
            generator=lambda u: (u - 1) ** 2,
            derivative=lambda u: 2 * (u - 1),
            centred=lambda v: 2 * _power_minus_one(v, 1),
            log_slope=lambda v: 2 * _power(v, 1),
            inverse=lambda x: np.maximum(0, 1 + x / 2),
            supports_dpo=False,
            powers=(1,),
        ),
        Divergence(
            name="neyman_chi2",
            family=CHI,
            formulas=("(1 - u)**2/u", "1 - 1/u**2"),
            generator=lambda u: (1 - u) ** 2 / u,
            derivative=lambda u: 1 - 1 / u**2,
            centred=lambda v: -_power_minus_one(v, -2),
            log_slope=lambda v: 2 * _power(v, -2),
            inverse=lambda x: (1 - x) ** -0.5,
            powers=(-2,),
        ),
        Divergence(
            name="cnp_chi2",
            family=CHI,
            formulas=("(2*(u - 1)**2 + (1 - u)**2/u)/3", "(4*u - 3 - 1/u**2)/3"),
            generator=lambda u: (2 * (u - 1) ** 2 + (1 - u) ** 2 / u) / 3,
            derivative=lambda u: (4 * u - 3 - 1 / u**2) / 3,
            centred=lambda v: (4 * _power_minus_one(v, 1) - _power_minus_one(v, -2)) / 3,
            log_slope=lambda v: (4 * _power(v, 1) + 2 * _power(v, -2)) / 3,
            inverse=_inverse_of_cnp,
            powers=(1, -2),
        ),
        Divergence(
            name="hellinger",
            family=OTHER,
            formulas=("(sqrt(u) - 1)**2", "1 - 1/sqrt(u)"),
            generator=lambda u: (torch.sqrt(u) - 1) ** 2,
            derivative=lambda u: 1 - u**-0.5,
            centred=lambda v: -_power_minus_one(v, -0.5),
            log_slope=lambda v: 0.5 * _power(v, -0.5),
            inverse=lambda x: (1 - x) ** -2.0,
            powers=(-0.5,),
        ),
        Divergence(
            name="jeffrey",
            family=KL,
            formulas=("(u - 1)*log(u)", "log(u) + 1 - 1/u"),
            generator=lambda u: (u - 1) * torch.log(u),
            derivative=lambda u: torch.log(u) + 1 - 1 / u,
            centred=lambda v: v - _power_minus_one(v, -1),
            log_slope=lambda v: 1 + _power(v, -1),
            # With v = 1/u it reads v + log v = 1 - x, which is what the Wright omega function solves.
            inverse=lambda x: 1 / wrightomega(1 - np.asarray(x)),
            powers=(-1,),
        ),
        Divergence(
            name="gan",
            family=KL,
            formulas=("u*log(u) - (u + 1)*log(u + 1)", "log(u) - log(u + 1)"),
            generator=lambda u: torch.xlogy(u, u) - (u + 1) * torch.log(u + 1),
            derivative=lambda u: torch.log(u) - torch.log(u + 1),
            centred=lambda v: log(2) + logsigmoid(v),
            uncentred=logsigmoid,
            log_slope=lambda v: torch.sigmoid(-v),
            inverse=lambda x: 1 / np.expm1(-np.asarray(x)),
        ),
        Divergence(
            name="total_variation",
            family=OTHER,
            formulas=("abs(u - 1)/2", "sign(u - 1)/2"),
            generator=lambda u: 0.5 * (u - 1).abs(),
            derivative=lambda u: torch.where(u > 1, 0.5, -0.5).to(u.dtype),
            # 0 · v keeps the score in the graph: its gradient is zero, not absent.
            centred=lambda v: (v > 0).to(v.dtype) + 0 * v,
            uncentred=lambda v: (v > 0).to(v.dtype) - 0.5 + 0 * v,
            log_slope=torch.zeros_like,
            supports_dpo=False,
        ),
        Divergence(
            name="chi_po",
            family=CHI,
            formulas=("(u - 1)**2/2 + u*log(u)", "u + log(u)"),
            generator=lambda u: 0.5 * (u - 1) ** 2 + torch.xlogy(u, u),
            derivative=lambda u: u + torch.log(u),
            centred=lambda v: _power_minus_one(v, 1) + v,
            uncentred=lambda v: _power(v, 1) + v,
            log_slope=lambda v: _power(v, 1) + 1,
            inverse=lambda x: wrightomega(np.asarray(x)),
            powers=(1,),
        ),
    )
}
WITH_ALPHA = {"alpha": (_alpha, 0, 0.5), "chi_alpha": (_chi_alpha, 1, 2.0)}
"""Divergences with a parameter: how to build one, the number that α must exceed, the α at which tables show it."""
NAMES = (*FIXED, *WITH_ALPHA)


def examples() -> list[Divergence]:
    """Each divergence once, those with an α at the one at which tables show it."""
    return [divergence(name, WITH_ALPHA[name][2] if name in WITH_ALPHA else None) for name in NAMES]


def _optimum_under_total_variation(ref: np.ndarray, reward: np.ndarray, beta: float) -> np.ndarray:
    # A unit of mass moved from i to the best response earns r_best - r_i and costs β: all or nothing.
    best = int(reward.argmax())
    pi = np.where(reward.max() - reward > beta, 0.0, ref)
    pi[best] += 1 - pi.sum()
    return pi
