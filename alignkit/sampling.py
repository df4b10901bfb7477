"""Plain sampling at temperature 1 and the log-probs of what was sampled.

Everything that reports a KL samples and scores with the same distribution: no top-k, no top-p, no
temperature, no minimal length; any of them would bias the KL.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from torch.nn.utils.rnn import pad_sequence

from alignkit.kl import kl_estimates, token_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def pad_left(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (1 real, 0 padding), each (rows, longest), padded on the left."""
    ids = [torch.tensor(list(row), dtype=torch.long) for row in rows]
    padded = {"batch_first": True, "padding_side": "left"}
    mask = pad_sequence([torch.ones_like(row) for row in ids], **padded)
    return pad_sequence(ids, padding_value=pad_id, **padded), mask


def by_length(rows: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """The positions of rows of tokens in batches, rows of like length together, so that little is padded."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch):
        yield order[start : start + batch]


def logits_of(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, keep: int = 0) -> torch.Tensor:
    """Logits after each token, or after the last `keep` ones, (batch, length or keep, vocabulary); float32.

    ids and mask are (batch, length).  Positions count real tokens only: GPT-2 would take padding on the left for words.
    """
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=keep).logits.float()


def completion_logits(
    model: PreTrainedModel, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
) -> torch.Tensor:
    """Logits that predict each completion token, (rows, longest completion, vocabulary), aligned on the right."""
    rows = [[*p, *c] for p, c in zip(prompt_ids, completion_ids, strict=True)]
    ids, mask = (t.to(model.device) for t in pad_left(rows, 0))  # the padding id is masked out, so any serves
    return logits_of(model, ids, mask, keep=max(map(len, completion_ids)) + 1)[:, :-1]


@torch.no_grad()
def sequence_log_probs(
    model: PreTrainedModel,
    prompt_ids: Sequence[Sequence[int]],
    completion_ids: Sequence[Sequence[int]],
    batch: int = 128,
) -> np.ndarray:
    """log p(completion | prompt), the sum over the completion's tokens in nats, float64, shape (rows,).

    Raises ValueError if a prompt has no token: nothing would say how likely the completion's first one is.
    """
    if not all(map(len, prompt_ids)):
        raise ValueError("a prompt needs at least one token")
    out = np.zeros(len(completion_ids))
    for some in by_length([[*p, *c] for p, c in zip(prompt_ids, completion_ids, strict=True)], batch):
        completions = [completion_ids[i] for i in some]
        tokens, mask = (t.to(model.device) for t in pad_left(completions, 0))
        log_probs = token_log_probs(completion_logits(model, [prompt_ids[i] for i in some], completions), tokens)
        out[some] = (log_probs.double() * mask).sum(dim=1).cpu().numpy()
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
    batch: int = 256,
    bias: dict[int, float] | None = None,
    greedy: bool = False,
) -> pd.DataFrame:
    """k completions of each prompt (a text or token ids) by plain sampling at temperature 1, rows in prompt order.

    `bias` adds to the logits of single tokens, id -> nats; `greedy` takes the likeliest token at each step, which is no
    sample.  Columns prompt, completion, prompt_ids, completion_ids (with the first end-of-text token, if one was
    drawn) and finished.
    """
    each = tokenizer(texts)["input_ids"] if isinstance(texts[0], str) else texts
    prompt_ids = [list(ids) for ids in each for _ in range(k)]
    biased = {"sequence_bias": {(token,): value for token, value in bias.items()}} if bias else {}
    plain = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    rows = []
    # The global stream is left as it was, so that sampling in a cell changes nothing after it.
    with torch.random.fork_rng(), plain_generation(model):
        torch.manual_seed(seed)
        for start in range(0, len(prompt_ids), batch):
            some = prompt_ids[start : start + batch]
            ids, mask = (t.to(model.device) for t in pad_left(some, tokenizer.pad_token_id))
            drawn = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **plain,
                **biased,
            )
            for prompt, completion in zip(some, drawn[:, ids.shape[1] :].tolist(), strict=True):
                rows.append((prompt, *_until_end(completion, tokenizer.eos_token_id)))
    out = pd.DataFrame(rows, columns=["prompt_ids", "completion_ids", "finished"])
    out.insert(0, "completion", decode(out.completion_ids.tolist(), tokenizer))
    out.insert(0, "prompt", [text for text in texts for _ in range(k)])
    return out


@contextlib.contextmanager
def plain_generation(model: PreTrainedModel) -> Iterator[None]:
    """A checkpoint's own generation settings (a repetition penalty, say) would draw from another distribution."""
    own = model.generation_config
    model.generation_config = type(own)()
    try:
        yield
    finally:
        model.generation_config = own


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

    The two may see different prompts; bias (id -> nats) is added to the policy's logits.
    """
    out = np.zeros((2, len(completion_ids)))
    added = torch.zeros(policy.config.vocab_size, device=policy.device)
    added[list(bias or {})] = torch.tensor(list((bias or {}).values()), device=policy.device)
    # The logits of a batch of two models: at most about half a gigabyte.
    batch = max(4, min(256, 2**26 // (64 * policy.config.vocab_size)))
    for some in by_length(completion_ids, batch):
        completions = [completion_ids[i] for i in some]
        tokens, mask = (t.to(policy.device) for t in pad_left(completions, 0))
        estimates = kl_estimates(
            completion_logits(policy, [policy_prompt_ids[i] for i in some], completions) + added,
            completion_logits(reference, [ref_prompt_ids[i] for i in some], completions),
            tokens,
            mask,
        )
        out[:, some] = torch.stack([estimates["exact"], estimates["k1"]]).double().cpu().numpy()
    return out[0], out[1]
