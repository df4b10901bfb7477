"""Drawing tokens one after the other: GPT-2's forward pass of one token, written out over a cache of fixed size.

`generate` spends more time around a small model than in it.  Here a prompt that is asked for several times is read
once, rows that have ended are dropped, and a token costs the model's own products and little else.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import gelu, layer_norm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

STILL = 0.75
"""Rows that have ended are dropped when no more than this share is still open: copying the cache costs too."""
GPT2_PARTS = set(
    "GPT2LMHeadModel GPT2Model GPT2Block GPT2Attention GPT2MLP Conv1D LayerNorm Embedding Linear Dropout ModuleList"
    " NewGELUActivation GELUTanh".split()
)
"""The modules of a GPT-2 without adapters."""


class NotFinite(ValueError):
    """A policy that has diverged: its weights may be finite, its logits are not."""


def is_known(model: PreTrainedModel) -> bool:
    """Whether `decode_gpt2` computes what the model does: GPT-2 as published, without adapters."""
    c = model.config
    return (
        {type(part).__name__ for part in model.modules()} <= GPT2_PARTS
        and c.activation_function in ("gelu_new", "gelu_pytorch_tanh")
        and c.scale_attn_weights
        and not (c.scale_attn_by_inverse_layer_idx or c.add_cross_attention or model.training)
    )


def decode_tokens(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    which: torch.Tensor,
    *,
    new: int,
    end: int,
    bias: torch.Tensor,
    greedy: bool = False,
) -> torch.Tensor:
    """Completions, (rows, at most new), filled up with `end` behind their first one, drawn at temperature 1.

    ids, mask: (prompts, length), padded on the left.  which: the prompt of each row, (rows,).  bias: added to all
    logits, (vocabulary,).  greedy: the likeliest token instead of a draw.  Raises NotFinite (a greedy GPT-2 does not).
    """
    if is_known(model):
        choose = partial(torch.argmax, dim=-1) if greedy else draw_token
        return decode_gpt2(model, ids, mask, which, new=new, end=end, bias=bias, choose=choose)
    settings = {"do_sample": False} if greedy else {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    settings |= {"attention_mask": mask[which], "max_new_tokens": new, "pad_token_id": end, "eos_token_id": end}
    own = model.generation_config
    # A checkpoint's own settings (a repetition penalty, say) would draw from another distribution.
    model.generation_config = type(own)()
    try:
        drawn = model.generate(ids[which], logits_processor=[lambda _, logits: _finite(logits) + bias], **settings)
    finally:
        model.generation_config = own
    return drawn[:, ids.shape[1] :]


def _finite(logits: torch.Tensor) -> torch.Tensor:
    if not logits.logsumexp(dim=-1).isfinite().all():
        raise NotFinite("the logits are not finite: this policy cannot be sampled")
    return logits


def draw_token(logits: torch.Tensor) -> torch.Tensor:
    """One token of each row by its probability: the first whose cumulative probability exceeds a uniform number.

    Raises NotFinite if a row has no probabilities.
    """
    cumulated = torch.softmax(logits, dim=-1).cumsum(dim=-1, dtype=torch.float64)
    if not cumulated[:, -1].isfinite().all():
        raise NotFinite("the logits are not finite: this policy cannot be sampled")
    chance = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, chance, right=True).squeeze(1).clamp(max=logits.shape[1] - 1)


@torch.inference_mode()
def decode_gpt2(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    which: torch.Tensor,
    *,
    new: int,
    end: int,
    bias: torch.Tensor,
    choose: Callable[[torch.Tensor], torch.Tensor],
) -> torch.Tensor:
    """`decode_tokens` for GPT-2; choose: logits (rows, vocabulary), float32 -> the next token of each row, (rows,)."""
    body, heads = model.transformer, model.config.n_head
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    read = model(ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=1)
    length = ids.shape[1]
    # Keys and values of each layer, (2, rows, heads, length + new, head width).
    caches = [
        torch.stack([torch.nn.functional.pad(t[which], (0, 0, 0, new)) for t in (layer.keys, layer.values)])
        for layer in read.past_key_values.layers
    ]
    hidden = torch.zeros(len(which), heads, 1, length + new, device=ids.device, dtype=caches[0].dtype)
    hidden[..., :length].masked_fill_(mask[which, None, None] == 0, -torch.inf)
    place, logits = positions[which, -1], read.logits[which, -1]
    out = torch.full((len(which), new), end, device=ids.device)
    still = torch.arange(len(which), device=ids.device)
    ended = torch.zeros_like(still, dtype=torch.bool)
    for step in range(new):
        tokens = choose(logits.float() + bias).masked_fill(ended, end)
        out[still, step] = tokens
        ended = tokens == end
        left = len(still) - int(ended.sum())
        if not left or step + 1 == new:
            break
        if left <= STILL * len(still):
            kept = (~ended).nonzero().squeeze(1)
            still, tokens, place, hidden, ended = still[kept], tokens[kept], place[kept], hidden[kept], ended[kept]
            caches = [cache.index_select(1, kept) for cache in caches]
        place = place + 1
        x = body.wte.weight[tokens] + body.wpe.weight[place]
        for block, cache in zip(body.h, caches, strict=True):
            x = _block(x, block, cache, hidden, length + step)
        logits = model.lm_head(body.ln_f(x))
    return out[:, : step + 1]


def _block(
    x: torch.Tensor, block: torch.nn.Module, cache: torch.Tensor, hidden: torch.Tensor, place: int
) -> torch.Tensor:
    """One layer for one token of each row, (rows, width), which is written into the cache at `place`."""
    attention, mlp = block.attn, block.mlp
    n = layer_norm(x, x.shape[1:], block.ln_1.weight, block.ln_1.bias, block.ln_1.eps)
    heads, width = cache.shape[2], cache.shape[4]
    q, k, v = torch.addmm(attention.c_attn.bias, n, attention.c_attn.weight).view(len(x), 3, heads, width).unbind(1)
    cache[0, :, :, place], cache[1, :, :, place] = k, v
    keys, values = cache.flatten(1, 2)[:, :, : place + 1]
    before = hidden.flatten(0, 1)[..., : place + 1]
    scores = torch.baddbmm(before, q.reshape(-1, 1, width), keys.transpose(1, 2), alpha=width**-0.5)
    seen = torch.bmm(torch.softmax(scores, dim=-1), values).view(len(x), -1)
    x = torch.addmm(attention.c_proj.bias, seen, attention.c_proj.weight) + x
    n = layer_norm(x, x.shape[1:], block.ln_2.weight, block.ln_2.bias, block.ln_2.eps)
    inner = gelu(torch.addmm(mlp.c_fc.bias, n, mlp.c_fc.weight), approximate="tanh")
    return torch.addmm(mlp.c_proj.bias, inner, mlp.c_proj.weight) + x
