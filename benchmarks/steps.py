"""What a step takes at the published sizes of GPT-2 and DistilBERT and the batches of profile imdb.

Matrix products and kept activations are counted on the device "meta", where tensors have shapes alone, so the batches
are the profile's own; core seconds are those of the same step at a small batch, times the ratio of the products.
"""

import time
from collections.abc import Callable
from typing import NamedTuple
from unittest.mock import patch

import pandas as pd
import torch
from standins import PIECES
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode
from transformers import DistilBertConfig, DistilBertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from alignkit import paths
from alignkit.policy_gradient import token_terms
from alignkit.training.dpo import sequence_logps
from alignkit.training.reward import all_pairs_loss
from alignkit.workflow import parameters

P = parameters.load(paths.PARAMS / "imdb" / "5_improvements.yaml")
PROMPT, DRAWN = 10, 512
"""Tokens of a prompt, on average; completions that are drawn at a time."""
TRANSIENT = 3
"""Tensors as large as the logits that live for a moment, beside those that are kept for the gradient."""
LEARNING = 4
"""Times its weights: a model that learns has a gradient and AdamW's two moments as well."""
Shape = dict[str, int]


class Models(NamedTuple):
    """The policy, another one of its shape, and the reward model."""

    policy: GPT2LMHeadModel
    anchor: GPT2LMHeadModel
    reward: DistilBertForSequenceClassification


def models(device: str, policy: Shape, reward: Shape) -> Models:
    """Random weights, dropout off as in the policy's own training; of the published sizes, or smaller."""
    with torch.device(device):
        pair = [GPT2LMHeadModel(GPT2Config(**policy)).eval() for _ in range(2)]
        head = DistilBertForSequenceClassification(DistilBertConfig(**{"vocab_size": PIECES, **reward}, num_labels=1))
    return Models(*pair, head.eval())


def ids(m: Models, rows: int, tokens: int) -> torch.Tensor:
    return torch.ones(rows, tokens, dtype=torch.long, device=m.policy.device)


@torch.no_grad()
def looked_at(m: Models, batch: int, policies: int) -> None:
    """Completions drawn (as many products as reading them), read by further policies, and scored."""
    for _ in range(1 + policies):
        m.policy(ids(m, batch, PROMPT + P.new_tokens), use_cache=False)
    m.reward(ids(m, batch, PROMPT + P.new_tokens))


def gradient(m: Models, batch: int) -> torch.Tensor:
    """The policy gradient; the batch counts completions."""
    looked_at(m, batch, 0)
    prompts = [[i] * PROMPT for i in range(batch)]  # no prompt twice
    samples = pd.DataFrame({"prompt_ids": prompts, "completion_ids": [[1] * P.new_tokens] * batch})
    return token_terms(m.policy, m.anchor, samples)["own"].sum()


def pairs(m: Models, batch: int) -> torch.Tensor:
    """DPO; the batch counts pairs."""
    both = ids(m, 2 * batch, PROMPT + P.new_tokens)
    return sequence_logps(m.policy, both, torch.ones_like(both), torch.ones_like(both)).sum()


def texts(m: Models, batch: int) -> torch.Tensor:
    """Fine-tuning on reviews, cut to `sft_tokens`."""
    rows = ids(m, batch, P.sft_tokens)
    return m.policy(rows, labels=rows).loss


def reviews(m: Models, batch: int) -> torch.Tensor:
    """The reward model; half of the reviews are positive."""
    return all_pairs_loss(*m.reward(ids(m, batch, P.reward_tokens)).logits.squeeze(-1).chunk(2))


def drawn(m: Models, batch: int) -> None:
    """No training: completions are drawn and scored, and their KL is taken."""
    looked_at(m, batch, 2)


KINDS: dict[str, tuple[Callable[[Models, int], torch.Tensor | None], int, int]] = {
    "gradient": (gradient, 4, P.warp_batch),
    "pairs": (pairs, 2, P.dpo_batch),
    "texts": (texts, 2, P.sft_batch),
    "reviews": (reviews, 2, P.reward_batch),
    "drawn": (drawn, 4, DRAWN),
}
"""Each kind of step, the batch at which it is timed, and the profile's own."""


def counted(m: Models, step: Callable[[Models, int], torch.Tensor | None], batch: int) -> tuple[float, float, float]:
    """Core seconds, teraflop and GB kept for the gradient of a step."""
    kept, own = {}, {p.untyped_storage()._cdata for model in m for p in model.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage
        return tensor

    started = time.process_time()
    # Of a mask without values transformers must not ask whether it hides anything.
    with FlopCounterMode(display=False) as counter, patch("transformers.masking_utils.is_tracing", return_value=True):
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = step(m, batch)
        if loss is not None:
            loss.backward()
    size = sum(storage.nbytes() for name, storage in kept.items() if name not in own)
    return time.process_time() - started, counter.get_total_flops() / 1e12, size / 1e9


def gigabytes(m: Models, kind: str, batch: int) -> tuple[float, float]:
    """Models with what training adds to them; and what lives for a moment, all in float32."""
    policy, reward = (sum(p.nbytes for p in model.parameters()) / 1e9 for model in (m.policy, m.reward))
    held = {"gradient": (LEARNING + 2) * policy + reward, "reviews": LEARNING * reward, "drawn": 2 * policy + reward}
    width, layers = m.policy.config.n_embd, m.policy.config.n_layer
    # Keys and values of all positions; the logits of one.
    caches = 2 * layers * width * (2 * PROMPT + P.new_tokens) + TRANSIENT * m.policy.config.vocab_size
    tokens = {"gradient": P.new_tokens, "pairs": 2 * (PROMPT + P.new_tokens), "texts": P.sft_tokens}
    moment = {"drawn": 2 * caches, "reviews": 0}.get(kind, TRANSIENT * tokens.get(kind, 0) * m.policy.config.vocab_size)
    return held.get(kind, LEARNING * policy), 4 * batch * moment / 1e9


def measured(policy: Shape | None = None, reward: Shape | None = None) -> pd.DataFrame:
    """One row a kind of step, at the profile's batch."""
    of_shapes, here = (models(device, policy or {}, reward or {}) for device in ("meta", "cpu"))
    rows = []
    for kind, (step, small, whole) in KINDS.items():
        seconds, few, _ = counted(here, step, small)
        _, teraflop, kept = counted(of_shapes, step, whole)
        held, moment = gigabytes(of_shapes, kind, whole)
        rows.append((kind, whole, seconds * teraflop / few, teraflop, held, kept, moment, held + kept + moment))
    columns = "step batch core_seconds teraflop models_gb kept_gb moment_gb peak_gb".split()
    return pd.DataFrame(rows, columns=columns)
