"""Which runs each notebook asks for.

A notebook and `alignkit train` call the same recipe, so what one trains the other loads, and a run that two notebooks
ask for is trained once.  Main rows are trained for every seed, side rows for the first seed of the profile only.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any, NamedTuple

import transformers
from transformers import AutoTokenizer

from alignkit.divergences import divergence
from alignkit.report.front_recipe import pool, sweep
from alignkit.report.improvements_recipe import confirmed, hacked, idea_points, proxies, spherical_path, unused_seeds
from alignkit.report.warp_recipe import Point, study
from alignkit.training.baselines import FineTuning, SearchSettings, guided_search, positive_words, train_on_positive
from alignkit.training.dpo import DpoSettings, train_dpo
from alignkit.training.evaluate import EvaluationSettings, SamplingSettings, evaluate, sample_completions
from alignkit.training.pairs import CONSTRUCTIONS, GenerationSettings, PairSettings, build_pairs, generate
from alignkit.training.reward import RewardSettings, train_reward
from alignkit.training.sft import SftSettings, train_sft
from alignkit.workflow.schema import (
    Aligned,
    Divergent,
    DpoLosses,
    Evaluated,
    FDivergences,
    Improvements,
    OneFront,
    Primer,
    Rewarded,
    RewardModel,
    Warp,
    World,
)
from alignkit.workflow.store import Run, get

# Bars of loading models would stay in the notebooks, as widgets without their state.
transformers.logging.disable_progress_bar()

Runs = dict[str, Run]


def _shared(p: World, seed: int) -> dict[str, Any]:
    return {"seed": seed, "data": p.reviews()}


def supervised(p: World, seed: int) -> Run:
    """The SFT policy."""
    return get(train_sft, SftSettings(**p.sft()), **_shared(p, seed))


def rewarding(p: Rewarded, seed: int) -> Run:
    """The reward model: all pairs, all train reviews."""
    return get(train_reward, RewardSettings(**p.reward_training()), **_shared(p, seed))


def reward_model(p: RewardModel, seed: int) -> Runs:
    """Notebook 1: the reward model, what it is compared with, and the SFT policy with its samples.

    - reward: all pairs, all train reviews
    - curve_N: the same on N reviews, with others held out, which give validation and the sign boundary
    - matched: the largest of these, with one partner for each review in place of all pairs
    """
    shared = _shared(p, seed)
    small = RewardSettings(**p.reward_training(), held_out=p.held_out, min_steps=p.curve_min_steps)
    matched = replace(small, n_train=max(p.curve_reviews), pairs="matched")
    runs = {
        "reward": rewarding(p, seed),
        **{f"curve_{n}": get(train_reward, replace(small, n_train=n), **shared) for n in p.curve_reviews},
        "matched": get(train_reward, matched, **shared),
        "sft": supervised(p, seed),
    }
    drawn = get(sample_completions, SamplingSettings(**p.sampling()), **shared, policy=runs["sft"])
    return runs | {"completions": drawn}


# Policies trained on pairs


class Method(NamedTuple):
    """One way to train a policy on preference pairs."""

    name: str
    settings: dict[str, Any]
    """Of `dpo.train_dpo`, beyond what all methods share."""
    main: bool = False
    """Trained for every seed, with `main_completions` completions a prompt."""
    pairs: str = "pairs"
    """The name of the pairs run."""


def started(p: Evaluated, seed: int) -> Runs:
    """What every method starts from: the SFT policy, the reward model; and SFT evaluated."""
    runs = {"sft": supervised(p, seed), "reward": rewarding(p, seed)}
    return runs | evaluated(p, seed, runs, "sft", main=True)


def prepared(p: Aligned, seed: int) -> Runs:
    """What learning from pairs needs beyond `started`: scored generations and pairs."""
    runs = started(p, seed)
    models = {"policy": runs["sft"], "reward": runs["reward"]}
    runs["generations"] = get(generate, GenerationSettings(**p.generation()), **_shared(p, seed), **models)
    return runs | {"pairs": paired(p, seed, runs, p.construction())}


def paired(p: Aligned, seed: int, runs: Runs, construction: str, **settings: float) -> Run:
    """The pairs of one construction."""
    limits = p.thresholds() if construction == "threshold" else {}
    return get(
        build_pairs, PairSettings(construction, **limits, **settings), seed=seed, generations=runs["generations"]
    )


def evaluated(p: Evaluated, seed: int, runs: Runs, name: str, *, main: bool, policy: str = "", **settings: Any) -> Runs:
    """The evaluation of run `name`, or of run `policy` with other settings, under the name that the tables read."""
    models = {"policy": runs[policy or name], "reference": runs["sft"], "reward": runs["reward"]}
    how = EvaluationSettings(**p.evaluation(p.main_completions if main else p.side_completions), **settings)
    return {f"{name}: evaluation": get(evaluate, how, **_shared(p, seed), **models)}


def aligned(p: Aligned, seed: int, methods: Iterable[Method], runs: Runs) -> Runs:
    """Train and evaluate each method; `runs` are those of `prepared`, and further pairs."""
    for method in methods:
        if not method.main and seed != p.seeds[0]:
            continue
        # As many steps on other pairs as on the profile's own, however many there are.
        share = runs["pairs"].metrics["train_pairs"] / runs[method.pairs].metrics["train_pairs"]
        settings = DpoSettings(**p.dpo() | {"epochs": p.dpo()["epochs"] * share} | method.settings)
        trained = get(train_dpo, settings, seed=seed, policy=runs["sft"], pairs=runs[method.pairs])
        runs = runs | {method.name: trained}
        runs |= evaluated(p, seed, runs, method.name, main=method.main)
    return runs


def f_dpo(divergence: str, beta: float, **settings: Any) -> dict[str, Any]:
    """The settings of the sigmoid loss under a divergence: the same words in every notebook, so the same run."""
    return {"loss": "sigmoid", "divergence": divergence, "beta": beta, **settings}


def dpo(loss: str, beta: float, **settings: Any) -> dict[str, Any]:
    """The settings of a preference loss under reverse KL."""
    return {**f_dpo("reverse_kl", beta), "loss": loss, **settings}


def primer(p: Primer, seed: int) -> Runs:
    """Notebook 0: DPO, the main row of notebook 2."""
    runs = prepared(p, seed)
    methods = [Method("sigmoid", dpo("sigmoid", p.main_beta), main=True)]
    return aligned(p, seed, methods, runs)


def loss_methods(p: DpoLosses) -> list[Method]:
    """The methods of notebook 2: main losses, the sweep over beta, other pairs, and what earlier reports ran."""
    beta, smoothed = p.main_beta, {"label_smoothing": p.label_smoothing}
    main = [
        Method("sigmoid", dpo("sigmoid", beta), main=True),
        Method("hinge", dpo("hinge", beta), main=True),
        Method("ipo", dpo("ipo", p.ipo_beta), main=True),
        Method("kto_pair", dpo("kto_pair", beta), main=True),
        Method("cdpo", dpo("cdpo", beta, **smoothed), main=True),
    ]
    sweep = [Method(f"{loss} β={b:g}", dpo(loss, b)) for loss in ("sigmoid", "hinge") for b in p.betas if b != beta]
    others = [
        Method("robust", dpo("robust", beta, **smoothed)),
        Method("ipo_per_token", dpo("ipo_per_token", p.ipo_per_token_beta)),
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


def dpo_losses(p: DpoLosses, seed: int) -> Runs:
    """Notebook 2: the methods of `loss_methods`, and the baselines that need no pairs."""
    runs = prepared(p, seed)
    if seed != p.seeds[0]:
        return aligned(p, seed, loss_methods(p), runs)
    runs |= {f"pairs: {name}": paired(p, seed, runs, name) for name in other_pairs(p)}
    unlike = paired(p, seed, runs, p.construction(), max_similarity=p.max_similarity)
    runs["pairs: no near-duplicates"] = unlike
    return aligned(p, seed, loss_methods(p), runs) | baselines(p, seed, runs)


def baselines(p: DpoLosses, seed: int, runs: Runs) -> Runs:
    """What one would try before preference learning."""
    tokenizer = AutoTokenizer.from_pretrained(runs["sft"].path)
    words = positive_words(p.reviews(), tokenizer, p.biased_words, p.word_bias)
    search = SearchSettings(n_prompts=p.prompts, max_new_tokens=p.new_tokens, reward_tokens=p.reward_tokens)
    models = {"policy": runs["sft"], "reward": runs["reward"]}
    gently = FineTuning(p.sft_tokens, p.sft_held_out, epochs=1.0, batch=p.sft_batch, lr=p.sft_lr / 4)
    tuned = get(train_on_positive, gently, **_shared(p, seed), policy=runs["sft"])
    runs = runs | {"positive reviews": tuned}
    return {
        "positive reviews": tuned,
        **evaluated(p, seed, runs, "positive reviews", main=False),
        **evaluated(p, seed, runs, "positive prefix", main=False, policy="sft", prefix=p.positive_prefix),
        **evaluated(p, seed, runs, "keyword bias", main=False, policy="sft", bias=words),
        "guided search: evaluation": get(guided_search, search, **_shared(p, seed), **models),
    }


def divergence_methods(p: FDivergences) -> list[Method]:
    """The methods of notebook 3: a sweep over beta for each divergence, and what earlier reports ran."""
    alphas = [
        Method(f"alpha {a:g} β={b:g}", f_dpo("alpha", b, alpha=a), main=a == 0.5)
        for a in p.alphas
        for b in p.alpha_betas
    ]
    beta = p.js_betas[0]
    deviations = [
        Method("js, chosen to rejected", f_dpo("js", beta, scores="chosen_to_rejected")),
        Method("total variation", f_dpo("total_variation", p.main_beta)),
        Method("total variation, detached", f_dpo("total_variation", p.main_beta, scores="detached")),
        Method("gan", f_dpo("gan", beta)),
    ]
    longer = [
        Method(f"{name}, three times as long", f_dpo(name, b, epochs=3 * p.divergence_epochs))
        for name, b in (("reverse_kl", p.reverse_kl_betas[-1]), ("forward_kl", p.forward_kl_betas[-1]))
    ]
    return [*common_sweeps(p), *alphas, *deviations, *longer]


def common_sweeps(p: Divergent) -> list[Method]:
    """Reverse KL, forward KL and Jensen-Shannon, each over its own betas: main rows in notebook 3, measure in 5."""
    sweeps = {"reverse_kl": p.reverse_kl_betas, "forward_kl": p.forward_kl_betas, "js": p.js_betas}
    return [Method(f"{name} β={b:g}", f_dpo(name, b), main=True) for name, betas in sweeps.items() for b in betas]


def f_divergences(p: FDivergences, seed: int) -> Runs:
    """Notebook 3: the methods of `divergence_methods`."""
    return aligned(p, seed, divergence_methods(p), prepared(p, seed))


def warp_points(p: Warp, seed: int) -> list[Point]:
    """Notebook 4: the evaluated policies of `warp_recipe.variations`."""
    runs = started(p, seed)
    return study(p, seed, runs["sft"], runs["reward"])


def warp(p: Warp, seed: int) -> Runs:
    """Notebook 4: all runs behind `warp_points`, each once."""
    return _each_once(started(p, seed), [pair for point in warp_points(p, seed) for pair in parts(point)])


NEW_DIVERGENCES = ("pearson_chi2", "neyman_chi2", "cnp_chi2", "hellinger", "jeffrey", "chi_po", "chi_alpha",
                   "total_variation", "gan")  # fmt: skip
"""Those of notebook 5."""
PROMISING = ("chi_po", "pearson_chi2")
"""Those that looked best on the first seed, and are trained for every seed."""
OTHER_LOSSES = ("ipo", "kto_pair")
"""Losses that notebook 5 combines with several divergences."""


def strength_to_beta(name: str, strength: float) -> float:
    """The β with which a divergence's score has the slope `strength` at the reference, where reverse KL has β.

    Total variation and χ^α have no such slope and take the strength itself.
    """
    return strength if name in ("total_variation", "chi_alpha") else strength / float(divergence(name).slope(0.0))


def new_divergence_methods(p: Improvements) -> list[Method]:
    """Notebook 5's runs on pairs: new divergences over β, and two other losses under several divergences.

    Total variation does not move and GAN is Jensen-Shannon (notebook 3): one β is enough to show it again.
    """
    found = []
    for name in NEW_DIVERGENCES:
        alpha = {"alpha": p.chi_alpha} if name == "chi_alpha" else {}
        strengths = p.strengths[:1] if name in ("total_variation", "gan") else p.strengths
        for b in (strength_to_beta(name, s) for s in strengths):
            found.append(Method(f"{name} β={b:g}", f_dpo(name, b, **alpha), main=name in PROMISING))
    for loss in OTHER_LOSSES:
        for name in ("reverse_kl", "js", "chi_po"):
            b = strength_to_beta(name, p.main_beta)
            found.append(Method(f"{loss}, {name}", f_dpo(name, b, loss=loss)))
    return found


def improved_pairs(p: Improvements, seed: int) -> Runs:
    """Notebook 5: the common sweeps and `new_divergence_methods`, on notebook 3's pairs."""
    return aligned(p, seed, [*common_sweeps(p), *new_divergence_methods(p)], prepared(p, seed))


