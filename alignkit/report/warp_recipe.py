"""WARP and its variations as runs, and which points of their fronts are evaluated; the variations of notebook 4."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from alignkit.report.algorithm import warp
from alignkit.training.deviations import train_greedily, train_on_token_means
from alignkit.training.evaluate import EvaluationSettings
from alignkit.training.merge import evaluate_interpolation, merge_policies
from alignkit.training.reinforce import LoopSettings, train_policy_gradient
from alignkit.workflow.schema import Fronts, Loop, Warp
from alignkit.workflow.store import Run, get


class Variation(NamedTuple):
    """One way to run Algorithm 1; REINFORCE is the one with a single run and a single iteration."""

    name: str
    changes: Mapping[str, Any] = MappingProxyType({})
    """Of the inner loop's settings."""
    iterations: int = 1
    runs: int = 1
    how: str = "slerp"
    main: bool = False
    """Trained for every seed; its points at the LITI rate and at η = 1 have `main_completions` completions a prompt."""
    etas: Sequence[float] = (1.0,)
    """The points of the front that are evaluated."""
    every: bool = False
    """Whether the fronts of all iterations are evaluated, or the last one's alone."""
    train: Callable[..., dict[str, Any]] = train_policy_gradient
    """What runs the inner loop."""
    steps: Sequence[int] = ()
    """Earlier steps whose merge is evaluated as well; for one iteration."""


class Point(NamedTuple):
    """One evaluated policy: where it stands in its variation, the runs that made it, and its evaluation."""

    variation: Variation
    iteration: int
    eta: float
    steps: int
    thetas: list[Run]
    merged: Run
    evaluation: Run

    @property
    def name(self) -> str:
        """What logs and tables of runs call it."""
        return f"{self.variation.name}, iteration {self.iteration}, {self.steps} steps, η={self.eta:g}"


def variations(p: Warp) -> list[Variation]:
    """All of notebook 4, main ones first."""
    size = {"iterations": p.warp_iterations, "runs": p.warp_runs}
    etas, earlier, rate = p.etas, p.inner_loop()["keep"], p.liti_rate
    *shorter, longest = sorted(p.step_counts)
    grid = {"steps": longest, "keep": shorter}
    reinforce = {"main": True, "etas": etas, "steps": earlier}
    total = p.warp_runs * p.warp_steps
    return [
        Variation("WARP", **size, main=True, etas=etas, every=True),
        *(Variation(f"WARP, μ={r:g}", {"ema_rate": r}, **size, main=True, etas=etas) for r in p.ema_rates),
        Variation("LERP", runs=p.warp_runs, how="lerp", main=True, etas=etas),
        Variation("raw SLERP", runs=p.warp_runs, how="raw slerp", etas=(rate, 1.0)),
        Variation("REINFORCE, EMA anchor", **reinforce),
        Variation("REINFORCE, SFT anchor", {"anchor": "reference"}, **{**reinforce, "etas": (1.0,)}),
        Variation("REINFORCE, no anchor", {"anchor": "none"}, **{**reinforce, "etas": (1.0,)}),
        Variation("WARP, LERP", **size, how="lerp", etas=(rate, 1.0)),
        *(Variation(f"M={m}", grid, runs=m, steps=shorter) for m in p.run_counts),
        *(Variation(f"β={b:g}", {"beta": b, **grid}, runs=p.warp_runs, steps=shorter) for b in p.warp_betas),
        Variation("frozen θ^m", {"anchor": "reference", "steps": total, "keep": []}, etas=(rate, 1.0)),
        Variation("greedy decoding", train=train_greedily),
        Variation("token mean with prompt", train=train_on_token_means),
    ]


def loop_settings(p: Loop, **changes: Any) -> LoopSettings:
    """The inner loop's settings, some of them changed."""
    settings = {**p.inner_loop(), **changes}
    return LoopSettings(**{**settings, "keep": tuple(settings["keep"])})


def points(p: Fronts, seed: int, sft: Run, reward: Run, variation: Variation) -> list[Point]:
    """Train one variation with one seed and evaluate its points."""
    shared = {"seed": seed, "data": p.reviews()}
    training = loop_settings(p, **variation.changes)
    size = {"iterations": variation.iterations, "runs": variation.runs, "eta": p.liti_rate, "how": variation.how,
            "train": variation.train}  # fmt: skip
    found: list[Point] = []

    def evaluate(iteration: int, eta: float, steps: int, thetas: list[Run], merged: Run) -> None:
        main = variation.main and eta in (p.liti_rate, 1.0) and steps == training.steps
        settings = EvaluationSettings(**p.evaluation(p.main_completions if main else p.side_completions))
        models = {"init": sft, "merged": merged, "reference": sft, "reward": reward}
        run = get(evaluate_interpolation, settings, **shared, **models, eta=eta)
        found.append(Point(variation, iteration, eta, steps, thetas, merged, run))

    iterations = warp(sft, training, {**shared, "reward": reward}, **size)
    for number, done in enumerate(iterations, start=1):
        if variation.every or number == len(iterations):
            for eta in variation.etas:
                evaluate(number, eta, training.steps, [t for i in iterations[:number] for t in i.thetas], done.merged)
    for step in variation.steps:
        first = iterations[0]
        merged = get(merge_policies, init=sft, thetas=first.thetas, how=variation.how, step=step)
        evaluate(1, 1.0, step, first.thetas, merged)
    return found


def study(p: Warp, seed: int, sft: Run, reward: Run) -> list[Point]:
    """All variations with one seed; side ones with the first seed only."""
    wanted = [v for v in variations(p) if v.main or seed == p.seeds[0]]
    return [point for variation in wanted for point in points(p, seed, sft, reward, variation)]
