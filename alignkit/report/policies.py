"""What a policy is: one record for every method; the runs that notebooks share; one row a policy."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from alignkit.faults import UserFault
from alignkit.report.algorithm import warp
from alignkit.training.dpo import DpoSettings, train_dpo
from alignkit.training.evaluate import EvaluationSettings, evaluate
from alignkit.training.judge import JudgeSettings, evaluate_by_judge, train_judge
from alignkit.training.merge import evaluate_interpolation, merge_policies
from alignkit.training.pairs import GenerationSettings, PairSettings, build_pairs, generate
from alignkit.training.reinforce import LoopSettings, train_policy_gradient
from alignkit.training.reward import RewardSettings, train_reward
from alignkit.training.sft import SftSettings, train_sft
from alignkit.workflow.schema import Aligned, Evaluated, Loop, Rewarded, World
from alignkit.workflow.store import Run, get

Runs = dict[str, Run]
EVALUATION = ": evaluation"
"""What is put behind a run's name to name its evaluation."""
PAIRED = ("loss", "divergence", "alpha", "beta", "scores", "label_smoothing", "lora_rank", "lr", "epochs", "batch")
"""Settings of `train_dpo` that tables show."""
LEARNED = ("eval_loss", "chosen_logp", "rejected_logp", "accuracy", "clamped")
"""What `train_dpo` measures on held-out pairs."""
LOOPED = ("beta", "ema_rate", "anchor", "baseline", "lr", "batch", "k")
"""Settings of the policy-gradient loop that tables show."""
TOKENS = ("tokens_generated", "tokens_trained")


@dataclass(frozen=True)
class Policy:
    """One evaluated policy: what its notebook calls it, where it stands among its like, and the runs behind it."""

    method: str
    seed: int
    evaluation: Run
    main: bool = False
    """A main row: every seed, `main_completions` completions a prompt."""
    family: str = ""
    """Whose front it belongs to in notebook 6; "" if it is no policy of a method's usual setting."""
    trained: Sequence[Run] = ()
    """The training runs that it was made of; where one diverged, it has no numbers."""
    merged: Run | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Columns that say how it was trained, and what that cost beyond `trained`."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """Columns that say where it stands: iteration, eta, steps."""


def rows(policies: Iterable[Policy], p: Evaluated) -> pd.DataFrame:
    """One row for each policy: settings, measures, cost and status; of one made of a diverged run no measures.

    Where all seeds share the supervised policy and the reward model, it is one policy that was drawn from several
    times: its rows all have the means, so that gains and areas of all seeds have one zero, the best known.
    """
    out = []
    for policy in policies:
        trained = [run.metrics for run in policy.trained]
        sound = all(metrics["status"] == "ok" for metrics in trained)
        known = {name: [metrics[name] for metrics in trained if name in metrics] for name in TOKENS}
        row = {"method": policy.method, "family": policy.family, "seed": policy.seed}
        row |= {"row": "main" if policy.main else "side", "run": policy.evaluation.id}
        row |= {name: sum(values) for name, values in known.items() if values} | policy.settings | policy.where
        out.append(row | (policy.evaluation.metrics if sound else {"status": "diverged"}))
    table = pd.DataFrame(out).assign(profile=p.profile, notebook=p.notebook)
    if p.base_seed is not None:
        start, measures = table.method == "sft", table.columns[table.dtypes.eq(float)]
        table.loc[start, measures] = table.loc[start, measures].mean().to_numpy()
    return table


# What every method starts from


def shared(p: World, seed: int) -> dict[str, Any]:
    """Inputs that nearly every run has."""
    return {"seed": seed, "data": p.reviews()}


def scoring(p: World, seed: int, runs: Runs) -> dict[str, Any]:
    """Inputs of what draws from a policy and scores it: `shared`, the reference (SFT) and the reward model."""
    return {**shared(p, seed), "reference": runs["sft"], "reward": runs["reward"]}


def supervised(p: World, seed: int) -> Run:
    """The supervised policy, SFT."""
    return finite("sft", get(train_sft, SftSettings(**p.sft()), **shared(p, p.model_seed(seed))))


def rewarding(p: Rewarded, seed: int) -> Run:
    """The reward model: all pairs, all train reviews."""
    return finite("reward", get(train_reward, RewardSettings(**p.reward_training()), **shared(p, p.model_seed(seed))))


def finite(kind: str, run: Run) -> Run:
    """The run itself; raises UserFault if it diverged, since everything starts from it."""
    told = [value for value in run.metrics.values() if isinstance(value, float)]
    if run.metrics["status"] != "ok" or not np.isfinite(told).all():
        at, seed = run.metrics.get("diverged_at", "its last"), run.record["inputs"]["seed"]
        rate = run.record["settings"]["lr"]
        raise UserFault(f"{kind}_lr: with {rate:g} its weights are not finite after step {at} of seed {seed}; try less")
    return run


def started(p: Evaluated, seed: int) -> Runs:
    """What every method starts from: the SFT policy, the reward model; and SFT evaluated."""
    runs = {"sft": supervised(p, seed), "reward": rewarding(p, seed)}
    return runs | evaluated(p, seed, runs, "sft", main=True)


def measured(p: Evaluated, *, main: bool, **changes: Any) -> EvaluationSettings:
    """How a main or a side row is evaluated."""
    k = p.main_completions if main else p.side_completions
    sizes = {"n_prompts": p.prompts, "k": k, "max_new_tokens": p.new_tokens, "reward_tokens": p.reward_tokens}
    return EvaluationSettings(**sizes, **changes)


def judge(p: Evaluated) -> Run:
    """What gold is where the truth is not known: an independent judge, one for all seeds."""
    return get(train_judge, JudgeSettings(p.judge_reviews, p.new_tokens), data=p.reviews())


def assessed(p: Evaluated, how: Callable[..., dict[str, Any]], settings: Any, **inputs: Any) -> Run:
    """An evaluation, with the judge's gold if the profile has one."""
    run = get(how, settings, **inputs)
    if p.judge_reviews is None:
        return run
    return get(evaluate_by_judge, evaluation=run, judge=judge(p), metrics=run.metrics)


