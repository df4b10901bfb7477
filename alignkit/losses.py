"""Preference losses as pure functions of the scores of the chosen and the rejected responses.

A score is s = f'(π/π_ref); for reverse KL it is the log-ratio log π(y|x) - log π_ref(y|x), up to a constant, and
β times it is DPO's implicit reward.  Rafailov et al. 2023, "Direct Preference Optimization", equation 7; Wang et al.
2024 (f-DPO), equation 7.
"""

import inspect
from collections.abc import Callable

import torch
from torch.nn.functional import logsigmoid, relu

from alignkit.faults import UserFault

Scores = torch.Tensor


def sigmoid(chosen: Scores, rejected: Scores, *, beta: float) -> torch.Tensor:
    """-log σ(β(s_w - s_l)): DPO, Rafailov et al. 2023, equation 7."""
    return -logsigmoid(beta * (chosen - rejected))


def cdpo(chosen: Scores, rejected: Scores, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """Conservative DPO (Mitchell 2023): labels are flipped with probability ε; the loss has its minimum at finite h.

    -(1-ε) log σ(h) - ε log σ(-h), with h = β(s_w - s_l).
    """
    h = beta * (chosen - rejected)
    return -(1 - label_smoothing) * logsigmoid(h) - label_smoothing * logsigmoid(-h)


def robust(chosen: Scores, rejected: Scores, *, beta: float, label_smoothing: float) -> torch.Tensor:
    """Robust DPO (Chowdhury et al. 2024, equation 12): unbiased for the clean loss if labels flip with probability ε.

    (-(1-ε) log σ(h) + ε log σ(-h)) / (1 - 2ε), with h = β(s_w - s_l).
    """
    h = beta * (chosen - rejected)
    return (-(1 - label_smoothing) * logsigmoid(h) + label_smoothing * logsigmoid(-h)) / (1 - 2 * label_smoothing)


def hinge(chosen: Scores, rejected: Scores, *, beta: float) -> torch.Tensor:
    """max(0, 1 - β(s_w - s_l)): SLiC's loss on DPO's margin (Zhao et al. 2023; Liu et al. 2024, RSO, equation 10)."""
    return relu(1 - beta * (chosen - rejected))


def ipo(chosen: Scores, rejected: Scores, *, beta: float) -> torch.Tensor:
    """(s_w - s_l - 1/(2β))²: IPO on summed log-ratios, Azar et al. 2024, equation 17 (their τ is β)."""
    return (chosen - rejected - 1 / (2 * beta)) ** 2


def ipo_per_token(
    chosen: Scores, rejected: Scores, *, beta: float, chosen_tokens: torch.Tensor, rejected_tokens: torch.Tensor
) -> torch.Tensor:
    """IPO on scores divided by the response's length in tokens: TRL's "ipo", an average per token."""
    return ipo(chosen / chosen_tokens, rejected / rejected_tokens, beta=beta)


def kto_pair(chosen: Scores, rejected: Scores, *, beta: float) -> torch.Tensor:
    """KTO on pairs (Ethayarajh et al. 2024, equation 8): each response is valued against the other side's batch mean.

    The mean of 1 - σ(β(s_w - z_l)) and 1 - σ(β(z_w - s_l)); z is the batch mean of that side's scores, at least 0,
    and carries no gradient.  Scores must be zero at π = π_ref, as their level counts, not only their difference.
    """
    z_chosen, z_rejected = (side.mean().clamp(min=0).detach() for side in (chosen, rejected))
    desirable = 1 - torch.sigmoid(beta * (chosen - z_rejected))
    undesirable = 1 - torch.sigmoid(beta * (z_chosen - rejected))
    return (desirable + undesirable) / 2


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    function.__name__: function for function in (sigmoid, cdpo, hinge, ipo, ipo_per_token, kto_pair, robust)
}


def needs(name: str) -> tuple[str, ...]:
    """What a loss needs beside the scores and β: names among label_smoothing, chosen_tokens, rejected_tokens.

    Raises UserFault for an unknown name.
    """
    return tuple(inspect.signature(_named(name)).parameters)[3:]


def _named(name: str) -> Callable[..., torch.Tensor]:
    if name not in LOSSES:
        raise UserFault(f"loss: {name!r}; allowed: {', '.join(LOSSES)}")
    return LOSSES[name]


def preference_loss(name: str, chosen: Scores, rejected: Scores, *, beta: float, **settings) -> torch.Tensor:
    """The loss of this name for each pair, shape (batch,), nats; chosen and rejected are scores, each (batch,).

    `cdpo` and `robust` need label_smoothing in [0, 0.5), `ipo_per_token` needs chosen_tokens and rejected_tokens.
    Raises UserFault for an unknown name, beta <= 0, or label_smoothing out of range.
    """
    loss = _named(name)
    if not beta > 0:
        raise UserFault(f"beta: {beta}; allowed: a number > 0")
    if not 0 <= settings.get("label_smoothing", 0) < 0.5:
        raise UserFault(f"label_smoothing: {settings['label_smoothing']}; allowed: a number >= 0, < 0.5")
    return loss(chosen, rejected, beta=beta, **settings)
