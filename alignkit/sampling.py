"""Plain sampling at temperature 1 and the log-probs of what was sampled.

Everything that reports a KL samples and scores with the same distribution: no top-k, no top-p, no
temperature, no minimal length; any of them would bias the KL.  Models must be in evaluation mode, as dropout is noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from alignkit.decoding import decode_tokens
from alignkit.kl import kl_estimates, token_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BLOCK = 512
"""Rows whose prompts are read together."""


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (1 real, 0 padding), each (rows, longest), padded on the left."""
    ids, mask = pad_right([row[::-1] for row in map(list, rows)], pad_id)
    return ids.flip(1), mask.flip(1)


def pad_right(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """As `pad_left`, with the padding on the right."""
    longest = max(map(len, rows))
    ids, mask = np.full((len(rows), longest), pad_id), np.zeros((len(rows), longest), dtype=int)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def by_length(rows: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """The positions of rows of tokens in batches, rows of like length together, so that little is padded."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


def distinct(prompt_ids: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, ...]:
    """Ids and mask of the prompts without repetition, (prompts, longest), padded on the left; which of them each row
    has, (rows,)."""
    places = {prompt: i for i, prompt in enumerate(dict.fromkeys(map(tuple, prompt_ids)))}
    which = torch.tensor([places[tuple(prompt)] for prompt in prompt_ids])
    return tuple(t.to(device) for t in (*pad_left(list(places), 0), which))  # the mask hides the padding's id


def completion_logits(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    parts: Iterable[Sequence[int]],
) -> Iterator[torch.Tensor]:
    """For each part of the rows, the logits that predict its completion tokens, (rows, longest, vocabulary), float32.

    The first ones predict the first completion token; those behind a completion's end mean nothing.  A prompt is read
    once, however many rows and parts it has.
    """
    ids, mask, which = distinct(prompt_ids, model.device)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    read = model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=1, use_cache=True)
    for part in parts:
        own = which[part]
        tokens, real = (t.to(model.device) for t in pad_right([completion_ids[i][:-1] for i in part], 0))
        logits = read.logits[own].float()
        if tokens.shape[1]:
            layers = [(layer.keys[own], layer.values[own]) for layer in read.past_key_values.layers]
            later = model(
                tokens,
                attention_mask=torch.cat([mask[own], torch.ones_like(tokens)], dim=1),
                position_ids=positions[own, -1:] + real.cumsum(dim=1),  # padding takes no further position
                past_key_values=type(read.past_key_values)(layers, model.config),
            ).logits
            logits = torch.cat([logits, later.float()], dim=1)
            del later, layers
        yield logits


def blocks(model: PreTrainedModel, completion_ids: Sequence[Sequence[int]]) -> Iterator[tuple[slice, list[list[int]]]]:
    """Blocks of rows, each with its parts: positions in it, of completions of like length, at most `rows_at_once`."""
    at_once = rows_at_once(model, completion_ids)
    for start in range(0, len(completion_ids), BLOCK):
        block = slice(start, start + BLOCK)
        yield block, list(by_length(completion_ids[block], at_once))


def rows_at_once(model: PreTrainedModel, completion_ids: Sequence[Sequence[int]]) -> int:
    """How many rows have logits of about a quarter of a gigabyte together (float32): 4 to 128."""
    longest = max(map(len, completion_ids), default=1)
    return max(4, min(128, 2**26 // (max(1, longest) * model.config.vocab_size)))


@torch.no_grad()
def sequence_log_probs(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
) -> np.ndarray:
    """log p(completion | prompt), the sum over the completion's tokens in nats, float64, shape (rows,).

    Raises ValueError if a prompt has no token: nothing would say how likely the completion's first one is.
    """
    if not all(map(len, prompt_ids)):
        raise ValueError("a prompt needs at least one token")
    prompt_ids, completion_ids = list(prompt_ids), list(completion_ids)
    out = np.zeros(len(completion_ids))
    for block, parts in blocks(model, completion_ids):
        completions = completion_ids[block]
        for part, logits in zip(parts, completion_logits(model, prompt_ids[block], completions, parts), strict=True):
            tokens, mask = (t.to(model.device) for t in pad_right([completions[i] for i in part], 0))
            out[block][part] = (token_log_probs(logits, tokens).double() * mask).sum(dim=1).cpu().numpy()
    return out


@torch.no_grad()
def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str] | list[list[int]],
    *,
    k: int,
    max_new_tokens: int,
    seed: int,
    batch: int = 512,
    bias: dict[int, float] | None = None,
    greedy: bool = False,
) -> pd.DataFrame:
    """k completions of each prompt (a text or token ids) by plain sampling at temperature 1, rows in prompt order.

    `bias` adds to the logits of single tokens, id -> nats; `greedy` takes the likeliest token at each step, which is no
    sample.  Columns prompt, completion, prompt_ids, completion_ids (with the first end-of-text token, if one was
    drawn) and finished.
    """
    each = tokenizer(texts)["input_ids"] if isinstance(texts[0], str) else texts
    if not all(map(len, each)):
        raise ValueError("a prompt needs at least one token")
    prompt_ids = [list(ids) for ids in each for _ in range(k)]
    how = {"new": max_new_tokens, "end": tokenizer.eos_token_id, "bias": bias_of(model, bias), "greedy": greedy}
    rows = []
    # torch's global random state is left as it was, so that sampling in a cell changes nothing after it.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompt_ids), batch):
            some = prompt_ids[start : start + batch]
            drawn = decode_tokens(model, *distinct(some, model.device), **how).tolist()
            for prompt, completion in zip(some, drawn, strict=True):
                rows.append((prompt, *_until_end(completion, tokenizer.eos_token_id)))
    out = pd.DataFrame(rows, columns=["prompt_ids", "completion_ids", "finished"])
    out.insert(0, "completion", decode(out.completion_ids.tolist(), tokenizer))
    out.insert(0, "prompt", [text for text in texts for _ in range(k)])
    return out


def _until_end(ids: list[int], end: int) -> tuple[list[int], bool]:
    return (ids[: ids.index(end) + 1], True) if end in ids else (ids, False)


def full_texts(samples: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Prompt and completion as one text each, decoded together."""
    return decode([[*p, *c] for p, c in zip(samples.prompt_ids, samples.completion_ids, strict=True)], tokenizer)


def decode(rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts without end and padding; unknown words are kept, since a sentence without them may mean the opposite."""
    hidden = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id} | {tokenizer.eos_token_id}
    return tokenizer.batch_decode([[i for i in row if i not in hidden] for row in rows])


@torch.no_grad()
def sequence_kl(
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    policy_prompt_ids: list[list[int]],
    ref_prompt_ids: list[list[int]],
    completion_ids: list[list[int]],
    bias: dict[int, float] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """KL(π ‖ π_ref) along completions sampled from π, exact at each step, and its k1 estimate; (rows,) each, nats.

    The two may see different prompts, of a token at least; bias (id -> nats) is added to the policy's logits.
    """
    completion_ids = list(completion_ids)
    policy_prompt_ids, ref_prompt_ids = list(policy_prompt_ids), list(ref_prompt_ids)
    out = np.zeros((2, len(completion_ids)))
    added = bias_of(policy, bias)
    for block, parts in blocks(policy, completion_ids):
        completions = completion_ids[block]
        policys = completion_logits(policy, policy_prompt_ids[block], completions, parts)
        references = completion_logits(reference, ref_prompt_ids[block], completions, parts)
        for part, of_policy, of_reference in zip(parts, policys, references, strict=True):
            tokens, mask = (t.to(policy.device) for t in pad_right([completions[i] for i in part], 0))
            estimates = kl_estimates(of_policy + added, of_reference, tokens, mask)
            out[:, block][:, part] = torch.stack([estimates["exact"], estimates["k1"]]).double().cpu().numpy()
    return out[0], out[1]


def bias_of(model: PreTrainedModel, bias: dict[int, float] | None) -> torch.Tensor:
    """What is added to the logits of each token, (vocabulary,)."""
    added = torch.zeros(model.config.vocab_size, device=model.device)
    added[list(bias or {})] = torch.tensor(list((bias or {}).values()), device=model.device)
    return added