def evaluated(p: Evaluated, seed: int, runs: Runs, name: str, *, main: bool, policy: str = "", **settings: Any) -> Runs:
    """The evaluation of run `name`, or of run `policy` with other settings, under the name that tables read."""
    inputs = {**scoring(p, seed, runs), "policy": runs[policy or name]}
    return {name + EVALUATION: assessed(p, evaluate, measured(p, main=main, **settings), **inputs)}


def interpolated(p: Evaluated, seed: int, runs: Runs, end: Run, eta: float, *, main: bool) -> Run:
    """The evaluation of a point on the way from SFT (η = 0) to another policy (η = 1)."""
    inputs = {**scoring(p, seed, runs), "init": runs["sft"], "merged": end}
    return assessed(p, evaluate_interpolation, measured(p, main=main), **inputs, eta=eta)


def sft_policies(runs: Mapping[int, Runs]) -> list[Policy]:
    """The supervised policy of each seed."""
    at_start = {"iteration": 0, "eta": 0.0, "steps": 0}
    return [Policy("sft", s, by_name["sft" + EVALUATION], True, "sft", where=at_start) for s, by_name in runs.items()]


# Policies trained on pairs


class Method(NamedTuple):
    """One way to train a policy on preference pairs."""

    name: str
    settings: dict[str, Any]
    """Of `DpoSettings`, beyond what all methods of a notebook share."""
    main: bool = False
    """Trained for every seed, with `main_completions` completions a prompt."""
    pairs: str = "pairs"
    """The name of the pairs run."""
    family: str = ""
    """As in `Policy`."""