def improvements(p: Improvements, seed: int) -> Runs:
    """Notebook 5: all runs, each once; of a seed that is there for the confirmation alone, what is confirmed."""
    runs: Runs = {}
    named: list[tuple[str, Run]] = []
    if seed not in p.confirm_seeds:
        runs = improved_pairs(p, seed)
        named += beyond_pairs(p, seed, runs["sft"], runs["reward"])
    if seed in unused_seeds(p):
        new = confirmed(p, seed)
        start = {"sft": new.sft, "reward": new.reward, "sft: evaluation": new.evaluation}
        named += [(f"confirmation: {name}", run) for name, run in start.items()]
        named += [(f"confirmation: {name}", run) for point in new.points for name, run in parts(point)]
    return _each_once(runs, named)


def beyond_pairs(p: Improvements, seed: int, sft: Run, reward: Run) -> list[tuple[str, Run]]:
    """Notebook 5's variations of WARP, the arc through its iterates, weak proxies and what is trained on them."""
    found = idea_points(p, seed, sft, reward)
    named = [pair for point in found for pair in parts(point)]
    if seed == p.seeds[0]:
        arc = spherical_path(p, seed, sft, reward, found)
        named += [(f"arc, {share:g}: evaluation", run) for share, run in arc]
    named += [(f"proxy: {name}", run) for name, run in proxies(p, seed, reward).items()]
    for h in hacked(p, seed, sft, reward):
        place = f"proxy: {h.proxy}"
        named += [(f"{place}, RLOO", h.trained), (f"{place}, {h.steps} steps: evaluation", h.evaluation)]
    return named


