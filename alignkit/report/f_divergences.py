"""Notebook 3: DPO under other divergences than reverse KL; runs, reward by length of prompt, fitted bells."""

from collections.abc import Mapping
from itertools import product

import numpy as np
import pandas as pd
from scipy.optimize import minimize
from scipy.special import log_softmax

from alignkit.divergences import Divergence
from alignkit.report.policies import EVALUATION, Method, Runs, aligned, common_sweeps, f_dpo, prepared
from alignkit.report.tables import at_kl, completions
from alignkit.workflow.schema import FDivergences


def methods(p: FDivergences) -> list[Method]:
    """A sweep over beta for each divergence, and what earlier reports ran."""
    found = common_sweeps(p)
    for a, b in product(p.alphas, p.alpha_betas):
        found.append(Method(f"alpha {a:g} β={b:g}", f_dpo("alpha", b, alpha=a), a == 0.5, family=f"DPO, alpha {a:g}"))
    found += [
        Method("js, chosen to rejected", f_dpo("js", p.js_betas[0], scores="chosen_to_rejected")),
        Method("total variation", f_dpo("total_variation", p.main_beta), family="DPO, total_variation"),
        Method("total variation, detached", f_dpo("total_variation", p.main_beta, scores="detached")),
        Method("gan", f_dpo("gan", p.js_betas[0]), family="DPO, gan"),
    ]
    for name, b in (("reverse_kl", p.reverse_kl_betas[-1]), ("forward_kl", p.forward_kl_betas[-1])):
        found.append(Method(f"{name}, three times as long", f_dpo(name, b, epochs=3 * p.divergence_epochs)))
    return found


def recipe(p: FDivergences, seed: int) -> Runs:
    """All runs of the notebook for one seed."""
    return aligned(p, seed, methods(p), prepared(p, seed))


def reward_by_prompt_length(runs: Mapping[int, Runs], table: pd.DataFrame, kl: float) -> pd.DataFrame:
    """The reward at a KL (`at_kl`) for the shorter and the longer half of the test prompts (column prompts)."""
    found = []
    for row in table[table.status == "ok"].itertuples():
        texts = completions(runs[row.seed][row.method + EVALUATION])
        words = texts.prompt.str.split().str.len()
        for half, kept in (("short", words <= words.median()), ("long", words > words.median())):
            means = texts.loc[kept, ["kl", "reward"]].mean()
            found.append({"prompts": half, "family": row.family, "seed": row.seed, "status": "ok", **means})
    halves = pd.DataFrame(found).groupby("prompts", sort=False)
    return pd.concat(at_kl(part, [kl], ["reward"]).assign(prompts=half) for half, part in halves)


# What a divergence does when the policy cannot be everything: mode-seeking and mass-covering


def unimodal(grid: np.ndarray, mean: float, width: float) -> np.ndarray:
    """A bell of this mean and standard deviation on the points of a grid; probabilities, shape of the grid."""
    return np.exp(log_softmax(-((grid - mean) ** 2) / (2 * width**2)))


def fit_unimodal(div: Divergence, target: np.ndarray, grid: np.ndarray) -> tuple[float, float, float]:
    """The bell π that is closest to the target ρ in D_f(π ‖ ρ) = Σ ρ f(π/ρ): its mean, its width, and D_f.

    The best of Nelder-Mead searches from several means and widths, as the problem has several valleys.
    """

    def value(parameters: np.ndarray) -> float:
        ratio = np.maximum(unimodal(grid, parameters[0], np.exp(parameters[1])) / target, 1e-12)
        return float(target @ (div.f(ratio).numpy() - div.f(1.0).item()))

    starts = [(mean, np.log(width)) for mean in np.linspace(grid[0], grid[-1], 7) for width in (0.3, 1.0, 3.0)]
    found = [minimize(value, start, method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10}) for start in starts]
    best = min(found, key=lambda result: result.fun)
    return float(best.x[0]), float(np.exp(best.x[1])), float(best.fun)
