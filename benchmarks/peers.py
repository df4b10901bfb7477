"""How fast is alignkit beside its peers?  Ratios of times, each pair of sides in turn in one process.

    python benchmarks/peers.py [--device cuda] [--repeats 5] [--only drawing growth]

Prints a Markdown table, and keeps peers.csv, and growth.csv (`growth`), beside this file.  A run replaces the rows that
it measures, and without --only the whole column, so a GPU's can be added on another machine.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import torch
import transformers
from growth import growth
from starts import (
    BETA,
    LARGE,
    PROMPTS,
    RATE,
    READ,
    SAMPLES,
    Start,
    in_turn,
    of_profile,
    pairs,
    policy_gradient,
    seconds,
    seconds_a_step,
    start,
    summary,
)
from torch.nn.functional import logsigmoid
from torch.utils.flop_counter import FlopCounterMode
from trl import DPOConfig, DPOTrainer, RLOOConfig, RLOOTrainer

from alignkit.pocket import generate_reviews
from alignkit.report import readme
from alignkit.sampling import sample
from alignkit.training.dpo import DpoSettings, train_dpo
from alignkit.training.reward import RewardSettings, all_pairs_loss, encode, score, train_reward
from alignkit.world import reviews
from alignkit.world.models import (
    device,
    load_encoder,
    load_policy,
    new_encoder,
    quiet_training,
    run_trainer,
    save,
    train_tokenizer,
    trainer_arguments,
)

Row = dict[str, str | float]
SWEEP = {
    "reverse_kl": {},
    "forward_kl": {"f_divergence_type": "forward_kl"},
    "js": {"f_divergence_type": "js_divergence"},
    "alpha": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.5},
}
"""The divergences that TRL has, as its settings."""
BETAS = (0.3, 0.8, 2.0)


def asked(here: Start, n: int) -> list[str]:
    """Train prompts of 5 to 15 tokens."""
    texts = list(here.data.load(0)["train"]["text"])
    return reviews.prompts(texts, load_policy(here.policy)[1], n=n, shortest=5, longest=15, seed=0)


# 1. Drawing


def drawing(here: Start, repeats: int) -> Row:
    """`sample` against transformers' `generate`, from ids to texts, 64 at a time; other chances each turn."""
    model, tokenizer = load_policy(here.policy)
    rows = tokenizer(asked(here, PROMPTS))["input_ids"]
    plain = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "max_new_tokens": here.new_tokens}
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}

    def ours(seed: int) -> None:
        sample(model, tokenizer, rows, k=1, max_new_tokens=here.new_tokens, seed=seed)

    def theirs(seed: int) -> list[str]:
        torch.manual_seed(seed)
        inputs = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(model.device)
        with torch.no_grad():
            drawn = model.generate(**inputs, **plain, **ends)
        return tokenizer.batch_decode(drawn[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    mine, others = count(), count()
    return in_turn(lambda: seconds(ours, next(mine)), lambda: seconds(theirs, next(others)), repeats)


# 2. A step of the policy gradient


def their_steps(here: Start, steps: int) -> None:
    """`policy_gradient` by TRL's RLOOTrainer, with the same reward model."""
    model, tokenizer = load_policy(here.policy)
    reader = load_encoder(here.reward)

    def reward(prompts: list[str], completions: list[str], **_: object) -> list[float]:
        return score(*reader, [f"{p} {c}" for p, c in zip(prompts, completions, strict=True)], tokens=READ).tolist()

    with quiet_training() as folder:
        shared = trainer_arguments(folder, seed=0, epochs=1, batch=PROMPTS, lr=RATE, reports=1)
        shared |= {"eval_strategy": "no", "eval_on_start": False, "max_steps": steps, "logging_steps": 10}
        sizes = {"num_generations": SAMPLES, "max_completion_length": here.new_tokens}
        trainer = RLOOTrainer(
            model=model,
            reward_funcs=reward,
            args=RLOOConfig(**shared, **sizes, beta=BETA, disable_dropout=True),
            train_dataset=datasets.Dataset.from_dict({"prompt": asked(here, 500)}),
            processing_class=tokenizer,
        )
        run_trainer(trainer, folder.parent)


def gradient_step(here: Start, repeats: int, steps: int = 10) -> Row:
    """A step of the policy gradient against TRL's: k = 4, 64 completions, RLOO baseline, KL to a fixed anchor.

    On a GPU TRL's trainer has mixed precision, as `precision` has it for all trainers.
    """
    ours, theirs = (partial(seconds_a_step, partial(run, here), steps) for run in (policy_gradient, their_steps))
    return in_turn(ours, theirs, repeats)


# 3. The sweep of DPO


def trl_dpo(here: Start, rows: datasets.DatasetDict, trainer: type[DPOTrainer], **settings: object) -> None:
    """A run as `train_dpo` has it, by one of TRL's trainers."""
    model, tokenizer = load_policy(here.policy)
    with quiet_training() as folder:
        shared = trainer_arguments(folder, seed=0, epochs=0.8, batch=32, lr=4e-4, reports=8)
        run = trainer(
            model=model,
            args=DPOConfig(**shared, max_length=None, **settings),
            train_dataset=rows["train"],
            eval_dataset=rows["test"],
            processing_class=tokenizer,
        )
        run_trainer(run, folder.parent)
        save(folder, run.model, tokenizer)


class ReadyTrainer(DPOTrainer):
    """TRL's trainer on rows that have their token ids and reference log-probs already."""

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name):
        return dataset

    def _precompute_ref_logps(self, dataset, name, batch_size):
        return dataset


def dpo_sweep(here: Start, given: Path, betas: tuple[float, ...] = BETAS) -> dict[str, Row]:
    """Every divergence of TRL at every β on given pairs: `train_dpo` against TRL as it comes, and with all ready."""
    ready = datasets.load_dataset(str(given / "pairs"))
    # Texts in memory: `datasets` would otherwise find the tokens of the run before.
    texts = {name: split.to_pandas()[["prompt", "chosen", "rejected"]] for name, split in ready.items()}
    texts = {name: frame.assign(prompt=frame.prompt + " ") for name, frame in texts.items()}
    texts = {name: datasets.Dataset.from_pandas(frame, preserve_index=False) for name, frame in texts.items()}

    def turn(name: str, beta: float) -> tuple[float, float, float]:
        settings = DpoSettings("sigmoid", name, beta, 0.8, 32, 4e-4, alpha=0.5 if name == "alpha" else None)
        theirs = {"beta": beta, **SWEEP[name]}
        with tempfile.TemporaryDirectory() as out:
            inputs = {"seed": 0, "policy": here.policy, "pairs": given}
            ours = seconds(partial(train_dpo, Path(out), settings, **inputs))
        as_it_comes = seconds(partial(trl_dpo, here, texts, DPOTrainer, **theirs))
        prepared = seconds(partial(trl_dpo, here, ready, ReadyTrainer, precompute_ref_log_probs=True, **theirs))
        return ours, as_it_comes, prepared

    turn("reverse_kl", betas[0])
    taken = np.array([turn(name, beta) for beta in betas for name in SWEEP])
    return {"as it comes": summary(taken[:, [0, 1]]), "all ready": summary(taken[:, [0, 2]])}


# 4. Reward models


def reward_step(repeats: int) -> Row:
    """What comparing all pairs of a batch costs: a step of it against one of plain pairs, 64 texts of 64 tokens."""
    texts = generate_reviews(PROMPTS, seed=0).sort_values("label", ascending=False).text.tolist()
    tokenizer = train_tokenizer("encoder_word", texts, 400)
    shape = {"width": 64, "layers": 2, "heads": 4, "positions": 64, "sinusoidal": True, "dropout": 0.0}
    model = new_encoder(tokenizer, **shape).to(device())
    inputs = tokenizer.pad({"input_ids": encode(tokenizer, texts, 64)}, return_tensors="pt").to(device())

    def step(loss: Callable[..., torch.Tensor]) -> None:
        chosen, rejected = model(**inputs).logits.squeeze(-1).chunk(2)
        loss(chosen, rejected).backward()

    def plain(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        return -logsigmoid(chosen - rejected).mean()

    return in_turn(lambda: seconds(step, all_pairs_loss), lambda: seconds(step, plain), 10 * repeats)


def reward_at_equal_accuracy(
    repeats: int, n: int = 4000, epochs: float = 3.0, shares: tuple[float, ...] = (0.6, 1.0)
) -> Row:
    """Time of plain pairs against the time in which all pairs are as accurate on test reviews, seed by seed.

    All pairs are trained for these shares of the steps, and the time is interpolated between them: a ratio near
    1 / the least share is a lower bound.  A seed in which
    they never get there does not count; `turns` says how many do.
    """
    values = of_profile("pocket", "1_reward_model")
    names = ("tokenizer", "vocab", "width", "layers", "heads", "sinusoidal", "tokens", "dropout", "word_dropout", "lr")
    settings = {name: values[f"reward_{name}"] for name in names} | {"base": "scratch", "batch": 32}
    data = reviews.Reviews("pocket", n, 2000, 100)

    def run(seed: int, pairs: str, share: float) -> tuple[float, float]:
        found = {}

        def train() -> None:
            with tempfile.TemporaryDirectory() as out:
                how = RewardSettings(**settings, epochs=share * epochs, pairs=pairs)
                found.update(train_reward(Path(out), how, seed=seed, data=data))

        return seconds(train), found["pairwise_accuracy"]

    def turn(seed: int) -> tuple[float, float]:
        taken, reached = zip(*(run(seed, "all", share) for share in shares), strict=True)
        theirs, accuracy = run(seed, "matched", 1.0)
        return float(np.interp(accuracy, np.maximum.accumulate(reached), taken, right=np.nan)), theirs

    run(0, "all", 0.05)
    turns = [turn(seed) for seed in range(repeats)]
    return summary([turn for turn in turns if not np.isnan(turn[0])] or [(np.nan, np.nan)])


# 5. Share of the rate of matrix products


def rate(here: Start) -> float:
    """Operations a second of torch.mm in float32, the tokens of a step times each matrix of the policy."""
    model, _ = load_policy(here.policy)
    weights = [w.detach() for name, w in model.named_parameters() if w.ndim == 2 and "wpe" not in name]
    tokens = PROMPTS * (10 + here.new_tokens)
    factors = [(torch.randn(tokens, len(w), device=w.device), w) for w in weights]

    def products() -> None:
        for _ in range(20):
            for left, right in factors:
                torch.mm(left, right)

    seconds(products)  # once, so that libraries set themselves up
    return 20 * 2 * tokens * sum(w.numel() for w in weights) / seconds(products)


def share_of_rate(here: Start, repeats: int, steps: int = 10) -> Row:
    """The time that the matrix products of a policy-gradient step would take by themselves, by the time of the step."""

    def operations(steps: int) -> int:
        with FlopCounterMode(display=False) as counter:
            policy_gradient(here, steps)
        return counter.get_total_flops()

    each = (operations(1 + steps) - operations(1)) / steps
    ours = partial(seconds_a_step, partial(policy_gradient, here), steps)
    return in_turn(ours, lambda: each / rate(here), repeats)


# The table


def measured(folder: Path, repeats: int, only: list[str]) -> Iterator[tuple[str, Row]]:
    """Name and row of each benchmark asked for."""
    if set(only) == {"growth"}:
        return
    pocket = start(folder / "pocket", "pocket", trained=True)
    sizes = {"pocket": pocket, "imdb_scratch": start(folder / "imdb_scratch", "imdb_scratch")}
    if device() == "cuda":
        sizes[LARGE] = start(folder / LARGE, LARGE)
    for size, here in sizes.items():
        if "drawing" in only:
            yield f"drawing {PROMPTS} × {here.new_tokens} tokens, {size}: `generate`", drawing(here, repeats)
        if "step" in only and size != "imdb_scratch":
            steps = 2 if size == LARGE else 10
            yield f"policy-gradient step, {size}: TRL's RLOOTrainer", gradient_step(here, repeats, steps)
    if "dpo" in only:
        for how, row in dpo_sweep(pocket, pairs(folder / "pairs", pocket, 130)).items():
            yield f"DPO, 4 divergences × 3 β: TRL's DPOTrainer, {how}", row
    if "reward" in only:
        yield "reward model step, all pairs: plain pairs", reward_step(repeats)
        row = reward_at_equal_accuracy(repeats)
        yield (
            f"reward model, all pairs, to equal accuracy (reached in {row['turns']} of {repeats} seeds): plain pairs",
            row,
        )
    if "share" in only:
        yield "policy-gradient step, pocket: its matrix products alone (share)", share_of_rate(pocket, repeats)


def keep(row: Row, file: Path) -> pd.DataFrame:
    """Write the row into the file, in place of the one of its benchmark and column; returns all rows."""
    rows = pd.read_csv(file).to_dict("records") if file.exists() else []
    table = {(r["benchmark"], r["column"]): r for r in [*rows, row]}
    frame = pd.DataFrame(list(table.values()))
    frame.to_csv(file, index=False, float_format="%.4g")
    return frame


def keep_only(names: Iterable[str], column: str, file: Path) -> None:
    """Take a column's other rows out of the file: their names hold sizes, which have changed since."""
    rows = pd.read_csv(file)
    rows[(rows.column != column) | rows.benchmark.isin(names)].to_csv(file, index=False, float_format="%.4g")


def main() -> None:
    """Measure, print and keep."""
    names = ("drawing", "step", "dpo", "reward", "share", "growth")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default=device())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    asked = parser.parse_args()
    if asked.device != device():
        parser.error(f"--device {asked.device}: models go to {device()} here (CUDA_VISIBLE_DEVICES= hides a GPU)")
    transformers.logging.disable_progress_bar()
    asked.out.mkdir(parents=True, exist_ok=True)
    # One thread, as each run of the report has it.
    column, threads = ("1 thread", 1) if asked.device == "cpu" else (torch.cuda.get_device_name(), 2)
    torch.set_num_threads(threads)
    done = []
    with tempfile.TemporaryDirectory() as folder:
        for name, row in measured(Path(folder), asked.repeats, asked.only):
            print(f"{column}, {name}: {row['ratio']:.2f}", file=sys.stderr, flush=True)
            keep({"benchmark": name, "column": column, **row}, asked.out / "peers.csv")
            done.append(name)
    if asked.only == names:
        keep_only(done, column, asked.out / "peers.csv")
    if (file := asked.out / "peers.csv").is_file():  # growth alone has none
        print(readme.ratios(pd.read_csv(file)))
    if "growth" in asked.only and asked.device == "cpu":
        torch.set_num_threads(1)
        table = growth(min(3, asked.repeats))
        table.to_csv(asked.out / "growth.csv", float_format="%.3g")
        shown = table.round(2).reset_index()
        print(f"\n{readme.markdown([shown], dict(zip(shown, shown, strict=True)))}")


if __name__ == "__main__":
    main()
