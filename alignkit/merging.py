"""Merging of policies with one architecture: EMA, LERP, SLERP on task vectors, LITI.

State dicts in, state dicts out; inputs are never modified (but for `ema_`, whose anchor moves in place).  A task vector
is δ = θ - θ_init.  Every merge here is a combination (1 - Σc) θ_init + Σ c_m θ^m, so that its ends are exact: the
coefficients 1 and 0 give back a policy to the bit.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

State = Mapping[str, torch.Tensor]
Per = Literal["layer", "tensor", "all"]

PARALLEL = 1e-3
"""sin Ω below which two task vectors count as parallel or antiparallel, and SLERP as LERP (there they agree to 1e-6, or
SLERP is not defined)."""


@torch.no_grad()
def ema_(anchor: State, policy: State, rate: float) -> None:
    """anchor <- (1 - rate) anchor + rate policy, in place (WARP, Algorithm 1, line 9).

    Tied tensors move once, integer buffers stay.  Keep the anchor in float32: in bfloat16 a step of 1 % rounds away.
    """
    moved = set()
    for name, tensor in anchor.items():
        if tensor.is_floating_point() and tensor.data_ptr() not in moved:
            moved.add(tensor.data_ptr())
            tensor.lerp_(policy[name].to(tensor), rate)


def lerp(init: State, thetas: Sequence[State], weights: Sequence[float] | None = None) -> dict[str, torch.Tensor]:
    """θ_init + Σ w_m δ^m, the mean of the policies with the default weights 1/M; others need not sum to 1."""
    shares = torch.tensor(_shares(init, thetas, weights), dtype=torch.float64)
    return _combined(init, thetas, dict.fromkeys(init, shares))


def slerp(
    init: State, thetas: Sequence[State], weights: Sequence[float] | None = None, per: Per = "layer"
) -> dict[str, torch.Tensor]:
    """Spherical interpolation of the task vectors (WARP, eq. 4; its appendix B for more than two).

    For two, with Ω the angle between δ¹ and δ², and λ the weight of the second:
    θ_init + sin((1-λ)Ω)/sin Ω δ¹ + sin(λΩ)/sin Ω δ².  Further ones join one by one, each with its share of the weight
    so far, so the result depends on the order for M > 2.  `per`: one angle for each layer as in the paper, for each
    tensor, or for the whole policy.  Weights are positive shares of 1, equal by default.  Parallel, antiparallel and
    zero task vectors are interpolated linearly.

    Raises ValueError if names, shapes or weights do not fit.
    """
    shares = _shares(init, thetas, weights)
    if not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-6):
        raise ValueError(f"slerp: weights {shares}; allowed: one for each policy, none below 0, sum 1")
    coefficients = {}
    for names in _groups(init, thetas, per).values():
        found = _spherical(_gram(init, thetas, names), shares)
        coefficients |= dict.fromkeys(names, found)
    return _combined(init, thetas, coefficients)


def liti(init: State, merged: State, eta: float) -> dict[str, torch.Tensor]:
    """(1 - η) θ_init + η θ_merged, linear interpolation towards the initialisation (WARP, eq. 5)."""
    return lerp(init, [merged], [eta])


def angles(init: State, thetas: Sequence[State], per: Per = "layer") -> dict[str, torch.Tensor]:
    """Angle Ω between task vectors in degrees: for each layer (or tensor, or all) a float64 matrix (M, M).

    NaN beside a policy that did not move there.
    """
    _shares(init, thetas, None)
    out = {}
    for group, names in _groups(init, thetas, per).items():
        gram = _gram(init, thetas, names)
        norms = gram.diagonal().sqrt()
        cosine = (gram / norms.outer(norms)).clamp(-1, 1)
        # A vector's angle with itself is not left to rounding.
        cosine.diagonal()[norms > 0] = 1
        out[group] = cosine.acos().rad2deg()
    return out


def layer_of(name: str) -> str:
    """The layer that a weight belongs to: up to the first number in its name, or else its module."""
    numbered = re.match(r"(.*?\.\d+)\.", name)
    return numbered.group(1) if numbered else name.rpartition(".")[0] or name


def _first_of_tied(states: Sequence[State]) -> dict[str, str]:
    """Each name's first name, where several share one matrix in every policy (tied embeddings, or copies of them)."""
    first: dict[str, str] = {}
    for name, tensor in states[0].items():
        alike = (n for n in first if first[n] == n and tensor.ndim > 1 and tensor.shape == states[0][n].shape)
        same = (n for n in alike if all(torch.equal(state[n], state[name]) for state in states))
        first[name] = next(same, name)
    return first


