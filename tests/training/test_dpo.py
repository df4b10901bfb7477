"""f-DPO against TRL's own trainer, at step 0, and through tiny trainings of every deviation."""

import ast
import copy
import dataclasses
import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, load_dataset
from helpers import called
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import GPT2LMHeadModel
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from alignkit.divergences import NAMES, divergence, examples
from alignkit.losses import preference_loss
from alignkit.sampling import sequence_log_probs
from alignkit.training import dpo
from alignkit.training.deviations import SCORES, chosen_to_rejected, policy_to_reference
from alignkit.training.dpo import FDPOTrainer, sequence_logps, train_dpo
from alignkit.world.models import load_policy, trainer_arguments

TOLERANCE = 1e-5
BETA = 0.1
ALPHA = {div.name: div.alpha for div in examples()}
OWN_KEYWORDS = {"divergence", "loss", "label_smoothing", "scores"}
"""Of FDPOTrainer, beyond those of TRL's trainer."""
Trainer = Callable[..., DPOTrainer]


@pytest.fixture(scope="module")
def codec(world):
    return load_policy(world.sft)[1]


@pytest.fixture(scope="module")
def rows(world) -> Dataset:
    """A dozen pairs whose completions have many lengths."""
    return load_dataset(str(world.pairs / "pairs"))["train"].select(range(12))


@pytest.fixture(scope="module")
def batch(rows, codec) -> dict[str, torch.Tensor]:
    return DataCollatorForPreference(pad_token_id=codec.pad_token_id)(list(rows))


@pytest.fixture(scope="module")
def anchor(world) -> GPT2LMHeadModel:
    """The SFT policy, the reference of the pairs; on the CPU, never changed."""
    return load_policy(world.sft)[0].cpu()


def lively(model: GPT2LMHeadModel, seed: int, scale: float) -> GPT2LMHeadModel:
    """A copy whose log-ratios to the model are of the order of one."""
    moved = copy.deepcopy(model)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in moved.parameters():
            weight.add_(scale * torch.randn(weight.shape, generator=noise))
    return moved


@pytest.fixture(scope="module")
def random_policy(anchor) -> GPT2LMHeadModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        fresh = GPT2LMHeadModel(anchor.config).eval()
    return lively(fresh, seed=1, scale=0.2)


@pytest.fixture(scope="module")
def random_reference(random_policy) -> GPT2LMHeadModel:
    return lively(random_policy, seed=7, scale=0.03)


def on_cpu(folder: Path, **settings: Any) -> DPOConfig:
    arguments = trainer_arguments(folder, seed=0, epochs=1, batch=8, lr=1e-3, reports=1)
    plain = {"use_cpu": True, "bf16": False, "fp16": False, "eval_strategy": "no", "eval_on_start": False}
    return DPOConfig(**arguments | plain, beta=BETA, max_length=None, **settings)


@pytest.fixture
def ours(tmp_path: Path, rows, codec) -> Trainer:
    """A function that makes an FDPOTrainer, plain DPO unless told otherwise."""

    def make(model, *, name: str = "reverse_kl", alpha: float | None = None, **changed: Any) -> FDPOTrainer:
        usual = {"loss": "sigmoid", "label_smoothing": 0.1, "scores": "policy_to_reference"}
        return FDPOTrainer(
            model=model, args=on_cpu(tmp_path, precompute_ref_log_probs=True), train_dataset=rows,
            processing_class=codec, divergence=divergence(name, alpha), **usual | changed,
        )  # fmt: skip

    return make


@pytest.fixture
def theirs(tmp_path: Path, rows, codec) -> Trainer:
    """A function that makes TRL's trainer, with a reference model that it asks itself."""

    def make(model, reference, **settings: Any) -> DPOTrainer:
        return DPOTrainer(
            model=model, ref_model=reference, args=on_cpu(tmp_path, **settings), train_dataset=rows,
            processing_class=codec,
        )  # fmt: skip

    return make


def with_reference(batch: dict[str, torch.Tensor], reference: GPT2LMHeadModel, rows: Dataset) -> dict[str, Any]:
    """The batch with the log-probs of another reference, as `pairs.generate` computes them."""
    sides = {f"ref_{side}_logps": sequence_log_probs(reference, rows["prompt_ids"][:], rows[f"{side}_ids"][:])
             for side in ("chosen", "rejected")}  # fmt: skip
    return batch | {name: torch.tensor(values, dtype=torch.float32) for name, values in sides.items()}


