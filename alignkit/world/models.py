"""Tokenizers, policies and encoders, loaded or built on the spot; what all trainers share."""

import contextlib
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors, trainers
from tokenizers import models as subword
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    PrinterCallback,
    Trainer,
)

from alignkit.faults import UserFault
from alignkit.world import resume

END, PAD, UNKNOWN = "<|endoftext|>", "<pad>", "<unk>"
SCRATCH = "scratch"
"""The model name that asks for a model built on the spot."""
MODEL = {"model": True}
"""Metadata of a setting that names a model: a folder counts by its files, wherever it lies."""
REPORT_TO = "ALIGNKIT_REPORT_TO"
"""The variable that names where trainers report to besides their own log: tensorboard, wandb, trackio."""
POSITIONS = 128
"""Positions of a policy built on the spot, at least: room for a prompt and a completion."""


def device() -> str:
    """ "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def precision() -> dict[str, bool]:
    """Trainer arguments: float32 on CPU, bfloat16 on Ampere and later, float16 mixed precision on a T4."""
    if not torch.cuda.is_available():
        return {"use_cpu": True, "bf16": False, "fp16": False}
    ampere = torch.cuda.get_device_capability()[0] >= 8
    return {"use_cpu": False, "bf16": ampere, "fp16": not ampere}


def processes() -> int:
    """How many processes train one model together (`accelerate launch`)."""
    return int(os.environ.get("WORLD_SIZE", 1))


@contextlib.contextmanager
def quiet_training(out: Path | None = None) -> Iterator[Path]:
    """A folder for what a trainer goes on from, in `out` if it is given, with the libraries' bars and notices off."""
    transformers.logging.disable_progress_bar()
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as passing, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield (out or Path(passing)) / resume.FOLDER
        resume.ended(out or Path(passing))
    finally:
        logging.disable(before)


def trainer_arguments(folder: Path, *, seed: int, epochs: float, batch: int, lr: float, reports: int) -> dict[str, Any]:
    """What every trainer here shares: AdamW (0.9, 0.98), 10 % warm-up, cosine decay, `reports` log points.

    Raises UserFault if a batch cannot be dealt out to all processes evenly.
    """
    if batch % processes():
        raise UserFault(f"batch: {batch} a step; {processes()} processes cannot share it evenly; take a divisor of it")
    return dict(
        output_dir=str(folder),
        seed=seed,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch // processes(),
        per_device_eval_batch_size=2 * batch // processes(),
        learning_rate=lr,
        lr_scheduler_type="cosine",
        warmup_steps=0.1,
        adam_beta2=0.98,
        eval_strategy="steps",
        eval_steps=1 / reports,
        eval_on_start=True,
        logging_steps=1 / reports,
        save_strategy="no",  # resume.Watch says when
        gradient_checkpointing=False,
        report_to=os.environ.get(REPORT_TO, "none").split(","),
        # A number that is not finite must be seen as one.
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        dataloader_pin_memory=torch.cuda.is_available(),
        **precision(),
    )


