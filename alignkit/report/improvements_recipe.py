"""Notebook 5's runs beyond pairs: variations of WARP at equal tokens, their confirmation, averaged reward models."""

from dataclasses import replace
from typing import NamedTuple

from alignkit.report.warp_recipe import Point, Variation, loop_settings, points
from alignkit.training.evaluate import EvaluationSettings, evaluate
from alignkit.training.merge import between, evaluate_interpolation
from alignkit.training.reinforce import SENTENCE, train_policy_gradient
from alignkit.training.reward import RewardSettings, average_rewards, train_reward
from alignkit.training.sft import SftSettings, train_sft
from alignkit.workflow.schema import Improvements
from alignkit.workflow.store import Run, get

ANCHORED = "anchored RLOO"
"""A fixed anchor, a rate that falls, one run, no merge."""
CHOSEN = "anchored, sentence credit"
"""The same with credit by sentence: the method that was best on the first seed."""
WITH_RLOO = "WARP + RLOO"
TUNED = "WARP + RLOO, higher rate"
"""WARP + RLOO at the learning rate of the anchored methods."""
COMPARED = ("WARP", WITH_RLOO, CHOSEN)
"""What is confirmed on other seeds."""
FULL = "all reviews"
"""The proxy of all other notebooks."""
MEMBERS = ((0.1, 0.0), (0.2, 0.2), (0.4, 0.4))
"""How the members of an averaged reward model differ as they are trained on: share of the learning rate, word dropout.
Small rates keep them near their common start, where the mean of their weights is a reward model as well."""


