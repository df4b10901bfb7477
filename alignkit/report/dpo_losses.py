"""Notebook 2: preference losses, other pairs, and what one would try before; its runs."""

from collections.abc import Mapping

import pandas as pd
from transformers import AutoTokenizer

from alignkit.report.policies import (
    EVALUATION,
    Method,
    Policy,
    Runs,
    aligned,
    dpo,
    evaluated,
    on_pairs,
    paired,
    prepared,
    shared,
)
from alignkit.training.baselines import FineTuning, SearchSettings, guided_search, positive_words, train_on_positive
from alignkit.training.pairs import CONSTRUCTIONS
from alignkit.workflow.schema import DpoLosses
from alignkit.workflow.store import get

BASELINES = {
    "positive reviews": "fine-tuning on positive reviews",
    "positive prefix": "",
    "keyword bias": "",
    "guided search": "",
}
"""What needs no pairs, and the front it belongs to."""


def methods(p: DpoLosses) -> list[Method]:
    """The main losses, the sweep over beta, other pairs, and what earlier reports ran."""
    beta, smoothed = p.main_beta, {"label_smoothing": p.label_smoothing}
    usual = lambda loss: {"family": f"DPO, {loss} loss"}  # noqa: E731
    main = [
        Method("sigmoid", dpo("sigmoid", beta), main=True, **usual("sigmoid")),
        Method("hinge", dpo("hinge", beta), main=True, **usual("hinge")),
        Method("ipo", dpo("ipo", p.ipo_beta), main=True, **usual("ipo")),
        Method("kto_pair", dpo("kto_pair", beta), main=True, **usual("kto_pair")),
        Method("cdpo", dpo("cdpo", beta, **smoothed), main=True, **usual("cdpo")),
    ]
    sweep = [
        Method(f"{loss} β={b:g}", dpo(loss, b), **usual(loss))
        for loss in ("sigmoid", "hinge")
        for b in p.betas
        if b != beta
    ]
    others = [
        Method("robust", dpo("robust", beta, **smoothed), **usual("robust")),
        Method("ipo_per_token", dpo("ipo_per_token", p.ipo_per_token_beta), **usual("ipo_per_token")),
        *(Method(f"{name} pairs", dpo("sigmoid", beta), pairs=f"pairs: {name}") for name in other_pairs(p)),
        Method("no near-duplicates", dpo("sigmoid", beta), pairs="pairs: no near-duplicates"),
        Method("lora", dpo("sigmoid", beta, lora_rank=p.lora_rank, lr=p.lora_lr)),
    ]
    deviations = [
        *(Method(f"one object, {loss}", dpo(loss, beta, scores="one_object")) for loss in ("sigmoid", "hinge")),
        Method("a tenth of the learning rate", dpo("sigmoid", beta, lr=p.dpo_lr / 10)),
        Method("ten times β, three times the learning rate", dpo("sigmoid", 10 * beta, lr=3 * p.dpo_lr)),
    ]
    return [*main, *sweep, *others, *deviations]


def other_pairs(p: DpoLosses) -> list[str]:
    """The constructions beside the profile's own."""
    return [name for name in CONSTRUCTIONS if name != p.construction()]


def recipe(p: DpoLosses, seed: int) -> Runs:
    """All runs of the notebook for one seed."""
    runs = prepared(p, seed)
    if seed != p.seeds[0]:
        return aligned(p, seed, methods(p), runs)
    runs |= {f"pairs: {name}": paired(p, seed, runs, name) for name in other_pairs(p)}
    unlike = paired(p, seed, runs, p.construction(), max_similarity=p.max_similarity)
    runs["pairs: no near-duplicates"] = unlike
    return aligned(p, seed, methods(p), runs) | baselines(p, seed, runs)


def baselines(p: DpoLosses, seed: int, runs: Runs) -> Runs:
    """What one would try before preference learning."""
    tokenizer = AutoTokenizer.from_pretrained(runs["sft"].path)
    words = positive_words(p.reviews(), tokenizer, p.biased_words, p.word_bias)
    search = SearchSettings(n_prompts=p.prompts, max_new_tokens=p.new_tokens, reward_tokens=p.reward_tokens)
    models = {"policy": runs["sft"], "reward": runs["reward"]}
    gently = FineTuning(p.sft_tokens, p.sft_held_out, epochs=1.0, batch=p.sft_batch, lr=p.sft_lr / 4)
    tuned = {"positive reviews": get(train_on_positive, gently, **shared(p, seed), policy=runs["sft"])}
    runs = runs | tuned
    return {
        **tuned,
        **evaluated(p, seed, runs, "positive reviews", main=False),
        **evaluated(p, seed, runs, "positive prefix", main=False, policy="sft", prefix=p.positive_prefix),
        **evaluated(p, seed, runs, "keyword bias", main=False, policy="sft", bias=words),
        "guided search" + EVALUATION: get(guided_search, search, **shared(p, seed), **models),
    }


def policies(p: DpoLosses, runs: Mapping[int, Runs]) -> list[Policy]:
    """Every evaluated policy of the notebook."""
    found = on_pairs(runs, methods(p))
    first = runs[p.seeds[0]]
    for name, family in BASELINES.items():
        trained = (first[name],) if name in first else ()
        found.append(Policy(name, p.seeds[0], first[name + EVALUATION], family=family, trained=trained))
    return found


def chosen_texts(by_name: Runs) -> pd.DataFrame:
    """The chosen texts of the training pairs, each once, with prompt, completion, text and reward."""
    pairs = pd.read_parquet(by_name["pairs"].path / "pairs" / "train.parquet")
    drawn = pd.read_parquet(by_name["generations"].path / "generations.parquet")
    chosen = pairs[["prompt", "chosen"]].drop_duplicates().rename(columns={"chosen": "completion"})
    return chosen.merge(drawn.drop_duplicates(["prompt", "completion"]), on=["prompt", "completion"])
