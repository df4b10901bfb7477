"""Towards the optimum with one draw: the weighted draws of SFT distilled, then RLOO; runs of notebooks 5 and 6."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from alignkit.report.algorithm import warp
from alignkit.report.policies import (
    EVALUATION,
    Policy,
    Runs,
    assessed,
    interpolated,
    loop_settings,
    measured,
    scoring,
    shared,
)
from alignkit.training.distil import DistilSettings, RegressionSettings, distil, regress
from alignkit.training.merge import evaluate_interpolation
from alignkit.training.pairs import GenerationSettings, generate
from alignkit.training.reinforce import train_policy_gradient
from alignkit.workflow.schema import Improvements, Towards
from alignkit.workflow.store import Run, get

DISTILLED = "distilled draws"
APPROACHED = "distilled, then RLOO"
AT_WARPS_TOKENS = "RLOO in small steps, WARP's tokens"
MAIN = (DISTILLED, APPROACHED, AT_WARPS_TOKENS)
ALONE = "RLOO as long, from SFT"
REGRESSIONS = {"regression on the optimum": True, "regression off policy": False}
"""By name, whether it is on policy."""
AGAIN = "its resampled draws, distilled"
WITH_WARP = "distilled, then WARP"
OTHER_WAYS = (ALONE, *REGRESSIONS, *(f"distilled, then {name}" for name in REGRESSIONS), AGAIN, WITH_WARP)
STREAM = 1000
"""The random stream of draws for distillation, so that they are not those of the pairs."""
HALFWAY = (0.5, 1.0)
"""Points on the way back to SFT, for KLs below a policy's own."""


def drawn(p: Towards, seed: int, runs: Runs, prompts: int, k: int, policy: Run | None = None) -> Run:
    """Scored completions of train prompts by the SFT policy, or by another one."""
    settings = GenerationSettings(prompts, k, p.new_tokens, p.reward_tokens)
    stream = STREAM + (policy is not None)
    return get(generate, settings, **scoring(p, seed, runs), policy=policy or runs["sft"], stream=stream)


def fitted(p: Towards, seed: int, start: Run, draws: Run, beta: float, texts: int) -> Run:
    """A policy fine-tuned on draws that are resampled by exp(r/β) π_ref/π."""
    settings = DistilSettings(beta=beta, per_prompt=texts, batch=p.sft_batch, lr=p.distil_lr)
    return get(distil, settings, seed=seed, policy=start, draws=draws)


def distilled(p: Towards, seed: int, runs: Runs) -> tuple[Run, Run]:
    """The draws of SFT, and the policy that they are distilled into."""
    draws = drawn(p, seed, runs, p.distil_prompts, p.distil_samples)
    return draws, fitted(p, seed, runs["sft"], draws, p.distil_beta, p.distil_texts)


def anchored(p: Towards, seed: int, runs: Runs, start: Run, **changes: Any) -> Run:
    """RLOO from `start` with the KL to SFT, at a rate that falls; changes: beta, steps, lr, batch."""
    settings = loop_settings(p, anchor="reference", decay=True, baseline="rloo", k=p.main_samples, keep=[], **changes)
    return get(train_policy_gradient, settings, **scoring(p, seed, runs), policy=start, stream=[0, 0])


def chain(p: Towards, seed: int, runs: Runs, start: Run) -> list[Run]:
    """RLOO for each β, first far from SFT and then nearer again, each going on from the one before; all of them see the
    same prompts in the same order."""
    done, steps, rate = [start], p.approach_steps, p.approach_lr
    for beta in p.approach_betas:
        done.append(anchored(p, seed, runs, done[-1], beta=beta, steps=steps, lr=rate))
        steps, rate = p.approach_more, p.approach_more_lr
    return done[1:]


def approach(p: Towards, seed: int, runs: Runs) -> list[Policy]:
    """The distilled policy, and RLOO after it; the ways back of the first and the last of them; main rows."""
    draws, start = distilled(p, seed, runs)
    found = [placed(p, seed, runs, DISTILLED, [draws, start], eta=eta, beta=p.distil_beta) for eta in HALFWAY]
    return found + chained(p, seed, runs, APPROACHED, [draws, start], chain(p, seed, runs, start))