def f_dpo(divergence: str, beta: float, **settings: Any) -> dict[str, Any]:
    """The settings of the sigmoid loss under a divergence: the same words in every notebook, so the same run."""
    return {"loss": "sigmoid", "divergence": divergence, "beta": beta, **settings}


def dpo(loss: str, beta: float, **settings: Any) -> dict[str, Any]:
    """The settings of a preference loss under reverse KL."""
    return {**f_dpo("reverse_kl", beta), "loss": loss, **settings}


def common_sweeps(p: Any) -> list[Method]:
    """Reverse KL, forward KL and Jensen-Shannon, each over its betas: what notebook 5 compares with, too."""
    sweeps = {"reverse_kl": p.reverse_kl_betas, "forward_kl": p.forward_kl_betas, "js": p.js_betas}
    each = [(name, beta) for name, betas in sweeps.items() for beta in betas]
    return [Method(f"{name} β={b:g}", f_dpo(name, b), main=True, family=f"DPO, {name}") for name, b in each]


def prepared(p: Aligned, seed: int) -> Runs:
    """What learning from pairs needs beyond `started`: scored generations and pairs."""
    runs = started(p, seed)
    settings = GenerationSettings(p.pair_prompts, p.pair_samples, p.new_tokens, p.reward_tokens)
    runs["generations"] = get(generate, settings, **scoring(p, seed, runs), policy=runs["sft"])
    return runs | {"pairs": paired(p, seed, runs, p.construction())}


def paired(p: Aligned, seed: int, runs: Runs, construction: str, **settings: float) -> Run:
    """The pairs of one construction."""
    limits = {"winner": p.winner_reward, "loser": p.loser_reward} if construction == "threshold" else {}
    made = PairSettings(construction, **limits, **settings)
    try:
        return get(build_pairs, made, seed=seed, generations=runs["generations"])
    except UserFault as fault:
        raise UserFault(f"{fault}, of pair_samples, winner_reward and loser_reward") from None


def aligned(p: Aligned, seed: int, methods: Iterable[Method], runs: Runs) -> Runs:
    """Train and evaluate each method; `runs` are those of `prepared`, and further pairs."""
    for method in (method for method in methods if method.main or seed == p.seeds[0]):
        # As many steps on other pairs as on the profile's own, however many there are.
        share = runs["pairs"].metrics["train_pairs"] / runs[method.pairs].metrics["train_pairs"]
        settings = DpoSettings(**p.dpo() | {"epochs": p.dpo()["epochs"] * share} | method.settings)
        runs = runs | {method.name: get(train_dpo, settings, seed=seed, policy=runs["sft"], pairs=runs[method.pairs])}
        runs |= evaluated(p, seed, runs, method.name, main=method.main)
    return runs


def policies_on_pairs(runs: Mapping[int, Runs], methods: Iterable[Method]) -> list[Policy]:
    """The supervised policies, and those that `aligned` trained with these methods."""
    found = [replace(sft, where={}) for sft in sft_policies(runs)]
    for method, (seed, by_name) in product(methods, runs.items()):
        if method.name in by_name:
            run, record = by_name[method.name], by_name[method.name + EVALUATION]
            shown = {name: run.record["settings"][name] for name in PAIRED}
            shown |= {name: run.metrics[name] for name in LEARNED}
            share = by_name[method.pairs].record["inputs"].get("share", 1)  # fewer pairs need fewer completions
            drawn = round(share * by_name["generations"].metrics["tokens_generated"])
            shown |= {"pairs": method.pairs, "tokens_generated": drawn}
            found.append(Policy(method.name, seed, record, method.main, method.family, (run,), settings=shown))
    return found


# Policies on the fronts of WARP and REINFORCE


