"""Notebook 5: what improves on DPO and WARP; other divergences, less noise, a fixed anchor, averaged reward models."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import product

import pandas as pd

from alignkit.divergences import FIXED, WITH_ALPHA, divergence
from alignkit.metrics import holm, unigram_entropy
from alignkit.report import policies
from alignkit.report.gold import evaluated_texts
from alignkit.report.policies import EVALUATION, Method, Policy, Runs, Variation, f_dpo
from alignkit.report.tables import reversed_differences
from alignkit.report.towards import approach, named_steps, other_ways, warp_from, with_few_tokens
from alignkit.training.evaluate import evaluate
from alignkit.training.merge import between
from alignkit.training.reinforce import SENTENCE, train_policy_gradient
from alignkit.training.reward import RewardSettings, average_rewards, train_reward
from alignkit.workflow.schema import Improvements
from alignkit.workflow.store import Run, get

ONCE = ("total_variation", "gan")
"""Total variation does not move and GAN is Jensen-Shannon (notebook 3): one β is enough to show it again."""
NEW_DIVERGENCES = (*(n for n in FIXED if n not in ("reverse_kl", "forward_kl", "js", *ONCE)), "chi_alpha", *ONCE)
"""All that notebook 3 does not sweep."""
PROMISING = ("chi_po", "pearson_chi2")  # looked best on the first seed, and are trained for every seed
OTHER_LOSSES = ("ipo", "kto_pair")  # are combined with several divergences
ANCHORED = "anchored RLOO"  # a fixed anchor, a rate that falls, one run, no merge
CHOSEN = "anchored, sentence credit"  # the same with credit by sentence: the best method on the first seed
WITH_RLOO = "WARP + RLOO"
TUNED = "WARP + RLOO, higher rate"  # at the learning rate of the anchored methods
COMPARED = ("WARP", WITH_RLOO, CHOSEN)  # what is confirmed on other seeds
FULL = "all reviews"  # the proxy of all other notebooks
MEMBERS = ((0.1, 0.0), (0.2, 0.2), (0.4, 0.4))
"""How the members of an averaged reward model differ as they are trained on: share of the learning rate, word dropout.
Small rates keep them near their common start, where the mean of their weights is a reward model as well."""


# On pairs


def strength_to_beta(name: str, strength: float) -> float:
    """The β with which a divergence's score has the slope `strength` at the reference, where reverse KL has β.

    The strength itself for one that is flat there (total variation) or whose slope there hangs on an α (χ^α: a kink).
    """
    slope = 0.0 if name in WITH_ALPHA else divergence(name).slope(0.0).item()
    return strength / slope if slope else strength


def methods(p: Improvements) -> list[Method]:
    """The common sweeps, new divergences over β, and two other losses under several divergences, over β as well."""
    found = policies.common_sweeps(p)
    for name in NEW_DIVERGENCES:
        alpha = {"alpha": p.chi_alpha} if name == "chi_alpha" else {}
        strengths = p.strengths[:1] if name in ONCE else p.strengths
        for b in (strength_to_beta(name, s) for s in strengths):
            found.append(Method(f"{name} β={b:g}", f_dpo(name, b, **alpha), name in PROMISING, family=f"DPO, {name}"))
    for loss, strengths in zip(OTHER_LOSSES, (p.ipo_strengths, p.strengths), strict=True):
        for name, s in product(("reverse_kl", "js", "chi_po"), strengths):
            b, usual = strength_to_beta(name, s), {"main": len(strengths) > 1, "family": f"DPO, {loss}, {name}"}
            found.append(Method(f"{loss}, {name} β={b:g}", f_dpo(name, b, loss=loss), **usual))
    return found


def runs_on_pairs(p: Improvements, seed: int) -> Runs:
    """The runs on notebook 3's pairs."""
    return policies.aligned(p, seed, methods(p), policies.prepared(p, seed))


def entropy_at_equal_draws(rows: pd.DataFrame, completions: int) -> pd.DataFrame:
    """Rows whose entropy of words is that of as many completions of each prompt, since it rises with their number.

    Of a row with more the first ones are read; one whose texts are not kept here stays as it is.
    """
    out = rows.copy()
    for index, run in rows.run[rows.completions > completions].items():
        if (texts := evaluated_texts(run)) is not None:
            few = texts.groupby("prompt", sort=False).head(completions)
            out.loc[index, "unigram_entropy"] = unigram_entropy(few.completion)
    return out


# Variations of WARP at equal tokens


