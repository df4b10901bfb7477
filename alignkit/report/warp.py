"""Notebook 4: WARP and its variations; its runs and tables.  Algorithm 1 stands in `algorithm.py`."""

from collections.abc import Mapping, Sequence
from itertools import product

import pandas as pd
import torch

from alignkit.kl import kl_estimates
from alignkit.policy_gradient import BASELINES, advantages
from alignkit.report.policies import Policy, Runs, Variation, each_once, named_runs, on_fronts, started
from alignkit.training.deviations import train_greedily, train_on_token_means
from alignkit.workflow.schema import Warp


def variations(p: Warp) -> list[Variation]:
    """All of the notebook, main ones first."""
    size = {"iterations": p.warp_iterations, "runs": p.warp_runs}
    etas, earlier, rate = p.etas, p.inner_loop()["keep"], p.liti_rate
    *shorter, longest = sorted(p.step_counts)
    grid = {"steps": longest, "keep": shorter}
    reinforce = {"main": True, "steps": earlier}
    once, total = "WARP, one iteration, ", p.warp_runs * p.warp_steps
    # The end of a family's name where earlier steps are evaluated, too.
    also_earlier, also_shorter = (", over steps" if steps else "" for steps in (earlier, shorter))
    return [
        Variation("WARP", **size, main=True, etas=etas, every=True, family=f"WARP, T={p.warp_steps}"),
        *(Variation(f"WARP, μ={r:g}", {"ema_rate": r}, **size, main=True, etas=etas, family=f"WARP, μ={r:g}")
          for r in p.ema_rates),
        *(Variation(f"WARP, T={t}", {"steps": t, "keep": []}, **size, main=True, etas=etas, family=f"WARP, T={t}")
          for t in {p.task_steps} - {p.warp_steps}),
        Variation("LERP", runs=p.warp_runs, how="lerp", main=True, etas=etas, family=once + "LERP"),
        Variation("raw SLERP", runs=p.warp_runs, how="raw slerp", etas=(rate, 1.0), family=once + "raw SLERP"),
        Variation("REINFORCE, EMA anchor", **reinforce, etas=etas, family="REINFORCE, EMA anchor"),
        *(Variation(name, {"anchor": anchor}, **reinforce, family=name + also_earlier)
          for name, anchor in (("REINFORCE, SFT anchor", "reference"), ("REINFORCE, no anchor", "none"))),
        Variation("WARP, LERP", **size, how="lerp", etas=(rate, 1.0), family="WARP, LERP"),
        *(Variation(f"M={m}", grid, runs=m, steps=shorter, family=f"{once}M={m}{also_shorter}") for m in p.run_counts),
        *(Variation(f"β={b:g}", {"beta": b, **grid}, runs=p.warp_runs, steps=shorter,
                    family=f"{once}β={b:g}{also_shorter}") for b in p.warp_betas),
        Variation("frozen θ^m", {"anchor": "reference", "steps": total, "keep": []}, etas=(rate, 1.0)),
        Variation("greedy decoding", train=train_greedily),
        Variation("token mean with prompt", train=train_on_token_means),
    ]  # fmt: skip


def policies(p: Warp, seed: int) -> list[Policy]:
    """The points of all variations with one seed."""
    runs = started(p, seed)
    return on_fronts(p, seed, runs["sft"], runs["reward"], variations(p))


def recipe(p: Warp, seed: int) -> Runs:
    """All runs of the notebook for one seed, each once."""
    return each_once(started(p, seed), [pair for policy in policies(p, seed) for pair in named_runs(policy)])


# Policies whose sequences can all be listed


def random_policy(vocabulary: int, length: int, seed: int) -> torch.Tensor:
    """Probabilities of all sequences under random logits, each step depending on all tokens before; float64."""
    random = torch.Generator().manual_seed(seed)
    probabilities = torch.ones((), dtype=torch.float64)
    for _ in range(length):
        logits = torch.randn(*probabilities.shape, vocabulary, generator=random, dtype=torch.float64)
        probabilities = probabilities[..., None] * logits.softmax(dim=-1)
    return probabilities