def ideas(p: Improvements) -> list[Variation]:
    """WARP, then one change at a time, each with `equal_steps` steps of `warp_batch` completions."""
    iterations, runs = p.warp_iterations, p.warp_runs
    plain = {"steps": p.equal_steps // (iterations * runs), "keep": []}
    rloo = {**plain, "baseline": "rloo", "k": p.main_samples}
    fixed = {**rloo, "anchor": "reference"}
    falling = {**fixed, "lr": p.anchored_lr, "decay": True}
    alone = {**falling, "steps": p.equal_steps}
    four = {"iterations": iterations, "runs": runs, "etas": p.etas}
    sentence = {**alone, "baseline": SENTENCE, "k": 1}
    return [
        Variation("WARP", plain, **four, main=True, every=True),
        Variation(WITH_RLOO, rloo, **four, main=True),
        Variation("+ fixed anchor", fixed, **four),
        Variation("+ falling rate", falling, **four),
        Variation(ANCHORED, alone, etas=p.etas, main=True),
        Variation(CHOSEN, sentence, etas=p.etas, main=True),
        Variation("one run, EMA anchor", {**alone, "anchor": "ema"}, etas=p.etas),
        Variation("one run, exact KL", {**alone, "exact_kl": True}, etas=p.etas),
        Variation(TUNED, {**rloo, "lr": p.anchored_lr}, **four),
        *(Variation(f"{WITH_RLOO}, k={k}", {**rloo, "k": k, "batch": k * (p.warp_batch // k)}, **four)
          for k in p.rloo_samples if k != p.main_samples),
    ]  # fmt: skip


def idea_points(p: Improvements, seed: int, sft: Run, reward: Run) -> list[Point]:
    """The evaluated fronts of all ideas with one seed; beyond those compared, with the first seed only."""
    wanted = [v for v in ideas(p) if v.main or seed == p.seeds[0]]
    return [point for variation in wanted for point in points(p, seed, sft, reward, variation)]


class Confirmed(NamedTuple):
    """One seed of the confirmation."""

    sft: Run
    reward: Run
    evaluation: Run
    points: list[Point]


def unused_seeds(p: Improvements) -> list[int]:
    """Those of the confirmation: all but the profile's first seed, on which rates and methods were chosen."""
    return [*p.seeds[1:], *p.confirm_seeds]


def confirmed(p: Improvements, seed: int) -> Confirmed:
    """A seed from its start: own SFT policy, own reward model, then the compared methods.

    `side_completions` a prompt are enough: the interval is over seeds, which differ by far more than draws do.
    """
    shared = {"seed": seed, "data": p.reviews()}
    sft = get(train_sft, SftSettings(**p.sft()), **shared)
    reward = get(train_reward, RewardSettings(**p.reward_training()), **shared)
    models = {"policy": sft, "reference": sft, "reward": reward}
    start = get(evaluate, EvaluationSettings(**p.evaluation(p.side_completions)), **shared, **models)
    compared = [v._replace(main=False, every=False) for v in ideas(p) if v.name in COMPARED]
    found = [point for v in compared for point in points(p, seed, sft, reward, v)]
    return Confirmed(sft, reward, start, found)


def spherical_path(p: Improvements, seed: int, sft: Run, reward: Run, found: list[Point]) -> list[tuple[float, Run]]:
    """Evaluations along the arc from the merge of WARP's first iteration to that of its last, by the share of the last.

    The nearest thing to spherical interpolation through several iterates (SQUAD) that is defined here: at the SFT
    policy itself the task vector is zero and has no direction.
    """
    merges = {point.iteration: point.merged for point in found if point.variation.name == "WARP"}
    shared = {"seed": seed, "data": p.reviews()}
    out = []
    for share in (0.25, 0.5, 0.75):
        theta = get(between, init=sft, first=merges[1], second=merges[max(merges)], share=share)
        models = {"init": sft, "merged": theta, "reference": sft, "reward": reward}
        settings = EvaluationSettings(**p.evaluation(p.side_completions))
        out.append((share, get(evaluate_interpolation, settings, **shared, **models, eta=1.0)))
    return out


class Hacked(NamedTuple):
    """One policy trained on a proxy: which proxy, after how many steps, the training run and its evaluation."""

    proxy: str
    steps: int
    trained: Run
    evaluation: Run


def proxies(p: Improvements, seed: int, reward: Run) -> dict[str, Run]:
    """The reward model; ones trained on few reviews; and for the last of these sizes the mean of three reward models.

    The three go on from one start with the same reviews.  The first of them is the single one they are compared with.
    """
    shared = {"seed": seed, "data": p.reviews()}
    few = RewardSettings(**p.reward_training(), min_steps=p.weak_steps)
    weak = {f"{n} reviews": get(train_reward, replace(few, n_train=n), **shared) for n in p.weak_reviews}
    name, start = list(weak.items())[-1]
    more = replace(few, n_train=p.weak_reviews[-1])
    members = [
        get(train_reward, replace(more, lr=share * p.reward_lr, word_dropout=dropout), **shared, start=start)
        for share, dropout in MEMBERS
    ]
    averaged = get(average_rewards, data=p.reviews(), rewards=members, tokens=p.reward_tokens)
    return {FULL: reward, **weak, name: members[0], f"{name}, averaged": averaged}


def hacked(p: Improvements, seed: int, sft: Run, reward: Run) -> list[Hacked]:
    """RLOO against each proxy with a KL so weak that the policy goes far, evaluated on the way."""
    shared = {"seed": seed, "data": p.reviews()}
    kept = sorted({p.warp_steps // n for n in (8, 4, 2)} - {0})
    far = {"baseline": "rloo", "k": p.main_samples, "anchor": "reference", "beta": p.weak_beta, "keep": kept}
    found = []
    for name, proxy in proxies(p, seed, reward).items():
        inputs = {"policy": sft, "reference": sft, "reward": proxy, "stream": [0, 0]}
        trained = get(train_policy_gradient, loop_settings(p, **far), **shared, **inputs)
        ways = {n: trained.at(f"step-{n}") for n in kept} | {p.warp_steps: trained}
        for steps, policy in ways.items():
            models = {"policy": policy, "reference": sft, "reward": proxy}
            settings = EvaluationSettings(**p.evaluation(p.side_completions))
            run = get(evaluate, settings, **shared, **models)
            found.append(Hacked(name, steps, trained, run))
    return found