def run_trainer(trainer: Trainer, out: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Train without printing, from the last kept checkpoint on, and write the log to history.csv in `out`.

    Returns the log, one row for each point, columns step, epoch, loss, eval_loss, ..., and how it ended: status "ok",
    or "diverged" and diverged_at, the step after which a weight was not finite.
    """
    watch = resume.Watch()
    trainer.add_callback(watch)
    trainer.remove_callback(PrinterCallback)
    begun = resume.checkpoint(Path(trainer.args.output_dir))
    trainer.args.eval_on_start &= begun is None
    trainer.train(resume_from_checkpoint=begun)
    log = pd.DataFrame(trainer.state.log_history)
    # Without what differs each time, such as seconds: a run's files count in the identity of runs that start from it.
    log = log[
        sorted(c for c in log if not c.endswith(("_runtime", "_per_second", "num_tokens", "train_loss", "_flos")))
    ]
    log = log.groupby("step", as_index=False).first()
    log.to_csv(out / "history.csv", index=False)
    step = watch.diverged_at
    return log, {"status": "ok"} if step is None else {"status": "diverged", "diverged_at": step}


# Tokenizers


def train_tokenizer(kind: str, texts: list[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer trained on the texts.

    "word" and "bpe" are for policies (byte-level BPE as in GPT-2) and add nothing to a text;
    "encoder_word" and "wordpiece" are for encoders and add [CLS] and [SEP] as DistilBERT's does.
    """
    if kind in ("word", "bpe"):
        special = {"eos_token": END, "bos_token": END, "pad_token": PAD, "unk_token": UNKNOWN}
    else:
        special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    shared = {"vocab_size": vocab_size, "special_tokens": list(dict.fromkeys(special.values())), "show_progress": False}
    if kind in ("word", "encoder_word"):
        tokenizer = Tokenizer(subword.WordLevel(unk_token=special["unk_token"]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(**shared)
    elif kind == "bpe":
        tokenizer = Tokenizer(subword.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(**shared, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    elif kind == "wordpiece":
        tokenizer = Tokenizer(subword.WordPiece(unk_token=special["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(**shared)
    else:
        raise ValueError(f"unknown tokenizer kind {kind!r}")
    tokenizer.train_from_iterator(texts, trainer)
    if "cls_token" in special:
        ids = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    plain = {"clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **plain, **special)


# Models


def new_policy(
    tokenizer: PreTrainedTokenizerBase, *, width: int, layers: int, heads: int, positions: int
) -> GPT2LMHeadModel:
    """A GPT-2 with random weights and no dropout, so that log-probs before and after a step are comparable."""
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=positions,
        activation_function="gelu_pytorch_tanh",  # GPT-2's own function, in one fused step
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return GPT2LMHeadModel(config)


def new_encoder(
    tokenizer: PreTrainedTokenizerBase,
    *,
    width: int,
    layers: int,
    heads: int,
    positions: int,
    sinusoidal: bool,
    dropout: float,
) -> DistilBertForSequenceClassification:
    """A DistilBERT with random weights and one output, the reward.

    Positions are learned, and start as sinusoids (Vaswani et al. 2017) or at random.  On 20,000 pocket reviews, where
    "not" must be found beside its adjective, those that start at random gave 0.90 of the exact posterior's pairwise
    accuracy and sinusoids 0.97; on IMDB, where a word counts wherever it stands, sinusoids drown the words.
    """
    config = DistilBertConfig(
        vocab_size=len(tokenizer),
        dim=width,
        hidden_dim=4 * width,
        n_layers=layers,
        n_heads=heads,
        max_position_embeddings=positions,
        sinusoidal_pos_embds=sinusoidal,
        num_labels=1,
        pad_token_id=tokenizer.pad_token_id,
        **_dropout(dropout),
    )
    return DistilBertForSequenceClassification(config)


def _dropout(rate: float) -> dict[str, float]:
    # None in attention: there it costs a third of the training time on a CPU, and keeps out the fused kernel.
    return {"dropout": rate, "attention_dropout": 0.0, "seq_classif_dropout": rate}


def save(folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep a model and its tokenizer in a folder, in safetensors."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_policy(name: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model and its tokenizer, padded on the left, dropout off, on the device of choice.

    Raises UserFault if a folder or Hub id cannot be loaded; only safetensors, no code from the repository.
    """
    model, tokenizer = _load(AutoModelForCausalLM, name)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return model.eval(), tokenizer


def load_encoder(name: str | Path, dropout: float | None = None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier with one output (a fresh head where the checkpoint has none) and its tokenizer.

    `dropout` (None: as in the checkpoint) goes to everything but attention.  Raises UserFault if a folder or Hub id
    cannot be loaded, has a head with more outputs, or is not like DistilBERT or BERT in what its dropout is called.
    """
    bert = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0, "classifier_dropout": dropout}
    # A configuration takes over the names that it knows.
    override = {} if dropout is None else _dropout(dropout) | bert
    model, tokenizer = _load(AutoModelForSequenceClassification, name, num_labels=1, **override)
    if dropout and not {"dropout", "hidden_dropout_prob"} & set(model.config.to_dict()):
        kind = model.config.model_type
        raise UserFault(f"reward_dropout: {dropout} cannot be set in {str(name)!r}, a {kind} model; allowed: 0")
    tokenizer.padding_side = "right"
    return model.eval(), tokenizer


def _load(kind: Any, name: str | Path, **settings: Any) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    try:
        safe = {"trust_remote_code": False}  # code from a model's repository is never run
        tokenizer = AutoTokenizer.from_pretrained(name, **safe)
        if len(tokenizer) == len(set(tokenizer.all_special_ids)):
            # What transformers makes up where the files of the tokenizer are missing.
            raise OSError("it has no tokenizer, or one without words")
        config = {"config": AutoConfig.from_pretrained(name, **safe, **settings)} if settings else {}
        model = kind.from_pretrained(name, **safe, use_safetensors=True, dtype=torch.float32, **config)
    except Exception as error:  # whatever a broken or foreign checkpoint makes the libraries raise
        first = (str(error).strip().splitlines() or ["no reason given"])[0]
        if "ignore_mismatched_sizes" in first:
            first = "its weights have other shapes than the model asked for; a reward model's head has one output"
        raise UserFault(
            f"model: {str(name)!r} cannot be loaded ({first}); allowed: {SCRATCH!r}, a folder, or a Hub id within reach"
        ) from None
    return model.to(device()), tokenizer