def tilted_optimum(reference: torch.Tensor, reward: torch.Tensor, beta: float) -> torch.Tensor:
    """The optimum of E[r] - β KL, π ∝ π_ref exp(r/β); reward has the shape of the reference."""
    return (reference.log() + reward / beta).flatten().softmax(dim=0).view_as(reference)


def step_log_probs(policy: torch.Tensor) -> torch.Tensor:
    """log p(next token | prefix) along every sequence: (sequences, length, vocabulary)."""
    length, vocabulary = policy.ndim, policy.shape[0]
    steps = []
    for t in range(length):
        prefixes = policy.reshape(-1, vocabulary, vocabulary ** (length - 1 - t)).sum(dim=-1)
        following = (prefixes / prefixes.sum(dim=-1, keepdim=True)).log()
        steps.append(following.repeat_interleave(vocabulary ** (length - t), dim=0))
    return torch.stack(steps, dim=1)


def estimator_table(policy: torch.Tensor, reference: torch.Tensor) -> pd.DataFrame:
    """Mean, bias and standard deviation of each estimate in `kl_estimates` from one sequence of the policy, in nats."""
    tokens = torch.tensor(list(product(range(policy.shape[0]), repeat=policy.ndim)))
    estimates = kl_estimates(step_log_probs(policy), step_log_probs(reference), tokens, torch.ones_like(tokens))
    weights = policy.flatten()
    kl = (weights * (weights / reference.flatten()).log()).sum()
    rows = []
    for name, values in estimates.items():
        mean = (weights * values).sum()
        deviation = (weights * (values - mean) ** 2).sum().sqrt()
        rows.append((name, mean.item(), (mean - kl).item(), deviation.item()))
    return pd.DataFrame(rows, columns=["estimate", "mean", "bias", "standard deviation"])


def gradient_table(logits: torch.Tensor, rewards: torch.Tensor, k: int) -> pd.DataFrame:
    """REINFORCE's gradient of E[r] in the logits of one choice, over all k-tuples of samples, for each baseline.

    `mean / exact` is how much of the exact gradient it is on average, bias the norm of its mean error, and
    standard deviation the root mean squared distance of one estimate from their mean.
    """
    choices = torch.tensor(list(product(range(len(logits)), repeat=k)))
    probabilities = logits.softmax(dim=0)
    weights = probabilities[choices].prod(dim=1)
    exact = probabilities * (rewards - probabilities @ rewards)
    log_prob_gradients = torch.eye(len(logits), dtype=logits.dtype) - probabilities
    rows = []
    for baseline in BASELINES:
        estimates = (advantages(rewards[choices], baseline)[..., None] * log_prob_gradients[choices]).mean(dim=1)
        mean = weights @ estimates
        spread = (weights @ ((estimates - mean) ** 2).sum(dim=1)).sqrt()
        rows.append((baseline, k, (mean @ exact / (exact @ exact)).item(), (mean - exact).norm().item(), spread.item()))
    return pd.DataFrame(rows, columns=["baseline", "k", "mean / exact", "bias", "standard deviation"])


# Tables


def clear_of_zero(table: pd.DataFrame) -> str:
    """Which rows of a table of `matched_differences` lie clear of zero after Holm's adjustment, in words."""
    if table.holm.isna().all():
        return "no interval, or nothing at one KL, so no answer"
    clear = table[table.holm < 0.05]
    told = ", ".join(f"{row.label} {row.difference:+.2f} in {row.measure}" for row in clear.itertuples())
    return f"{told or 'no difference is clear of zero'} ({len(clear)} of {len(table)} after Holm)"


def seconds_of(found: Mapping[int, Sequence[Policy]], method: str) -> pd.DataFrame:
    """Seconds of Algorithm 1 for each seed, its runs one after the other: generation, scoring, update."""
    out = []
    for seed, here in found.items():
        thetas = max((policy.trained for policy in here if policy.method == method), key=len)
        spent = {s: sum(run.metrics[f"{s}_seconds"] for run in thetas) for s in ("generation", "scoring", "update")}
        out.append({"seed": seed, "runs": len(thetas), **spent, "total": sum(run.record["seconds"] for run in thetas)})
    return pd.DataFrame(out)