def chained(p: Towards, seed: int, runs: Runs, name: str, before: Sequence[Run], then: Sequence[Run]) -> list[Policy]:
    """The policies of a `chain`, and those half-way back to SFT from its last one."""
    main, found = name == APPROACHED, []
    for i, beta in enumerate(p.approach_betas, start=1):
        etas = HALFWAY if i == len(then) else (1.0,)
        found += [placed(p, seed, runs, name, [*before, *then[:i]], main, eta=eta, beta=beta) for eta in etas]
    return found


def placed(
    p: Towards, seed: int, runs: Runs, name: str, behind: Sequence[Run], main: bool = True, *, eta: float, beta: float
) -> Policy:
    """The last of the runs, or a point on the way back from it to SFT, evaluated; with the cost of all runs."""
    record = interpolated(p, seed, runs, behind[-1], eta, main=main)
    return Policy(name, seed, record, main, name, behind, settings={"beta": beta}, where={"eta": eta})


def named_steps(policy: Policy) -> list[tuple[str, Run]]:
    """The runs behind a policy and its evaluation, named."""
    name = f"{policy.method}, β={policy.settings['beta']:g}"
    behind = [(f"{name}, run {i}", run) for i, run in enumerate(policy.trained, start=1)]
    return [*behind, (f"{name}, η={policy.where['eta']:g}{EVALUATION}", policy.evaluation)]


def with_few_tokens(p: Improvements, seed: int, runs: Runs) -> list[Policy]:
    """RLOO alone with as many completions as WARP draws, in many small steps, and its way back to SFT; main rows."""
    how = {"beta": p.few_beta, "steps": p.few_steps, "lr": p.approach_lr, "batch": p.few_batch}
    behind = [anchored(p, seed, runs, runs["sft"], **how)]
    return [placed(p, seed, runs, AT_WARPS_TOKENS, behind, eta=eta, beta=p.few_beta) for eta in p.etas]


def other_ways(p: Improvements, seed: int, runs: Runs) -> list[Policy]:
    """Each part alone, other ways from the same draws, and what else starts from the distilled policy; side rows."""
    beta, sft = p.again_beta, runs["sft"]
    draws, start = distilled(p, seed, runs)
    models = {"seed": seed, "reference": sft, "reward": runs["reward"], "draws": draws}
    how = {"beta": beta, "steps": p.approach_more, "batch": p.warp_batch, "lr": p.approach_lr, "warmup": p.warp_warmup}
    sizes = {"max_new_tokens": p.new_tokens, "reward_tokens": p.reward_tokens}
    found = []
    for name, on_policy in REGRESSIONS.items():
        settings = RegressionSettings(**how, **sizes, on_policy=on_policy)
        found.append((name, [draws, get(regress, settings, policy=sft, **models)]))
        found.append((f"distilled, then {name}", [draws, start, get(regress, settings, policy=start, **models)]))
    approached = approach(p, seed, runs)[-1]
    if all(run.metrics["status"] == "ok" for run in approached.trained):  # nothing can be drawn from a diverged policy
        again = drawn(p, seed, runs, p.again_prompts, p.distil_samples, policy=approached.trained[-1])
        refitted = fitted(p, seed, approached.trained[-1], again, beta, p.distil_texts)
        found.append((AGAIN, [*approached.trained, again, refitted]))
    each = product(found, HALFWAY)
    points = [placed(p, seed, runs, name, behind, main=False, eta=eta, beta=beta) for (name, behind), eta in each]
    return [*chained(p, seed, runs, ALONE, [], chain(p, seed, runs, sft)), *points]


def warp_from(p: Improvements, seed: int, runs: Runs) -> list[Policy]:
    """WARP with the distilled policy in the place of SFT, its way back included; side rows."""
    draws, start = distilled(p, seed, runs)
    inputs = {**shared(p, seed), "reward": runs["reward"]}
    done = warp(start, loop_settings(p), inputs, iterations=p.warp_iterations, runs=p.warp_runs, eta=p.liti_rate)
    behind = [draws, start, *(theta for iteration in done for theta in iteration.thetas)]
    found, shown = [], {"beta": p.warp_beta}
    for eta in p.etas:
        models = {**scoring(p, seed, runs), "init": start, "merged": done[-1].merged}
        record = assessed(p, evaluate_interpolation, measured(p, main=False), **models, eta=eta)
        where = {"iteration": p.warp_iterations, "eta": eta, "steps": p.warp_steps}
        found.append(Policy(WITH_WARP, seed, record, False, WITH_WARP, behind, done[-1].merged, shown, where))
    return found
