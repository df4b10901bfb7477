"""Credit by sentence: where the sentences of completions begin, and the reward of the text before each of them."""

from collections.abc import Callable

import pandas as pd
import torch
from transformers import PreTrainedTokenizerBase

from alignkit.sampling import decode

SENTENCE_ENDS = (".", "!", "?")


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
