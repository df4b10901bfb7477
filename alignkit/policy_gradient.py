"""The policy gradient: what a completion's reward is compared with, who is credited for it, and sums over its tokens.

One number for a whole completion is Algorithm 1 of WARP as published.  With credit by sentence that number differs from
token to token: the expected gradient of E[r] - β KL stays what it is (under any baseline but "mean"), the noise falls.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.nn.functional import pad

from alignkit.faults import UserFault
from alignkit.kl import picked, step_kl
from alignkit.sampling import by_length, completion_logits, pad_right, rows_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASELINES = ("none", "mean", "rloo")
PARTS = 3
"""Forward passes that a batch is split into, by length of completion."""

Terms = dict[str, torch.Tensor]


def advantages(rewards: torch.Tensor, baseline: str) -> torch.Tensor:
    """Rewards (prompts, k) less a baseline, same shape.

    "none": the rewards as they are.  "mean": less the mean of the prompt's samples, each itself included, which shrinks
    the expected gradient to (k-1)/k.  "rloo": less the mean of the prompt's k-1 other samples, which leaves it as it is
    (Ahmadian et al. 2024, "Back to Basics", section 3.2).

    Raises UserFault for another baseline, and for "rloo" with k = 1, where there is no other sample.
    """
    if baseline not in BASELINES:
        raise UserFault(f"baseline: {baseline!r}; allowed: {', '.join(BASELINES)}")
    k = rewards.shape[1]
    if baseline == "rloo" and k < 2:
        raise UserFault(f"baseline: 'rloo' with {k} sample a prompt; allowed: 2 or more samples")
    if baseline == "none":
        return rewards
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    return centred * k / (k - 1) if baseline == "rloo" else centred


def reinforce_loss(log_probs: torch.Tensor, advantage: torch.Tensor) -> torch.Tensor:
    """-mean(A log π(y|x)), with REINFORCE's gradient (Williams 1992); no gradient flows through A.

    Both are (batch,), or (batch, tokens) of single tokens, which are summed over each completion.
    """
    weighted = advantage.detach() * log_probs
    return -weighted.view(len(weighted), -1).sum(dim=1).mean()


def completion_sums(
    model: PreTrainedModel, anchored: PreTrainedModel, samples: pd.DataFrame
) -> tuple[torch.Tensor, Terms]:
    """log π(completion | prompt), (batch,) and differentiable, and the `kl_estimates` to the anchor, (batch,) each.

    Sums of `token_terms`, and its entropy.
    """
    terms = token_terms(model, anchored, samples)
    entropy, _ = terms.pop("entropy"), terms.pop("mask")
    sums = {name: values.sum(dim=1) for name, values in terms.items()}
    return sums.pop("own"), {**sums, "entropy": entropy}


def token_terms(
    model: PreTrainedModel, anchored: PreTrainedModel, samples: pd.DataFrame, *, differentiable_kl: bool = False
) -> Terms:
    """Of each token of each completion, (batch, longest completion), from its first token on, 0 after its end:

    own, log π (differentiable); the `token_kl` to the anchor, differentiable if asked for; mask.  Also entropy,
    (batch,), that of the next token, averaged over the completion.  In nats.  The end of a text is one of its tokens;
    the prompt does not count, and left padding gets no position.
    """
    prompt_ids, completion_ids = samples.prompt_ids.tolist(), samples.completion_ids.tolist()
    # Short completions apart from long ones: less padding.  On a GPU another pass costs more than padding does.
    size = -(-len(samples) // (1 if model.device.type == "cuda" else PARTS))
    parts = list(by_length(completion_ids, min(size, rows_at_once(model, completion_ids))))
    longest = max(map(len, completion_ids))
    given = []
    of_policy, of_anchor = (completion_logits(m, prompt_ids, completion_ids, parts) for m in (model, anchored))
    for part, logits in zip(parts, of_policy, strict=True):
        tokens, mask = (t.to(model.device) for t in pad_right([completion_ids[i] for i in part], 0))
        log_pi = torch.log_softmax(logits, dim=-1)
        with torch.no_grad():
            log_anchor = torch.log_softmax(next(of_anchor), dim=-1)
            entropy = -(log_pi.exp() * log_pi).sum(dim=-1)
        with torch.set_grad_enabled(differentiable_kl):
            against = step_kl(log_pi, log_anchor, tokens)
        terms = {"own": picked(log_pi, tokens), **against, "entropy": entropy, "mask": torch.ones_like(mask)}
        given.append({name: pad(values * mask, (0, longest - mask.shape[1])) for name, values in terms.items()})
    back = torch.tensor(np.argsort(np.concatenate(parts)), device=model.device)
    whole = {name: torch.cat([terms[name] for terms in given])[back] for name in given[0]}
    whole["entropy"] = whole["entropy"].sum(dim=1) / whole["mask"].sum(dim=1)
    return whole


def token_advantages(
    rewards: torch.Tensor,
    terms: Terms,
    *,
    beta: float,
    baseline: str = "rloo",
    k: int = 1,
    values: torch.Tensor | None = None,
    exact_kl: bool = False,
) -> torch.Tensor:
    """What each token is credited with, (batch, longest completion), float64, on the CPU; rewards are (batch,), k to a
    prompt, one after the other.

    Without values: the `advantages` of r - β KL for all tokens alike; with k = 1 their baseline is taken over the whole
    batch.  With values V(t), the reward of the text before the token's sentence (`training.credit.values_before`):
    r - V(t) - β Σ_{s >= t} log-ratio(s), less the mean of the same quantity over the batch's other completions at that
    position; baseline and k play no part.  What was written before a token cannot depend on it, so nothing that is
    subtracted here changes the expected gradient.

    The KL is k1, or with exact_kl the sum of the steps' exact KLs.  Then β times the mean of that sum belongs to the
    loss, from terms with differentiable_kl: weights change a step's exact KL directly, and not by the prefixes alone.
    """
    kl, mask = terms["exact" if exact_kl else "k1"].detach().double().cpu(), terms["mask"].cpu()
    if values is None:
        penalised = rewards - beta * kl.sum(dim=1)
        groups = penalised.view(-1, k) if k > 1 else penalised.view(1, -1)
        return advantages(groups, baseline).view(-1, 1) * mask
    to_go = kl.flip(1).cumsum(1).flip(1)
    gains = (rewards[:, None] - values - beta * to_go) * mask
    others = (gains.sum(dim=0) - gains) / (mask.sum(dim=0) - 1).clamp(min=1)
    return (gains - others) * mask
