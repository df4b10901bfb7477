"""Notebook 2: preference losses, other pairs, and what one would try before; its runs."""

from collections.abc import Mapping
from dataclasses import replace

import pandas as pd
from transformers import AutoTokenizer

from alignkit.losses import needs
from alignkit.report import policies as common
from alignkit.report.policies import EVALUATION, PAIRED, Method, Policy, Runs, dpo
from alignkit.report.tables import differences, reversed_differences
from alignkit.training.baselines import FineTuning, SearchSettings, guided_search, positive_words, train_on_positive
from alignkit.training.dpo import DpoSettings, train_dpo
from alignkit.training.pairs import CONSTRUCTIONS, GenerationSettings, fewer_pairs, generate
from alignkit.workflow.schema import DpoLosses
from alignkit.workflow.store import get

LOSSES = ("sigmoid", "hinge", "ipo", "kto_pair", "cdpo", "robust")
"""What is compared; a method with such a name is the loss at its usual β."""
ON_POLICY, IMITATION = "DPO, on-policy", "fine-tuning on positive reviews"
BASELINES = ("positive prefix", "keyword bias", "guided search")
"""What needs no training."""
DRAWN_AGAIN = ("sft", "sigmoid", "hinge")
"""Main rows that are also evaluated as side rows are, so that these have something to be compared with."""
AGAIN = ", drawn as a side row"


def methods(p: DpoLosses) -> list[Method]:
    """Each loss over beta, DPO on fewer pairs, other pairs, and what earlier reports ran."""
    beta, smoothed = p.main_beta, {"label_smoothing": p.label_smoothing}
    main = []
    for loss in LOSSES:
        usual, more = (p.ipo_beta, p.ipo_betas) if loss == "ipo" else (beta, p.loss_betas)
        given = smoothed if "label_smoothing" in needs(loss) else {}
        names = {usual: loss} | {b: f"{loss} β={b:g}" for b in more if b != usual}
        main += [Method(name, dpo(loss, b, **given), True, family=family_of(loss)) for b, name in names.items()]
    return [
        *main,
        *(Method(of_share(s), dpo("sigmoid", beta), True, pairs=f"pairs: {of_share(s)}") for s in p.pair_shares),
        Method("ipo_per_token", dpo("ipo_per_token", p.ipo_per_token_beta), family=family_of("ipo_per_token")),
        *(Method(f"{name} pairs", dpo("sigmoid", beta), pairs=f"pairs: {name}") for name in other_pairs(p)),
        Method("no near-duplicates", dpo("sigmoid", beta), pairs="pairs: no near-duplicates"),
        Method("lora", dpo("sigmoid", beta, lora_rank=p.lora_rank, lr=p.lora_lr)),
        # What earlier reports ran.
        *(Method(f"one object, {loss}", dpo(loss, beta, scores="one_object")) for loss in ("sigmoid", "hinge")),
        Method("a tenth of the learning rate", dpo("sigmoid", beta, lr=p.dpo_lr / 10)),
        Method("ten times β, three times the learning rate", dpo("sigmoid", 10 * beta, lr=3 * p.dpo_lr)),
    ]


def family_of(loss: str) -> str:
    """The front that a loss belongs to."""
    return f"DPO, {loss} loss"


def of_share(share: float) -> str:
    """What DPO on a part of the pairs is called."""
    return f"{share:g} of the prompts"


def names_over_beta(p: DpoLosses) -> list[str]:
    """DPO's methods for each β of the sweep."""
    return [method.name for method in methods(p) if method.family == family_of("sigmoid")]


def other_pairs(p: DpoLosses) -> list[str]:
    """The constructions beside the profile's own."""
    return [name for name in CONSTRUCTIONS if name != p.construction()]