class Variation(NamedTuple):
    """One way to run Algorithm 1; REINFORCE is the one with a single run and a single iteration."""

    name: str
    changes: Mapping[str, Any] = {}
    """Of the inner loop's settings."""
    iterations: int = 1
    runs: int = 1
    how: str = "slerp"
    train: Callable[..., dict[str, Any]] = train_policy_gradient
    """What runs the inner loop."""
    main: bool = False
    """Trained for every seed; its points at the LITI rate and at η = 1 have `main_completions` completions a prompt."""
    etas: Sequence[float] = (1.0,)
    """The points of the front that are evaluated."""
    every: bool = False
    """Whether the fronts of all iterations are evaluated, or the last one's alone."""
    steps: Sequence[int] = ()
    """Earlier steps whose merge is evaluated as well; for one iteration."""
    family: str = ""
    """As in `Policy`: of the last iteration; of earlier steps too where no front goes back to SFT."""


def loop_settings(p: Loop, **changes: Any) -> LoopSettings:
    """The inner loop's settings, some of them changed."""
    settings = p.inner_loop() | changes
    return LoopSettings(**settings | {"keep": tuple(settings["keep"])})


def points(p: Any, seed: int, sft: Run, reward: Run, variation: Variation) -> list[Policy]:
    """Train one variation with one seed and evaluate its points."""
    training = loop_settings(p, **variation.changes)
    size = {"iterations": variation.iterations, "runs": variation.runs, "eta": p.liti_rate, "how": variation.how}
    iterations = warp(sft, training, {**shared(p, seed), "reward": reward}, **size, train=variation.train)
    asked = []
    for number, done in enumerate(iterations, start=1):
        if variation.every or number == len(iterations):
            thetas = [theta for earlier in iterations[:number] for theta in earlier.thetas]
            asked += [(number, eta, training.steps, thetas, done.merged) for eta in variation.etas]
    for step in variation.steps:
        thetas = iterations[0].thetas
        merged = get(merge_policies, init=sft, thetas=thetas, how=variation.how, step=step)
        asked.append((1, 1.0, step, thetas, merged))
    found = []
    for iteration, eta, steps, thetas, merged in asked:
        last, whole = iteration == len(iterations), steps == training.steps
        main = variation.main and eta in (p.liti_rate, 1.0) and whole
        record = interpolated(p, seed, {"sft": sft, "reward": reward}, merged, eta, main=main)
        family = variation.family if last and (whole or min(variation.etas) == 1) else ""
        settings = {name: vars(training)[name] for name in LOOPED}
        settings |= {"runs": variation.runs, "merge": variation.how, "angle": merged.metrics["angle"]}
        # What a run had cost at an earlier step is not recorded.
        settings |= {} if whole else dict.fromkeys(TOKENS)
        where = {"iteration": iteration, "eta": eta, "steps": steps}
        found.append(Policy(variation.name, seed, record, main, family, thetas, merged, settings, where))
    return found


def on_fronts(p: Any, seed: int, sft: Run, reward: Run, variations: Iterable[Variation]) -> list[Policy]:
    """The points of all variations with one seed; of side ones with the first seed only."""
    wanted = [variation for variation in variations if variation.main or seed == p.seeds[0]]
    return [point for variation in wanted for point in points(p, seed, sft, reward, variation)]


def named_runs(policy: Policy) -> list[tuple[str, Run]]:
    """The runs behind a point of a front, named."""
    where = policy.where
    name = f"{policy.method}, iteration {where['iteration']}, {where['steps']} steps, η={where['eta']:g}"
    thetas = [(f"{policy.method}, run {i}", run) for i, run in enumerate(policy.trained, start=1)]
    return [*thetas, (f"{name}: merge", policy.merged), (name + EVALUATION, policy.evaluation)]


def each_once(runs: Runs, named: Iterable[tuple[str, Run]]) -> Runs:
    """Runs, and those among `named` that are not there yet under another name."""
    out, known = dict(runs), {run.id for run in runs.values()}
    for name, run in named:
        if run.id not in known:
            out[name] = run
            known.add(run.id)
    return out