def backward(trainer: DPOTrainer, batch: dict[str, torch.Tensor]) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a trainer on a batch."""
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, batch)
    loss.backward()
    return loss.item(), {name: weight.grad for name, weight in trainer.model.named_parameters()}


# Against TRL


REVERSE_KL, FORWARD_KL, JS = {}, {"f_divergence_type": "forward_kl"}, {"f_divergence_type": "js_divergence"}
CASES = {
    "sigmoid": ({}, REVERSE_KL),
    "hinge": ({"loss": "hinge"}, {"loss_type": ["hinge"]}),
    "ipo per token": ({"loss": "ipo_per_token"}, {"loss_type": ["ipo"]}),
    "robust": ({"loss": "robust"}, {"loss_type": ["robust"], "label_smoothing": 0.1}),
    "forward KL": ({"name": "forward_kl"}, FORWARD_KL),
    "JS": ({"name": "js"}, JS),
    **{
        f"alpha {a}": (
            {"name": "alpha", "alpha": a},
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 1 - a},
        )
        for a in (0.3, 0.7)
    },
    "hinge, forward KL": ({"loss": "hinge", "name": "forward_kl"}, {"loss_type": ["hinge"], **FORWARD_KL}),
    "ipo per token, JS": ({"loss": "ipo_per_token", "name": "js"}, {"loss_type": ["ipo"], **JS}),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradient_are_those_of_trl(
    case: str, ours, theirs, batch, rows, random_policy, random_reference
) -> None:
    our_settings, their_settings = CASES[case]
    mine = ours(copy.deepcopy(random_policy), **our_settings)
    other = theirs(copy.deepcopy(random_policy), copy.deepcopy(random_reference), **their_settings)
    loss, gradients = backward(mine, with_reference(batch, random_reference, rows))
    expected, by_trl = backward(other, batch)
    assert loss == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    assert gradients.keys() == by_trl.keys()
    assert max(gradient.abs().max() for gradient in by_trl.values()) > 1000 * TOLERANCE
    for name, gradient in gradients.items():
        apart = (gradient - by_trl[name]).abs().max().item()
        assert apart <= TOLERANCE, name


def test_the_cases_against_trl_have_both_signs_and_all_losses_differ(
    ours, batch, rows, random_policy, random_reference
) -> None:
    given = with_reference(batch, random_reference, rows)
    policy = sequence_logps(random_policy, *(batch[n] for n in ("input_ids", "attention_mask", "completion_mask")))
    ratios = policy.detach() - torch.cat([given["ref_chosen_logps"], given["ref_rejected_logps"]])
    assert ratios.min() < -0.2
    assert ratios.max() > 0.2
    losses = [ours(random_policy, **CASES[case][0]).compute_loss(random_policy, given).item() for case in CASES]
    assert np.diff(sorted(losses)).min() > 10 * TOLERANCE


def keywords_of(function: str) -> set[str]:
    """The keywords, by name, that the module passes to the function."""
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(dpo))) if isinstance(node, ast.Call)]
    mine = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == function]
    assert mine, f"no call of {function}"
    return {keyword.arg for call in mine for keyword in call.keywords if keyword.arg}


OVERRIDDEN = ("_prepare_dataset", "_precompute_ref_logps", "_compute_loss")


def test_only_methods_that_trl_still_has_are_overridden() -> None:
    own = {name for name, value in vars(FDPOTrainer).items() if inspect.isfunction(value)}
    assert {name for name in own if hasattr(DPOTrainer, name)} == {"__init__", *OVERRIDDEN}
    assert set(OVERRIDDEN) <= set(vars(DPOTrainer))


@pytest.mark.parametrize("name", OVERRIDDEN)
def test_an_overridden_method_has_the_parameters_of_trl(name: str) -> None:
    mine, trl = (list(inspect.signature(getattr(c, name)).parameters) for c in (FDPOTrainer, DPOTrainer))
    assert mine == trl


def test_trl_has_what_is_read_and_nothing_of_what_is_added(ours, theirs, random_policy, random_reference) -> None:
    trl = theirs(copy.deepcopy(random_policy), copy.deepcopy(random_reference))
    assert trl.beta == BETA
    assert isinstance(trl.model.training, bool)  # read by FDPOTrainer._note
    assert set(trl._metrics) == {"train", "eval"}
    assert trl._metrics["train"]["anything"] == []
    added = set(vars(ours(copy.deepcopy(random_policy)))) - set(vars(trl))
    assert added == {"divergence", "loss_name", "smoothing", "scores"}


def test_trl_takes_every_keyword_that_is_passed_to_it(tmp_path: Path) -> None:
    passed = keywords_of("DPOConfig") | set(trainer_arguments(tmp_path, seed=0, epochs=1, batch=2, lr=1e-3, reports=2))
    assert {"beta", "precompute_ref_log_probs", "max_length"} <= passed
    assert passed <= {field.name for field in dataclasses.fields(DPOConfig)}
    passed = keywords_of("FDPOTrainer")
    assert passed >= OWN_KEYWORDS
    assert passed - OWN_KEYWORDS <= set(inspect.signature(DPOTrainer.__init__).parameters)
    assert not OWN_KEYWORDS & set(inspect.signature(DPOTrainer.__init__).parameters)


def test_the_collator_puts_chosen_first_and_pads_on_the_right(batch, rows) -> None:
    masks = {"input_ids", "attention_mask", "completion_mask"}
    assert set(batch) == masks | {"ref_chosen_logps", "ref_rejected_logps"}
    sides = [(row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected") for row in rows]
    for i, (prompt, completion) in enumerate(sides):
        n, end = len(prompt), len(prompt) + len(completion)
        assert batch["input_ids"][i, :end].tolist() == prompt + completion
        assert batch["attention_mask"][i].nonzero().flatten().tolist() == list(range(end))
        assert batch["completion_mask"][i].nonzero().flatten().tolist() == list(range(n, end))


# Log-probs


def test_log_probs_padded_left_right_and_kept_with_the_pairs_agree(anchor, world, codec) -> None:
    for rows in load_dataset(str(world.pairs / "pairs")).values():
        batch = DataCollatorForPreference(pad_token_id=codec.pad_token_id)(list(rows))
        assert (batch["attention_mask"].sum(dim=1).unique().numel()) > 3
        with torch.no_grad():
            right = sequence_logps(anchor, *(batch[n] for n in ("input_ids", "attention_mask", "completion_mask")))
        for side, found in zip(("chosen", "rejected"), right.chunk(2), strict=True):
            left = sequence_log_probs(anchor, rows["prompt_ids"][:], rows[f"{side}_ids"][:])
            np.testing.assert_allclose(found.numpy(), left, rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(rows[f"ref_{side}_logps"][:], left, rtol=0, atol=TOLERANCE)


# Step 0


AT_ZERO = {
    **{"sigmoid": math.log(2), "cdpo": math.log(2), "robust": math.log(2), "hinge": 1.0, "kto_pair": 0.5},
    **{"ipo": (1 / (2 * BETA)) ** 2, "ipo_per_token": (1 / (2 * BETA)) ** 2},
}


def logged(trainer: FDPOTrainer, name: str) -> float:
    (value,) = trainer._metrics["train" if trainer.model.training else "eval"][name]
    return value


@pytest.mark.parametrize("loss", AT_ZERO)
@pytest.mark.parametrize(("name", "alpha"), [("reverse_kl", None), ("js", None), ("alpha", 0.5), ("neyman_chi2", None)])
def test_at_step_0_every_loss_has_its_value_at_margin_zero(
    loss: str, name: str, alpha: float | None, ours, batch, anchor
) -> None:
    trainer = ours(copy.deepcopy(anchor), loss=loss, name=name, alpha=alpha)
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(AT_ZERO[loss], abs=10 * TOLERANCE)
    assert logged(trainer, "margin") == pytest.approx(0, abs=TOLERANCE)
    assert logged(trainer, "clamped") == 0


# At a log-ratio of rounding size the score of total variation is one of its two values.
@pytest.mark.parametrize("name", [name for name in NAMES if name != "total_variation"])
def test_at_step_0_every_divergence_has_the_loss_log_2(name: str, ours, batch, anchor) -> None:
    trainer = ours(copy.deepcopy(anchor), name=name, alpha=ALPHA[name])
    assert trainer.compute_loss(trainer.model, batch).item() == pytest.approx(math.log(2), abs=TOLERANCE)
    for side in ("chosen", "rejected"):
        assert logged(trainer, f"logps/{side}") == pytest.approx(batch[f"ref_{side}_logps"].mean().item(), abs=1e-4)


def test_step_0s_gradient_is_minus_half_beta_of_the_log_prob_difference(ours, batch, anchor) -> None:
    trainer = ours(copy.deepcopy(anchor))
    _, gradients = backward(trainer, batch)
    masks = (batch[n] for n in ("input_ids", "attention_mask", "completion_mask"))
    chosen, rejected = sequence_logps(anchor, *masks).chunk(2)
    by_hand = torch.autograd.grad((chosen - rejected).mean() * -BETA / 2, list(anchor.parameters()))
    for (name, gradient), expected in zip(gradients.items(), by_hand, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=TOLERANCE, msg=name)


def test_a_huge_log_ratio_is_counted_as_clamped_and_pushes_nothing(ours, batch, anchor) -> None:
    trainer = ours(copy.deepcopy(anchor), name="neyman_chi2")
    far = batch | {"ref_rejected_logps": batch["ref_rejected_logps"].clone()}
    far["ref_rejected_logps"][3] += 100
    loss = trainer.compute_loss(trainer.model, far)
    assert math.isfinite(loss.item())
    assert logged(trainer, "clamped") == pytest.approx(1 / 24)
    log_ratio = torch.tensor([-100.0], requires_grad=True)
    score = divergence("neyman_chi2").centred_score(log_ratio)
    assert torch.autograd.grad(score.sum(), log_ratio)[0].item() == 0


# What earlier reports computed


@pytest.fixture(scope="module")
def numbers() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    made = torch.Generator().manual_seed(0)
    return tuple([-20 + torch.randn(50, generator=made, dtype=torch.float64) for _ in range(2)] for _ in range(2))


def test_chosen_to_rejected_is_the_definition_for_reverse_kl_only(numbers) -> None:
    for name in NAMES:
        div = divergence(name, ALPHA[name])
        right, other = (scores(div, *numbers) for scores in (policy_to_reference, chosen_to_rejected))
        apart = ((right[0] - right[1]) - (other[0] - other[1])).abs().max().item()
        assert (apart < 1e-6) == (name == "reverse_kl"), name


def test_gan_and_js_have_the_same_score_differences(numbers) -> None:
    for scores in SCORES.values():
        gan, js = (scores(divergence(name), *numbers) for name in ("gan", "js"))
        torch.testing.assert_close(gan[0] - gan[1], js[0] - js[1], rtol=0, atol=1e-6)


def test_one_object_has_ratios_of_one_and_the_gradient_of_step_0(numbers) -> None:
    div = divergence("js")
    policy = [side.clone().requires_grad_() for side in numbers[0]]
    chosen, rejected = SCORES["one_object"](div, policy, numbers[1])
    assert chosen.tolist() == rejected.tolist() == [0.0] * 50
    torch.testing.assert_close(torch.autograd.grad(chosen.sum(), policy[0])[0], torch.full((50,), 0.5).double())


def test_detached_has_the_scores_of_the_definition_and_no_gradient(numbers) -> None:
    policy = [side.clone().requires_grad_() for side in numbers[0]]
    found = SCORES["detached"](divergence("js"), policy, numbers[1])
    torch.testing.assert_close(list(found), list(policy_to_reference(divergence("js"), *numbers)))
    for gradient in torch.autograd.grad(found[0].sum() + found[1].sum(), policy):
        assert gradient.tolist() == [0.0] * 50


# Training


RUNS: dict[str, dict[str, Any]] = {
    "sigmoid": {},
    "again": {},
    "gan": {"divergence": "gan"},
    "js": {"divergence": "js"},
    # So weak that no gradient is clipped: clipping would change what remains of the constant factor.
    "one object, sigmoid": {"scores": "one_object", "beta": 1e-3},
    "one object, hinge": {"scores": "one_object", "beta": 1e-3, "loss": "hinge"},
    "total variation": {"divergence": "total_variation"},
    "detached": {"scores": "detached"},
    "lora": {"lora_rank": 2, "lr": 2e-2},
    "absurd rate": {"loss": "ipo", "divergence": "forward_kl", "lr": 0.1},
    "robust": {"loss": "robust", "label_smoothing": 0.3, "beta": 0.5},
}


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory) -> dict[str, tuple[Path, dict[str, Any]]]:
    usual = {"loss": "sigmoid", "divergence": "reverse_kl", "beta": 0.1, "epochs": 1, "batch": 16, "lr": 3e-3}
    start = {"seed": 0, "policy": world.sft, "pairs": world.pairs}
    done = {}
    for name, changed in RUNS.items():
        out = tmp_path_factory.mktemp("dpo")
        done[name] = out, called(train_dpo, out, **start, **usual | changed)
    return done


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def history(runs, name: str) -> pd.DataFrame:
    return pd.read_csv(runs[name][0] / "history.csv")


def pair_log_probs(folder: Path, world) -> np.ndarray:
    rows = load_dataset(str(world.pairs / "pairs"))["test"]
    model, _ = load_policy(folder)
    sides = [sequence_log_probs(model, rows["prompt_ids"][:], rows[f"{s}_ids"][:]) for s in ("chosen", "rejected")]
    return np.concatenate(sides)


def test_a_run_is_trained_with_its_own_smoothing_and_beta(runs, world) -> None:
    out, metrics = runs["robust"]
    scores = torch.tensor(pair_log_probs(out, world) - pair_log_probs(world.sft, world)).chunk(2)
    expected = preference_loss("robust", *scores, beta=0.5, label_smoothing=0.3).mean().item()
    assert metrics["eval_loss"] == pytest.approx(expected, abs=1e-4)
    margin = 0.5 * (scores[0] - scores[1]).mean().item()
    assert history(runs, "robust").eval_margin.iloc[-1] == pytest.approx(margin, abs=1e-4)


def test_the_history_has_its_columns_from_step_0_to_the_last(runs) -> None:
    log = history(runs, "sigmoid")
    measured = {"logps/chosen", "logps/rejected", "margin", "accuracy", "clamped", "loss"}
    assert {"step", *measured, *(f"eval_{name}" for name in measured)} <= set(log.columns)
    assert not {"eval_runtime", "train_runtime"} & set(log.columns)
    assert log.step.is_monotonic_increasing
    assert log.step.iloc[0] == 0
    assert log[[f"eval_{name}" for name in measured]].notna().all(axis=None)


def test_training_starts_at_the_reference_and_raises_the_margin(runs) -> None:
    log = history(runs, "sigmoid")
    assert log.eval_loss.iloc[0] == pytest.approx(math.log(2), abs=TOLERANCE)
    assert log.eval_margin.iloc[0] == pytest.approx(0, abs=TOLERANCE)
    trained = log.margin.dropna()
    assert trained.iloc[-1] > max(trained.iloc[0], 0.02)


def test_training_returns_the_last_of_its_held_out_history(runs, world) -> None:
    out, metrics = runs["sigmoid"]
    last = history(runs, "sigmoid").iloc[-1]
    assert metrics["status"] == "ok"
    names = {"eval_loss": "eval_loss", "chosen_logp": "eval_logps/chosen", "rejected_logp": "eval_logps/rejected"}
    names |= {"accuracy": "eval_accuracy", "clamped": "eval_clamped"}
    assert {name: metrics[name] for name in names} == pytest.approx({n: last[c] for n, c in names.items()}, rel=1e-6)
    log_probs = pair_log_probs(out, world)
    half = len(log_probs) // 2
    found = metrics["chosen_logp"], metrics["rejected_logp"]
    assert found == pytest.approx((log_probs[:half].mean(), log_probs[half:].mean()), abs=1e-4)
    margins = (log_probs - pair_log_probs(world.sft, world)).reshape(2, half)
    assert metrics["accuracy"] == pytest.approx((margins[0] > margins[1]).mean())
    rows = load_dataset(str(world.pairs / "pairs"))["train"]
    texts = sum(2 * len(row["prompt_ids"]) + len(row["chosen_ids"]) + len(row["rejected_ids"]) for row in rows)
    assert metrics["tokens_trained"] == texts


def test_the_same_seed_gives_the_same_weights_which_are_not_those_of_sft(runs, world) -> None:
    first, again, start = (weights(folder) for folder in (runs["sigmoid"][0], runs["again"][0], world.sft))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert first.keys() == start.keys()
    assert not all(torch.equal(first[name], start[name]) for name in first)
    assert runs["sigmoid"][1] == runs["again"][1]


def test_a_run_keeps_weights_as_safetensors_and_no_pickle(runs) -> None:
    for out, _ in runs.values():
        assert {path.suffix for path in out.iterdir()} == {".safetensors", ".json", ".csv"}


def test_gan_and_js_train_one_policy(runs, world) -> None:
    gan, js = (pair_log_probs(runs[name][0], world) for name in ("gan", "js"))
    np.testing.assert_allclose(gan, js, rtol=0, atol=1e-3)
    assert np.abs(js - pair_log_probs(runs["sigmoid"][0], world)).max() > 0.01


def test_with_one_object_no_loss_falls_and_two_losses_train_one_policy(runs, world) -> None:
    for loss in ("sigmoid", "hinge"):
        log = history(runs, f"one object, {loss}")
        np.testing.assert_allclose(log.eval_loss, AT_ZERO[loss], atol=1e-6)
        np.testing.assert_allclose(log.loss.dropna(), AT_ZERO[loss], atol=1e-6)
        assert (log.eval_margin == 0).all()
        assert log.grad_norm.max() < 1  # nothing was clipped
    sigmoid, hinge = (weights(runs[f"one object, {loss}"][0]) for loss in ("sigmoid", "hinge"))
    start = weights(world.sft)
    moved = math.sqrt(sum(((sigmoid[name] - start[name]) ** 2).sum() for name in start))
    apart = math.sqrt(sum(((sigmoid[name] - hinge[name]) ** 2).sum() for name in start))
    assert moved > 0.1
    assert apart < 0.02 * moved


@pytest.mark.parametrize("name", ["total variation", "detached"])
def test_without_a_gradient_the_weights_stay_those_of_sft(runs, world, name: str) -> None:
    trained, start = weights(runs[name][0]), weights(world.sft)
    assert trained.keys() == start.keys()
    assert all(torch.equal(trained[weight], start[weight]) for weight in start)
    assert history(runs, name).grad_norm.dropna().eq(0).all()


def test_an_absurd_rate_ends_as_a_diverged_run_that_keeps_its_history(runs) -> None:
    out, metrics = runs["absurd rate"]
    assert metrics["status"] == "diverged"
    assert history(runs, "absurd rate").eval_loss.isna().iloc[-1]
    assert not all(bool(weight.isfinite().all()) for weight in weights(out).values())


def test_broken_weights_end_as_a_diverged_run_not_as_an_exception(world, tmp_path: Path) -> None:
    model, codec = load_policy(world.sft)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.bias[0] = float("nan")
    for part in (model, codec):
        part.save_pretrained(tmp_path / "broken")
    (tmp_path / "out").mkdir()
    usual = {"loss": "sigmoid", "divergence": "reverse_kl", "beta": 0.1, "epochs": 1, "batch": 64, "lr": 1e-3}
    start = {"seed": 0, "policy": tmp_path / "broken", "pairs": world.pairs}
    metrics = called(train_dpo, tmp_path / "out", **start, **usual)
    assert metrics["status"] == "diverged"
    assert math.isnan(metrics["eval_loss"])


# LoRA


def test_lora_trains_adapters_and_without_them_is_the_reference(ours, batch, anchor) -> None:
    lora = LoraConfig(r=2, lora_alpha=4, target_modules="all-linear", fan_in_fan_out=True, task_type="CAUSAL_LM")
    trainer = ours(copy.deepcopy(anchor), peft_config=lora)
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in trainer.model.named_parameters():
            if "lora_B" in name:  # zero at first, so that nothing would differ
                weight.normal_(0, 0.3, generator=noise)
    _, gradients = backward(trainer, batch)
    assert {name for name, gradient in gradients.items() if gradient is not None} == {
        name for name in gradients if "lora_" in name
    }
    assert all(gradient.abs().max() > 0 for name, gradient in gradients.items() if "lora_" in name)
    masks = [batch[n] for n in ("input_ids", "attention_mask", "completion_mask")]
    reference = torch.cat([batch["ref_chosen_logps"], batch["ref_rejected_logps"]])
    with torch.no_grad():
        assert (sequence_logps(trainer.model, *masks) - reference).abs().max() > 0.1
        with trainer.model.disable_adapter():
            torch.testing.assert_close(sequence_logps(trainer.model, *masks), reference, rtol=0, atol=TOLERANCE)


def test_a_lora_policy_is_kept_merged_and_differs_in_adapted_layers(runs, world) -> None:
    out, metrics = runs["lora"]
    assert metrics["status"] == "ok"
    merged, start = weights(out), weights(world.sft)
    assert merged.keys() == start.keys()
    changed = {name for name in start if not torch.equal(merged[name], start[name])}
    layers = {name for name in start if ".h." in name and start[name].ndim == 2}
    assert changed == layers
    model, _ = load_policy(out)
    assert isinstance(model, GPT2LMHeadModel)
    assert np.abs(pair_log_probs(out, world) - pair_log_probs(world.sft, world)).max() > 1000 * TOLERANCE
    rejected = np.split(pair_log_probs(out, world), 2)[1].mean()
    assert rejected == pytest.approx(metrics["rejected_logp"], abs=1e-3)
