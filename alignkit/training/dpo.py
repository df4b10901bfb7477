"""f-DPO: any f-divergence with any preference loss, full weights or LoRA, on top of TRL's DPOTrainer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
import transformers
from peft import LoraConfig
from torch.nn.functional import pad
from trl import DPOConfig, DPOTrainer

from alignkit.divergences import Divergence, divergence
from alignkit.kl import token_log_probs
from alignkit.losses import needs, preference_loss
from alignkit.training.deviations import SCORES
from alignkit.world.models import load_policy, quiet_training, run_trainer, save, trainer_arguments

VALIDATION_PAIRS = 256
"""Held-out pairs on which the validation curves are taken."""


class FDPOTrainer(DPOTrainer):
    """TRL's DPOTrainer with `preference_loss` on the scores f'(π/π_ref) of an f-divergence.

    The pairs come with their token ids and reference log-probs (`pairs.build_pairs`), so nothing is tokenised anew
    and no reference model is kept.  Logged for training and validation: loss, logps/chosen, logps/rejected (nats),
    margin = β(s_w - s_l), accuracy = share of margins above zero, clamped = share of scores that were clamped.
    """

    def __init__(self, *args, divergence: Divergence, loss: str, label_smoothing: float, scores: str, **kwargs):
        # Before TRL's own __init__, which prepares the data.
        self.divergence, self.loss_name, self.smoothing, self.scores = divergence, loss, label_smoothing, SCORES[scores]
        super().__init__(*args, **kwargs)

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset

    def _precompute_ref_logps(self, dataset, name, batch_size):
        return dataset

    def _compute_loss(self, model, inputs, return_outputs):
        policy = sequence_logps(model, inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]).chunk(
            2
        )
        reference = inputs["ref_chosen_logps"].to(policy[0]), inputs["ref_rejected_logps"].to(policy[0])
        chosen, rejected = self.scores(self.divergence, policy, reference)
        tokens = inputs["completion_mask"].sum(dim=1).clamp(min=1).chunk(2)
        known = {"label_smoothing": self.smoothing, "chosen_tokens": tokens[0], "rejected_tokens": tokens[1]}
        asked = {name: known[name] for name in needs(self.loss_name)}
        loss = preference_loss(self.loss_name, chosen, rejected, beta=self.beta, **asked).mean()
        self._note(policy, reference, self.beta * (chosen - rejected))
        return (loss, None) if return_outputs else loss

    def _note(self, policy, reference, margin) -> None:
        log_ratios = torch.cat(policy) - torch.cat(reference)
        measured = {
            "logps/chosen": policy[0],
            "logps/rejected": policy[1],
            "margin": margin,
            "accuracy": margin > 0,
            "clamped": self.divergence.clamped(log_ratios),
        }
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, values in measured.items():
            metrics[name].append(self.accelerator.gather(values.detach().float()).mean().item())


def sequence_logps(
    model: torch.nn.Module, ids: torch.Tensor, attention_mask: torch.Tensor, completion_mask: torch.Tensor
) -> torch.Tensor:
    """log π(completion | prompt), the sum over completion tokens in nats, shape (batch,); differentiable.

    ids and masks are (batch, length), padded on the right; completion_mask is 1 on the tokens of the completion.
    """
    logits = model(input_ids=ids, attention_mask=attention_mask, use_cache=False).logits[:, :-1]
    return (pad(token_log_probs(logits, ids[:, 1:]), (1, 0)) * completion_mask).sum(dim=1)


@dataclass(frozen=True)
class DpoSettings:
    """How a policy is trained on pairs."""

    loss: str
    """A name of `losses.LOSSES`."""
    divergence: str
    """A name of `divergences.NAMES`."""
    beta: float
    epochs: float
    batch: int
    """Pairs a step."""
    lr: float
    alpha: float | None = None
    """Of the divergences that have one."""
    label_smoothing: float = 0.0
    """For the losses that assume flipped labels."""
    lora_rank: int = 0
    """0 trains all weights, else LoRA adapters (Hu et al. 2022), which are merged at the end."""
    scores: str = "policy_to_reference"
    """One of `deviations.SCORES`; all but the first are what earlier reports computed."""


def train_dpo(out: Path, settings: DpoSettings, *, seed: int, policy: Path, pairs: Path) -> dict[str, Any]:
    """Train a policy on preference pairs, starting at the SFT policy, which is the reference.

    Writes the policy, its tokenizer and history.csv (step, loss, eval_loss, logps, margin, accuracy, clamped).  Returns
    the last validation figures, tokens trained on, and status "ok" or "diverged".
    """
    s = settings
    transformers.set_seed(seed)
    model, tokenizer = load_policy(policy)
    rows = datasets.load_dataset(str(pairs / "pairs"))
    lora = LoraConfig(task_type="CAUSAL_LM", r=s.lora_rank, lora_alpha=2 * s.lora_rank, target_modules="all-linear")
    with quiet_training(out) as folder:
        shared = trainer_arguments(folder, seed=seed, epochs=s.epochs, batch=s.batch, lr=s.lr, reports=8)
        trainer = FDPOTrainer(
            model=model,
            args=DPOConfig(**shared, beta=s.beta, max_length=None, precompute_ref_log_probs=True),
            train_dataset=rows["train"],
            eval_dataset=rows["test"].select(range(min(VALIDATION_PAIRS, len(rows["test"])))),
            processing_class=tokenizer,
            peft_config=lora if s.lora_rank else None,
            divergence=divergence(s.divergence, s.alpha),
            loss=s.loss,
            label_smoothing=s.label_smoothing,
            scores=s.scores,
        )
        log, end = run_trainer(trainer, out)
    trained = trainer.model.merge_and_unload() if s.lora_rank else trainer.model
    save(out, trained, tokenizer)
    last = log.iloc[-1]
    return {
        **(end if np.isfinite(last.eval_loss) else end | {"status": "diverged"}),
        "eval_loss": last.eval_loss,
        "chosen_logp": last["eval_logps/chosen"],
        "rejected_logp": last["eval_logps/rejected"],
        "accuracy": last.eval_accuracy,
        "clamped": last.eval_clamped,
        "tokens_trained": _tokens(rows["train"], s.epochs),
    }


def _tokens(rows: datasets.Dataset, epochs: float) -> int:
    """Tokens that training runs through the network: prompt and completion of both sides."""
    lengths = {side: sum(map(len, rows[side][:])) for side in ("prompt_ids", "chosen_ids", "rejected_ids")}
    return round(epochs * (2 * lengths["prompt_ids"] + lengths["chosen_ids"] + lengths["rejected_ids"]))
