"""Whether a model from elsewhere can do what training asks of it, tried once: else one line says what it lacks.

No training function reaches this.
"""

import tempfile
from collections.abc import Iterator

import peft
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignkit.faults import UserFault
from alignkit.sampling import pad_right, sample, sequence_log_probs
from alignkit.world.models import load_encoder, load_policy, quiet_training
from alignkit.world.own import SPECIAL
from alignkit.world.reach import first_line

TEXTS = ["a", "the film was good", "one two three four five six seven eight nine ten , and the end was bad ."]
OF_HEADS = "; a reward model's head has one output"
"""The end of `load_policy`'s fault about weights that do not fit; left out where the model is a policy."""
CLOSE = 1e-4
"""How far a padded text may score from the same text alone, as a share of the score or of the spread of scores."""


def check_policy(name: str, *, sft_tokens: int, new_tokens: int, prefix: str, lora: bool) -> None:
    """Raise UserFault unless drawing, scoring and fine-tuning do what they should.

    sft_tokens, new_tokens: as in the parameters.  prefix: put before a prompt.  lora: whether adapters are trained.
    """
    with quiet_training():
        try:
            model, tokenizer = load_policy(name)
        except UserFault as fault:
            raise UserFault(str(fault).replace(OF_HEADS, "")) from None
        _first(f"policy: {name!r}", _lacking(name, AutoModelForCausalLM, type(model)))
        _first(f"policy: {name!r}", _of_policy(model, tokenizer, sft_tokens, new_tokens, prefix, lora))


def check_encoder(name: str, *, tokens: int, dropout: float) -> None:
    """Raise UserFault unless a text of so many tokens can be scored, and scores in a padded batch as it does alone."""
    with quiet_training(), torch.random.fork_rng():  # a fresh head is drawn
        model, tokenizer = load_encoder(name, dropout)
        _first(f"reward_model: {name!r}", _lacking(name, AutoModelForSequenceClassification, type(model)))
        _first(f"reward_model: {name!r}", _of_encoder(model, tokenizer, tokens))


def spelt(name: str, texts: list[str]) -> str:
    """A special token of the model's tokenizer that it reads in a text which spells it; "" if there is none."""
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    for i, token in tokenizer.added_tokens_decoder.items():
        # Of what SPECIAL finds, `own.read` has left none.
        near = [t for t in texts if str(token) in t] if token.special and not SPECIAL.search(str(token)) else []
        if any(i in tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"] for t in near):
            return str(token)
    return ""


def _first(name: str, faults: Iterator[str]) -> None:
    """Raise the first fault."""
    try:
        found = next(faults, "")
    except Exception as error:  # whatever a model of another kind makes the libraries raise
        found = f"cannot do what training asks of it ({first_line(error)}); allowed: a transformer of the usual kind"
    if found:
        raise UserFault(f"{name} {found}")


@torch.no_grad()
def _of_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sft_tokens: int,
    new_tokens: int,
    prefix: str,
    lora: bool,
) -> Iterator[str]:
    """What is wrong with a policy, in words."""
    if not tokenizer.is_fast:
        yield "has a tokenizer that does not tell where its tokens stand; allowed: a fast one (tokenizer.json)"
    if tokenizer.eos_token_id is None:
        yield "has no end-of-text token; allowed: one named eos_token in tokenizer_config.json"
    yield from _vocabulary(model, tokenizer)
    bare, whole = (tokenizer(TEXTS[2], add_special_tokens=own)["input_ids"] for own in (False, True))
    if whole[-len(bare) :] != bare:
        added = tokenizer.decode(whole[-1:])
        yield (
            f"has a tokenizer that puts {added!r} behind each text, so that a prompt is over; set add_eos_token to "
            "false in tokenizer_config.json, or take it out of post_processor in tokenizer.json"
        )
    start = 20 + len(tokenizer(prefix)["input_ids"]) + len(whole) - len(bare)
    yield from _positions(model, max(sft_tokens, start + new_tokens), f"sft_tokens: {sft_tokens}, or new_tokens: "
                          f"{new_tokens} behind {start} of a prompt")  # fmt: skip
    config = model.config.get_text_config()
    if hasattr(config, "output_router_logits") and (
        config.output_router_logits or getattr(config, "router_aux_loss_coef", 0)
    ):
        yield (
            "is a mixture of experts whose router adds a loss of its own; set router_aux_loss_coef to 0.0 and "
            "output_router_logits to false in its config.json"
        )
    for key in ("bos_token_id", "eos_token_id", "pad_token_id"):  # as a trainer sets them
        setattr(model.generation_config, key, getattr(tokenizer, key))
    try:
        with tempfile.TemporaryDirectory() as folder:
            model.generation_config.save_pretrained(folder)
    except ValueError as error:
        said = " ".join(str(error).split())[:90]
        yield f"has a generation_config.json that cannot be saved after training ({said} ...); take that file away"
    prompts = [ids[:20] for ids in tokenizer(TEXTS)["input_ids"]]
    drawn = sample(model, tokenizer, prompts, k=1, max_new_tokens=min(8, new_tokens), seed=0, greedy=True)
    completions = drawn.completion_ids.tolist()
    rows = [[*prompt, *completion] for prompt, completion in zip(prompts, completions, strict=True)]
    alone = [model(torch.tensor([row], device=model.device)).logits[0].log_softmax(dim=-1) for row in rows]
    ids, mask = (t.to(model.device) for t in pad_right(rows, tokenizer.pad_token_id))
    padded = model(ids, attention_mask=mask, use_cache=False).logits.log_softmax(dim=-1)
    scored = torch.tensor(sequence_log_probs(model, prompts, completions))
    for i, (prompt, row) in enumerate(zip(prompts, rows, strict=True)):
        told, places = alone[i][len(prompt) - 1 : -1], torch.tensor(row[len(prompt) :], device=model.device)
        own = told.gather(1, places[:, None])
        if not alone[i].isfinite().all():
            yield "gives log-probs that are not finite"
        if _far(padded[i, : len(row)], alone[i]) or _far(scored[i], own.double().sum().cpu()):
            yield "scores a text otherwise in a padded batch than alone; allowed: one that padding does not move"
        if _far(own[:, 0], told.max(dim=1).values):
            yield "draws tokens by other probabilities than it scores them with"
    if lora:
        peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear"))