def recipe(p: DpoLosses, seed: int) -> Runs:
    """All runs of the notebook for one seed."""
    runs = common.prepared(p, seed)
    runs |= {f"pairs: {of_share(s)}": get(fewer_pairs, pairs=runs["pairs"], share=s) for s in p.pair_shares}
    if seed == p.seeds[0]:
        runs |= {f"pairs: {name}": common.paired(p, seed, runs, name) for name in other_pairs(p)}
        unlike = common.paired(p, seed, runs, p.construction(), max_similarity=p.max_similarity)
        runs["pairs: no near-duplicates"] = unlike
    runs = common.aligned(p, seed, methods(p), runs)
    runs |= on_policy(p, seed, runs) | imitation(p, seed, runs)
    return runs | baselines(p, seed, runs) if seed == p.seeds[0] else runs


def on_policy(p: DpoLosses, seed: int, runs: Runs) -> Runs:
    """DPO whose pairs are drawn in rounds, each from the policy of the last; for each β of the sweep.

    As many completions and steps in all as its off-policy twin, with the same settings; the reference stays SFT.
    """
    drawing = GenerationSettings(p.pair_prompts, p.pair_samples, p.new_tokens, p.reward_tokens)
    found: Runs = {}
    for name in names_over_beta(p):
        twin, policy = DpoSettings(**runs[name].record["settings"]), runs["sft"]
        steps = twin.epochs * runs["pairs"].metrics["train_pairs"] / p.on_policy_rounds
        for part in range(p.on_policy_rounds):
            if part and policy.metrics["status"] != "ok":
                break  # nothing can be drawn from a diverged policy
            place = {"stream": part, "part": part, "parts": p.on_policy_rounds}
            drawn = get(generate, drawing, **common.scoring(p, seed, runs), policy=policy, **place)
            pairs = common.paired(p, seed, {"generations": drawn}, p.construction())
            settings = replace(twin, epochs=steps / pairs.metrics["train_pairs"])
            policy = get(train_dpo, settings, seed=seed, policy=policy, pairs=pairs)
            label = in_round(name, part)
            # The first round draws from SFT, whatever β is.
            source = label if part else "on-policy, round 1"
            found |= {f"{source}: generations": drawn, f"{source}: pairs": pairs, label: policy}
        name = f"on-policy {name}"
        found |= common.evaluated(p, seed, runs | {name: policy}, name, main=True)
    return found


def in_round(name: str, part: int) -> str:
    """What a round of on-policy DPO is called, given its off-policy twin."""
    return f"on-policy {name}, round {part + 1}"


def imitation(p: DpoLosses, seed: int, runs: Runs) -> Runs:
    """Fine-tuning on positive reviews alone, and points between SFT and the policy that it ends with."""
    gently = FineTuning(p.sft_tokens, p.sft_held_out, epochs=1.0, batch=p.sft_batch, lr=p.sft_lr / 4)
    tuned = get(train_on_positive, gently, **common.shared(p, seed), policy=runs["sft"])
    points = {eta: common.interpolated(p, seed, runs, tuned, eta, main=True) for eta in p.imitation_etas}
    return {"positive reviews": tuned} | {imitated(eta) + EVALUATION: run for eta, run in points.items()}


def imitated(eta: float) -> str:
    """What fine-tuning on positive reviews is called at a point between SFT and its end."""
    return f"positive reviews, η={eta:g}"


def baselines(p: DpoLosses, seed: int, runs: Runs) -> Runs:
    """What one would try before any training, with as many draws as main rows; and what side rows are compared with."""
    tokenizer = AutoTokenizer.from_pretrained(runs["sft"].path, trust_remote_code=False)
    words = positive_words(p.reviews(), tokenizer, p.biased_words, p.word_bias)
    search = SearchSettings(n_prompts=p.prompts, max_new_tokens=p.new_tokens, reward_tokens=p.reward_tokens)
    inputs = {**common.shared(p, seed), "policy": runs["sft"], "reward": runs["reward"]}
    found = common.evaluated(p, seed, runs, "positive prefix", main=True, policy="sft", prefix=p.positive_prefix)
    found |= common.evaluated(p, seed, runs, "keyword bias", main=True, policy="sft", bias=words)
    found |= {"guided search" + EVALUATION: common.assessed(p, guided_search, search, **inputs)}
    for name in DRAWN_AGAIN:
        found |= common.evaluated(p, seed, runs, name + AGAIN, main=False, policy=name)
    return found


