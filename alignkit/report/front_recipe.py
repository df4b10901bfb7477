"""Notebook 6's own runs: the anchored method over β, and the pool of completions behind the optimal frontier."""

from alignkit.report.warp_recipe import loop_settings
from alignkit.training.evaluate import EvaluationSettings, evaluate
from alignkit.training.pool import PoolSettings, draw_pool
from alignkit.training.reinforce import train_policy_gradient
from alignkit.workflow.schema import OneFront
from alignkit.workflow.store import Run, get

Runs = dict[str, Run]


def sweep(p: OneFront, seed: int, sft: Run, reward: Run) -> Runs:
    """Anchored RLOO for each β, and its evaluation under "β=...: evaluation"."""
    shared = {"seed": seed, "data": p.reviews()}
    anchored = {"steps": p.front_steps, "baseline": "rloo", "k": p.main_samples, "anchor": "reference",
                "decay": True}  # fmt: skip
    runs: Runs = {}
    for beta in p.front_betas:
        settings = loop_settings(p, **anchored, lr=p.anchored_lr, beta=beta)
        start = {"policy": sft, "reference": sft, "reward": reward, "stream": [0, 0]}
        trained = get(train_policy_gradient, settings, **shared, **start)
        models = {"policy": trained, "reference": sft, "reward": reward}
        how = EvaluationSettings(**p.evaluation(p.main_completions))
        runs[f"β={beta:g}"] = trained
        runs[f"β={beta:g}: evaluation"] = get(evaluate, how, **shared, **models)
    return runs


def pool(p: OneFront, seed: int, sft: Run, reward: Run, trained: Runs) -> Run:
    """Completions of the SFT policy and of the sweep's policies, in the order of `front_betas`."""
    policies = [sft, *(trained[f"β={beta:g}"] for beta in p.front_betas)]
    counts = [p.pool_reference] + [p.pool_trained] * len(p.front_betas)
    settings = PoolSettings(tuple(counts), p.prompts, p.new_tokens, p.reward_tokens)
    return get(draw_pool, settings, seed=seed, data=p.reviews(), policies=policies, reward=reward)