@torch.no_grad()
def _of_encoder(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: int) -> Iterator[str]:
    """What is wrong with an encoder, in words."""
    if tokenizer.pad_token_id is None:
        yield "has no padding token; allowed: one named pad_token in tokenizer_config.json and config.json"
    yield from _vocabulary(model, tokenizer)
    yield from _positions(model, tokens, f"reward_tokens: {tokens}")
    longest = tokenizer(" ".join(TEXTS[2:] * tokens), verbose=False)["input_ids"][:tokens]
    try:
        model(torch.tensor([longest], device=model.device))
    except (IndexError, RuntimeError) as error:
        yield f"cannot read texts of reward_tokens: {tokens} ({first_line(error)}); allowed: less"
    rows = [row[:tokens] for row in tokenizer(TEXTS)["input_ids"]]
    together = model(**tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)).logits
    alone = torch.cat([model(torch.tensor([row], device=model.device)).logits for row in rows])
    if _far(together, alone, float(alone.std())):
        yield "scores a text otherwise with padding behind it than alone; allowed: one that padding does not move"


def _lacking(name: str, auto: type, kind: type[PreTrainedModel]) -> Iterator[str]:
    """Whether weights are missing that its config.json asks for, which transformers would draw at random."""
    how = {"trust_remote_code": False, "use_safetensors": True, "ignore_mismatched_sizes": True}
    _, told = auto.from_pretrained(name, **how, output_loading_info=True)
    body = f"{kind.base_model_prefix}." if auto is AutoModelForSequenceClassification else ""  # a head may be fresh
    if missing := sorted(key for key in told["missing_keys"] if key.startswith(body) and "pooler" not in key):
        yield f"lacks {len(missing)} weights that its config.json asks for, such as {missing[0]}; allowed: a whole one"


def _vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    there, needed = model.get_input_embeddings().weight.shape[0], max(tokenizer.get_vocab().values()) + 1
    if needed > there:
        yield f"has weights for {there} tokens and a tokenizer of {needed}; allowed: the tokenizer that belongs to it"


def _positions(model: PreTrainedModel, needed: int, why: str) -> Iterator[str]:
    there = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if isinstance(there, int) and 0 < there < needed:
        yield f"has {there} positions, and {needed} are needed ({why}); allowed: smaller values, or a longer model"


def _far(one: torch.Tensor, other: torch.Tensor, spread: float = 1.0) -> bool:
    return not torch.allclose(one, other, rtol=CLOSE, atol=CLOSE * spread)
