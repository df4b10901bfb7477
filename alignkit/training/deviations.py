"""What earlier reports computed in place of the definitions, kept here to measure what it does.

Functions of scores take a divergence and the log-probs of chosen and rejected under policy and reference, (batch,)
each, and return the two scores, in place of f'(π_w/ρ_w) and f'(π_l/ρ_l).  The others change the policy-gradient loop.
Notebooks 2 to 4 train with them; nothing else should.
"""

from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import PreTrainedModel

from alignkit.divergences import Divergence
from alignkit.faults import UserFault
from alignkit.kl import token_log_probs
from alignkit.policy_gradient import Terms
from alignkit.sampling import pad_left, sample
from alignkit.training.reinforce import SENTENCE, LoopSettings, all_terms, policy_gradient_loop

Pair = tuple[torch.Tensor, torch.Tensor]


def policy_to_reference(div: Divergence, policy: Pair, reference: Pair) -> Pair:
    """The definition: f'(π/ρ) of each response (Wang et al. 2024, equation 7), zero at π = ρ."""
    return div.centred_score(policy[0] - reference[0]), div.centred_score(policy[1] - reference[1])


def chosen_to_rejected(div: Divergence, policy: Pair, reference: Pair) -> Pair:
    """f'(π_w/π_l) against f'(ρ_w/ρ_l): the same for reverse KL, something else for every other divergence."""
    return div.centred_score(policy[0] - policy[1]), div.centred_score(reference[0] - reference[1])


def one_object(div: Divergence, policy: Pair, reference: Pair) -> Pair:
    """Policy and reference are one object: every ratio is 1, whatever was trained; only the gradient is left."""
    return policy_to_reference(div, policy, (policy[0].detach(), policy[1].detach()))


def detached(div: Divergence, policy: Pair, reference: Pair) -> Pair:
    """Scores rebuilt as new tensors, which cuts them from the policy: the gradient is zero."""
    chosen, rejected = policy_to_reference(div, policy, reference)
    return chosen.detach() + 0 * policy[0], rejected.detach() + 0 * policy[1]


SCORES = {function.__name__: function for function in (policy_to_reference, chosen_to_rejected, one_object, detached)}


def train_greedily(out: Path, settings: LoopSettings, **inputs: Any) -> dict[str, Any]:
    """`reinforce.train_policy_gradient` with greedy decoding: all k completions of a prompt are the same.

    REINFORCE's gradient is a mean over draws from the policy, which this is not.
    """
    return policy_gradient_loop(out, settings, **inputs, draw=partial(sample, greedy=True), credited=all_terms)


def train_on_token_means(out: Path, settings: LoopSettings, **inputs: Any) -> dict[str, Any]:
    """`reinforce.train_policy_gradient` with `mean_with_prompt` in place of the completion's log-prob.

    Raises UserFault with credit by sentence or the exact KL, since single tokens are not known here.
    """
    if settings.exact_kl or settings.baseline == SENTENCE:
        raise UserFault(f"token means: with exact_kl or the baseline {SENTENCE!r}; allowed: neither of them")
    return policy_gradient_loop(out, settings, **inputs, draw=sample, credited=mean_with_prompt)


def mean_with_prompt(model: PreTrainedModel, anchored: PreTrainedModel, samples: pd.DataFrame, _: Terms) -> Terms:
    """The mean log-prob of a token, those of the prompt among them, in place of the completion's sum.

    Terms of one token a completion, (batch, 1), nats a token; only `own` is differentiable.
    """
    rows = [[*p, *c] for p, c in zip(samples.prompt_ids, samples.completion_ids, strict=True)]
    ids, mask = (t.to(model.device) for t in pad_left(rows, 0))
    # A token counts if the one before it is real: the first of a text has nothing to be predicted from.
    counted = mask[:, :-1] * mask[:, 1:]

    def mean(of: PreTrainedModel) -> torch.Tensor:
        log_probs = token_log_probs(logits_of(of, ids, mask)[:, :-1], ids[:, 1:])
        return (log_probs * counted).sum(dim=1, keepdim=True) / counted.sum(dim=1, keepdim=True)

    own = mean(model)
    with torch.no_grad():
        return {"own": own, "k1": own - mean(anchored), "mask": torch.ones_like(own)}


def logits_of(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Logits after each token of texts padded on the left, (batch, length, vocabulary), float32.

    ids and mask are (batch, length).  Positions count real tokens only: GPT-2 would take padding for words.
    """
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return model(ids, attention_mask=mask, position_ids=positions, use_cache=False).logits.float()