def ideas(p: Improvements) -> list[Variation]:
    """WARP, then one change at a time, each with `equal_steps` steps of `warp_batch` completions."""
    iterations, runs = p.warp_iterations, p.warp_runs
    plain = {"steps": p.equal_steps // (iterations * runs), "keep": []}
    rloo = {**plain, "baseline": "rloo", "k": p.main_samples}
    fixed = {**rloo, "anchor": "reference"}
    falling = {**fixed, "lr": p.anchored_lr, "decay": True}
    alone = {**falling, "steps": p.equal_steps}
    four = {"iterations": iterations, "runs": runs, "etas": p.etas}
    one = {"etas": p.etas}
    found = [
        Variation("WARP", plain, **four, main=True, every=True, family=f"WARP, T={plain['steps']}"),
        Variation(WITH_RLOO, rloo, **four, main=True),
        Variation("+ fixed anchor", fixed, **four),
        Variation("+ falling rate", falling, **four),
        Variation(ANCHORED, alone, **one, main=True, family=f"{ANCHORED}, over η"),
        Variation(CHOSEN, {**alone, "baseline": SENTENCE, "k": 1}, **one, main=True),
        Variation("one run, EMA anchor", {**alone, "anchor": "ema"}, **one),
        Variation("one run, exact KL", {**alone, "exact_kl": True}, **one),
        Variation("WARP, falling rate", {**plain, "decay": True}, **four, main=True),
        Variation("WARP, fixed anchor", {**plain, "anchor": "reference"}, **four, main=True),
        Variation("WARP in one run", {**plain, "steps": p.equal_steps}, **one, main=True),
        Variation("anchored RLOO, constant rate", {**alone, "decay": False}, **one, main=True),
        Variation(TUNED, {**rloo, "lr": p.anchored_lr}, **four),
        *(Variation(f"{WITH_RLOO}, k={k}", {**rloo, "k": k, "batch": k * (p.warp_batch // k)}, **four)
          for k in p.rloo_samples if k != p.main_samples),
    ]  # fmt: skip
    return [idea._replace(family=idea.family or idea.name) for idea in found]


def lengths(p: Improvements) -> list[Variation]:
    """WARP + RLOO with other T, each for the first seed; unlike `ideas` not at equal tokens."""
    rloo = next(idea for idea in ideas(p) if idea.name == WITH_RLOO)._replace(main=False)
    named = {f"{WITH_RLOO}, T={steps}": {**rloo.changes, "steps": steps} for steps in p.rloo_steps}
    return [rloo._replace(name=name, changes=changes, family=name) for name, changes in named.items()]


def unused_seeds(p: Improvements) -> list[int]:
    """Those of the confirmation: all but the profile's first seed, on which rates and methods were chosen."""
    return [*p.seeds[1:], *p.confirm_seeds]


def confirmed(p: Improvements, seed: int) -> tuple[Runs, list[Policy]]:
    """A seed from its start: own SFT policy and reward model, evaluated; and the fronts of the compared methods.

    `side_completions` a prompt are enough: the interval is over seeds, which differ by far more than draws do.
    """
    runs = {"sft": policies.supervised(p, seed), "reward": policies.rewarding(p, seed)}
    runs |= policies.evaluated(p, seed, runs, "sft", main=False)
    compared = [v._replace(main=False, every=False) for v in ideas(p) if v.name in COMPARED]
    return runs, [x for v in compared for x in policies.points(p, seed, runs["sft"], runs["reward"], v)]


def spherical_path(p: Improvements, seed: int, sft: Run, reward: Run, found: Sequence[Policy]) -> dict[float, Run]:
    """Evaluations along the arc from the merge of WARP's first iteration to that of its last, by the share of the last.

    The nearest thing to spherical interpolation through several iterates (SQUAD) that is defined here: at the SFT
    policy itself the task vector is zero and has no direction.
    """
    merges = {policy.where["iteration"]: policy.merged for policy in found if policy.method == "WARP"}
    out = {}
    for share in (0.25, 0.5, 0.75):
        theta = get(between, init=sft, first=merges[1], second=merges[max(merges)], share=share)
        out[share] = policies.interpolated(p, seed, {"sft": sft, "reward": reward}, theta, 1.0, main=False)
    return out


def method_less_others(less: pd.DataFrame, method: str) -> pd.DataFrame:
    """A method less each of the others, from differences the other way round, `less`; Holm's p over all of them."""
    found = reversed_differences(less)
    return found.assign(label=method + " − " + found.method, holm=holm(found.p.to_numpy()))


def towards_optimum(p: Improvements, seed: int, sft: Run, reward: Run) -> list[Policy]:
    """Distillation and RLOO after it, at their own cost and at WARP's; for the first seed, parts and other ways."""
    runs = {"sft": sft, "reward": reward}
    found = [*approach(p, seed, runs), *with_few_tokens(p, seed, runs)]
    return [*found, *other_ways(p, seed, runs), *warp_from(p, seed, runs)] if seed == p.seeds[0] else found


# Proxies, and what is trained on them


def members(p: Improvements, seed: int) -> list[Run]:
    """The reward models that are averaged: from one start, on the same few reviews, as `MEMBERS` says."""
    few, inputs = RewardSettings(**p.reward_training(), min_steps=p.weak_steps), policies.shared(p, seed)
    few = replace(few, n_train=p.weak_reviews[-1])
    inputs["start"] = get(train_reward, few, **inputs)
    each = [replace(few, lr=share * p.reward_lr, word_dropout=dropout) for share, dropout in MEMBERS]
    return [get(train_reward, settings, **inputs) for settings in each]


def proxies(p: Improvements, seed: int, reward: Run) -> Runs:
    """The reward model; ones trained on few reviews; and for the last of these sizes the mean of three reward models.

    The first of the three is the single one that their mean is compared with.
    """
    few, inputs = RewardSettings(**p.reward_training(), min_steps=p.weak_steps), policies.shared(p, seed)
    weak = {f"{n} reviews": get(train_reward, replace(few, n_train=n), **inputs) for n in p.weak_reviews[:-1]}
    three, name = members(p, seed), f"{p.weak_reviews[-1]} reviews"
    averaged = get(average_rewards, data=p.reviews(), rewards=three, tokens=p.reward_tokens)
    return {FULL: reward, **weak, name: three[0], f"{name}, averaged": averaged}


def hacked(p: Improvements, seed: int, sft: Run, reward: Run) -> list[Policy]:
    """RLOO against each proxy with a KL so weak that the policy goes far, evaluated on the way."""
    kept = sorted({p.warp_steps // n for n in (8, 4, 2)} - {0})
    far = {"baseline": "rloo", "k": p.main_samples, "anchor": "reference", "beta": p.weak_beta, "keep": kept}
    found = []
    for name, proxy in proxies(p, seed, reward).items():
        common = policies.scoring(p, seed, {"sft": sft, "reward": proxy})
        trained = get(train_policy_gradient, policies.loop_settings(p, **far), **common, policy=sft, stream=[0, 0])
        for steps in [*kept, p.warp_steps]:
            policy = trained if steps == p.warp_steps else trained.at(f"step-{steps}")
            record = policies.assessed(p, evaluate, policies.measured(p, main=False), **common, policy=policy)
            known = {"trained": (trained,), "settings": {} if policy is trained else dict.fromkeys(policies.TOKENS)}
            found.append(Policy(name, seed, record, family=name, **known, where={"steps": steps}))
    return found


# All runs


def recipe(p: Improvements, seed: int) -> Runs:
    """All runs, each once; of a seed that is there for the confirmation alone, what is confirmed."""
    runs: Runs = {}
    named: list[tuple[str, Run]] = []
    if seed not in p.confirm_seeds:
        runs = runs_on_pairs(p, seed)
        named += beyond_pairs(p, seed, runs["sft"], runs["reward"])
    if seed in unused_seeds(p):
        start, fronts = confirmed(p, seed)
        new = [*start.items(), *(pair for policy in fronts for pair in policies.named_runs(policy))]
        named += [(f"confirmation: {name}", run) for name, run in new]
    return policies.each_once(runs, named)


def beyond_pairs(p: Improvements, seed: int, sft: Run, reward: Run) -> list[tuple[str, Run]]:
    """Variations of WARP, the arc through its iterates, weak proxies and what is trained on them."""
    found = policies.on_fronts(p, seed, sft, reward, [*ideas(p), *lengths(p)])
    named = [pair for policy in found for pair in policies.named_runs(policy)]
    named += [pair for policy in towards_optimum(p, seed, sft, reward) for pair in named_steps(policy)]
    if seed == p.seeds[0]:
        named += [(f"arc, {s:g}{EVALUATION}", run) for s, run in spherical_path(p, seed, sft, reward, found).items()]
    named += [(f"proxy: {name}", run) for name, run in proxies(p, seed, reward).items()]
    for policy in hacked(p, seed, sft, reward):
        place = f"proxy: {policy.method}"
        named += [(f"{place}, RLOO", policy.trained[0])]
        named += [(f"{place}, {policy.where['steps']} steps{EVALUATION}", policy.evaluation)]
    return named