def parts(point: Point) -> list[tuple[str, Run]]:
    """The runs behind a point of a front, named."""
    thetas = [(f"{point.variation.name}, run {i}", run) for i, run in enumerate(point.thetas, start=1)]
    return [*thetas, (f"{point.name}: merge", point.merged), (f"{point.name}: evaluation", point.evaluation)]


def _each_once(runs: Runs, named: Iterable[tuple[str, Run]]) -> Runs:
    out, known = dict(runs), {run.id for run in runs.values()}
    for name, run in named:
        if run.id not in known:
            out[name] = run
            known.add(run.id)
    return out


def one_front(p: OneFront, seed: int) -> Runs:
    """Notebook 6: its own sweep and the pool; the other policies come from the tables of the other notebooks."""
    runs = started(p, seed)
    trained = sweep(p, seed, runs["sft"], runs["reward"])
    return runs | trained | {"pool": pool(p, seed, runs["sft"], runs["reward"], trained)}


RECIPES: dict[str, Callable[[Any, int], Runs]] = {
    "0_primer": primer,
    "1_reward_model": reward_model,
    "2_dpo_losses": dpo_losses,
    "3_f_divergences": f_divergences,
    "4_warp": warp,
    "5_improvements": improvements,
    "6_one_front": one_front,
}