def _groups(init: State, thetas: Sequence[State], per: Per) -> dict[str, list[str]]:
    """Names of floating-point tensors by layer, tensor or all together; of tied tensors only the first."""
    label = {"layer": layer_of, "tensor": lambda name: name, "all": lambda name: "all"}
    if per not in label:
        raise ValueError(f"merging: per {per!r}; allowed: layer, tensor, all")
    first = _first_of_tied([init, *thetas])
    groups: dict[str, list[str]] = {}
    for name, tensor in init.items():
        if tensor.is_floating_point() and first[name] == name:
            groups.setdefault(label[per](name), []).append(name)
    return groups


def _precise(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """The tensor in float32 at least, on the device of `like`."""
    return tensor.to(like.device, torch.promote_types(tensor.dtype, torch.float32))


@torch.no_grad()
def _gram(init: State, thetas: Sequence[State], names: Sequence[str]) -> torch.Tensor:
    """Inner products of the task vectors over some tensors, (M, M) in float64, whatever the weights are kept in."""
    gram = torch.zeros(len(thetas), len(thetas), dtype=torch.float64)
    for name in names:
        start = _precise(init[name], init[name])
        deltas = torch.stack([(_precise(theta[name], start) - start).flatten() for theta in thetas]).double()
        gram += (deltas @ deltas.T).cpu()
    return (gram + gram.T) / 2


def _spherical(gram: torch.Tensor, shares: Sequence[float]) -> torch.Tensor:
    """Coefficients (M,) of the task vectors in their spherical interpolation, one after the other."""
    merged = torch.zeros(len(shares), dtype=torch.float64)
    merged[0], so_far = 1, shares[0]
    for m, share in enumerate(shares[1:], start=1):
        so_far += share
        here = torch.zeros_like(merged)
        here[m] = 1
        weight = share / so_far if so_far else 1 / (m + 1)
        left, right = _two(merged @ gram @ merged, gram[m, m], merged @ gram[m], weight)
        merged = left * merged + right * here
    return merged


def _two(a: torch.Tensor, b: torch.Tensor, product: torch.Tensor, weight: float) -> tuple[float, float]:
    """SLERP's coefficients for two vectors with squared norms a and b and this inner product; weight: of the second."""
    if weight in (0, 1) or a <= 0 or b <= 0:
        return 1 - weight, weight
    angle = (product / (a * b).sqrt()).clamp(-1, 1).acos()
    if angle.sin() < PARALLEL:
        return 1 - weight, weight
    return float(((1 - weight) * angle).sin() / angle.sin()), float((weight * angle).sin() / angle.sin())


@torch.no_grad()
def _combined(
    init: State, thetas: Sequence[State], coefficients: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """(1 - Σc) θ_init + Σ c_m θ^m for each name, in θ_init's precision; what has coefficient 0 does not count."""
    out: dict[str, torch.Tensor] = {}
    first = _first_of_tied([init, *thetas])
    for name, start in init.items():
        if not start.is_floating_point():
            out[name] = start.clone()
        elif first[name] != name:
            out[name] = out[first[name]]
        else:
            shares = [float(1 - coefficients[name].sum()), *coefficients[name].tolist()]
            terms = zip(shares, (start, *(theta[name] for theta in thetas)), strict=True)
            out[name] = sum(share * _precise(tensor, start) for share, tensor in terms if share).to(start.dtype)
    return out


def _shares(init: State, thetas: Sequence[State], weights: Sequence[float] | None) -> list[float]:
    """The weights, equal ones by default.  Raises ValueError unless all policies are of one architecture."""
    if not thetas:
        raise ValueError("merging: no policy to merge; allowed: one or more")
    if weights is not None and len(weights) != len(thetas):
        raise ValueError(f"merging: {len(weights)} weights for {len(thetas)} policies; allowed: one each")
    for theta in thetas:
        if theta.keys() != init.keys() or any(theta[name].shape != init[name].shape for name in init):
            raise ValueError("merging: other names or shapes than θ_init's; allowed: policies of one architecture")
    return [1 / len(thetas)] * len(thetas) if weights is None else [float(weight) for weight in weights]
