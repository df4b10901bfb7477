"""Who is credited for a reward: every token of a completion alike, or each sentence for what it adds.

One number for a whole completion is Algorithm 1 as published.  Here that number may differ from token to token: the
expected gradient of E[r] - β KL stays what it is (under any baseline but "mean"), the noise does not.
"""

from collections.abc import Callable

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from alignkit.policy_gradient import Terms, advantages
from alignkit.sampling import decode

SENTENCE_ENDS = (".", "!", "?")


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
    prompt.

    Without values: the `advantages` of r - β KL for all tokens alike; with k = 1 their baseline is taken over the whole
    batch.  With values V(t), the reward of the text before the token's sentence (`values_before`):
    r - V(t) - β Σ_{s >= t} log-ratio(s), less the mean of the same quantity over the batch's other completions at that
    position.  What was written before a token cannot depend on it, so nothing that is subtracted here changes the
    expected gradient.

    The KL is k1, or with exact_kl the sum of exact steps, to which the caller adds β times its own gradient: the sum
    over steps of what a step changes at once and of what it changes later (product rule).
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


def sentence_ends(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The tokens that end a sentence."""
    return {i for i in range(len(tokenizer)) if tokenizer.decode([i]).strip().endswith(SENTENCE_ENDS)}


def sentence_starts(samples: pd.DataFrame, ends: set[int]) -> list[list[int]]:
    """The positions at which each completion's sentences begin, the first at 0; `ends` are tokens that end one."""
    return [
        [0, *(t + 1 for t, token in enumerate(completion[:-1]) if token in ends)]
        for completion in samples.completion_ids
    ]


def values_before(
    samples: pd.DataFrame, starts: list[list[int]], tokenizer: PreTrainedTokenizerBase, read: Callable
) -> torch.Tensor:
    """The reward of the text before each token's sentence, (batch, longest completion), float64.

    In a completion's first sentence that text is the prompt.  `read` maps texts to rewards, (texts,).
    """
    rows = list(zip(samples.prompt_ids, samples.completion_ids, starts, strict=True))
    before = [list(p) + list(c[:start]) for p, c, here in rows for start in here]
    rewards = read(decode(before, tokenizer))
    values = torch.zeros(len(samples), max(map(len, samples.completion_ids)), dtype=torch.float64)
    places = [(row, start) for row, here in enumerate(starts) for start in here]
    for (row, start), value in zip(places, rewards, strict=True):
        values[row, start:] = value
    return values
