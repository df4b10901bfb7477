"""Plain sampling at temperature 1 and the log-probs of what was sampled.

Everything that reports a KL samples and scores with the same distribution: no top-k, no top-p, no
temperature, no minimal length; any of them would bias the KL.
"""

import numpy as np
import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignkit.kl import kl_estimates


def pad_left(rows: list[list[int]], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask (1 real, 0 padding), each (rows, longest), padded on the left."""
    longest = max(len(row) for row in rows)
    ids = torch.tensor([[pad_id] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def token_log_probs(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """log p(token t | tokens before t), shape (batch, length - 1) for tokens 1...; differentiable.

    ids and mask are (batch, length); positions count real tokens only, since GPT-2 would otherwise
    count padding on the left as words.
    """
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    logits = model(ids, attention_mask=mask, position_ids=positions).logits[:, :-1]
    return torch.log_softmax(logits.float(), dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)


@torch.no_grad()
def sequence_log_probs(
    model: PreTrainedModel, prompt_ids: list[list[int]], completion_ids: list[list[int]], batch: int = 128
) -> np.ndarray:
    """log p(completion | prompt), the sum over the completion's tokens in nats, float64, shape (rows,).

    Raises ValueError if a prompt has no token: nothing would say how likely the completion's first one is.
    """
    if not all(map(len, prompt_ids)):
        raise ValueError("a prompt needs at least one token")
    rows = [p + c for p, c in zip(prompt_ids, completion_ids, strict=True)]
    by_length = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    out = np.zeros(len(rows))
    for start in range(0, len(rows), batch):
        some = by_length[start : start + batch]
        # The padding id is masked out, so any id serves.
        ids, mask = (t.to(model.device) for t in pad_left([rows[i] for i in some], 0))
        log_probs = token_log_probs(model, ids, mask)
        lengths = torch.tensor([len(completion_ids[i]) for i in some], device=model.device)
        columns = torch.arange(log_probs.shape[1], device=model.device)
        completion = columns[None] >= log_probs.shape[1] - lengths[:, None]
        out[some] = (log_probs.double() * completion).sum(dim=1).cpu().numpy()
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
) -> pd.DataFrame:
    """k completions of each prompt (a text or token ids) by plain sampling at temperature 1, rows in prompt order.

    `bias` adds to the logits of single tokens, id -> nats.  Columns prompt, completion, prompt_ids, completion_ids
    (with the first end-of-text token, if one was drawn) and finished.
    """
    each = tokenizer(texts)["input_ids"] if isinstance(texts[0], str) else texts
    prompt_ids = [list(ids) for ids in each for _ in range(k)]
    biased = {"sequence_bias": {(token,): value for token, value in bias.items()}} if bias else {}
    rows = []
    # The global stream is left as it was, so that sampling in a cell changes nothing after it.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for start in range(0, len(prompt_ids), batch):
            some = prompt_ids[start : start + batch]
            ids, mask = (t.to(model.device) for t in pad_left(some, tokenizer.pad_token_id))
            drawn = model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=tokenizer.eos_token_id,
                **biased,
            )
            for prompt, completion in zip(some, drawn[:, ids.shape[1] :].tolist(), strict=True):
                rows.append((prompt, *_until_end(completion, tokenizer.eos_token_id)))
    out = pd.DataFrame(rows, columns=["prompt_ids", "completion_ids", "finished"])
    out.insert(0, "completion", decode(out.completion_ids.tolist(), tokenizer))
    out.insert(0, "prompt", [text for text in texts for _ in range(k)])
    return out


def _until_end(ids: list[int], end: int) -> tuple[list[int], bool]:
    return (ids[: ids.index(end) + 1], True) if end in ids else (ids, False)


def full_texts(samples: pd.DataFrame, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Prompt and completion as one text each, decoded together."""
    ids = [p + c for p, c in zip(samples.prompt_ids.map(list), samples.completion_ids.map(list), strict=True)]
    return decode(ids, tokenizer)


def decode(rows: list[list[int]], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts without end and padding; an unknown word stays to be seen, for without it a sentence may turn round."""
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
    by_length = sorted(range(len(completion_ids)), key=lambda i: len(completion_ids[i]))
    for start in range(0, len(by_length), batch):
        some = by_length[start : start + batch]
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


def completion_logits(
    model: PreTrainedModel, prompt_ids: list[list[int]], completion_ids: list[list[int]]
) -> torch.Tensor:
    """Logits that predict each completion token, (rows, longest completion, vocabulary), aligned on the right."""
    rows = [p + c for p, c in zip(map(list, prompt_ids), map(list, completion_ids), strict=True)]
    ids, mask = (t.to(model.device) for t in pad_left(rows, 0))
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    longest = max(map(len, completion_ids))
    return model(ids, attention_mask=mask, position_ids=positions, logits_to_keep=longest + 1).logits[:, :-1].float()