def policies(p: DpoLosses, runs: Mapping[int, Runs]) -> list[Policy]:
    """Every evaluated policy of the notebook."""
    found = common.policies_on_pairs(runs, methods(p))
    for seed, by_name in runs.items():
        found += [_in_rounds(p, seed, by_name, name) for name in names_over_beta(p)]
        for eta in p.imitation_etas:
            record, tuned = by_name[imitated(eta) + EVALUATION], (by_name["positive reviews"],)
            found.append(Policy(imitated(eta), seed, record, True, IMITATION, tuned, where={"eta": eta}))
    seed, first = p.seeds[0], runs[p.seeds[0]]
    found += [Policy(name, seed, first[name + EVALUATION]) for name in BASELINES]
    for policy in [one for one in found if one.seed == seed and one.method in DRAWN_AGAIN]:
        name = policy.method + AGAIN
        found.append(replace(policy, method=name, evaluation=first[name + EVALUATION], main=False, family=""))
    return found


def _in_rounds(p: DpoLosses, seed: int, runs: Runs, name: str) -> Policy:
    """On-policy DPO after its last round, with what all rounds cost."""
    rounds = [label for part in range(p.on_policy_rounds) if (label := in_round(name, part)) in runs]
    drawn = [runs[f"{source}: generations"] for source in ("on-policy, round 1", *rounds[1:])]
    shown = {key: runs[name].record["settings"][key] for key in PAIRED}
    shown |= {"pairs": "on-policy", "tokens_generated": sum(run.metrics["tokens_generated"] for run in drawn)}
    record, trained = runs[f"on-policy {name}{EVALUATION}"], [runs[label] for label in rounds]
    return Policy(f"on-policy {name}", seed, record, True, ON_POLICY, trained, settings=shown)


# What the page reads


def side_rows(table: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Side rows of these methods; where a main row is asked for, the one of the same policy with a side row's draws."""
    drawn = [name + AGAIN if name in DRAWN_AGAIN else name for name in names]
    rows = table[table.row == "side"].set_index("method").loc[drawn].reset_index()
    usual = {"sft": "sft", "sigmoid": family_of("sigmoid"), "hinge": family_of("hinge")}
    family = [usual.get(name, own or name) for name, own in zip(names, rows.family, strict=True)]
    return rows.assign(method=names, family=family)


def sizes(p: DpoLosses, runs: Mapping[int, Runs], table: pd.DataFrame) -> pd.DataFrame:
    """DPO on each share of the prompts, all of them last; a column train_pairs."""
    pairs = {of_share(share): f"pairs: {of_share(share)}" for share in sorted(p.pair_shares)} | {"sigmoid": "pairs"}
    rows = pd.concat([table[table.method == method] for method in pairs])
    counted = [runs[row.seed][pairs[row.method]].metrics["train_pairs"] for row in rows.itertuples()]
    return rows.assign(train_pairs=counted, method=rows.method.replace("sigmoid", "all prompts"))


def size_gains(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """All prompts minus each share of them, as `differences`; a column share."""
    found = reversed_differences(differences(rows, "all prompts", columns))
    return found.assign(share=found.method.str.split().str[0].astype(float))


def chosen_texts(by_name: Runs) -> pd.DataFrame:
    """The chosen texts of the training pairs, each once, with prompt, completion, text and reward."""
    pairs = pd.read_parquet(by_name["pairs"].path / "pairs" / "train.parquet")
    drawn = pd.read_parquet(by_name["generations"].path / "generations.parquet")
    chosen = pairs[["prompt", "chosen"]].drop_duplicates().rename(columns={"chosen": "completion"})
    return chosen.merge(drawn.drop_duplicates(["prompt", "completion"]), on=["prompt", "completion"])
