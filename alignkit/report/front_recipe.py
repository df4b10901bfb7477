"""Notebook 6's own runs: the anchored method over β, and the pool of completions behind the optimal frontier."""

from alignkit.training.evaluate import evaluate
from alignkit.training.pool import draw_pool
from alignkit.training.reinforce import train_policy_gradient
from alignkit.workflow.parameters import OneFront
from alignkit.workflow.store import Run, get

Runs = dict[str, Run]


def sweep(p: OneFront, seed: int, sft: Run, reward: Run) -> Runs:
    """Anchored RLOO for each β, and its evaluation under "β=...: evaluation"."""
    shared = {"seed": seed, "data": p.reviews()}
    anchored = {"steps": p.front_steps, "baseline": "rloo", "k": p.main_samples, "anchor": "reference",
                "decay": True}  # fmt: skip
    runs: Runs = {}
    for beta in p.front_betas:
        settings = {**p.inner_loop(), **anchored, "lr": p.anchored_lr, "beta": beta, "reward": reward}
        trained = get(train_policy_gradient, **shared, **settings, policy=sft, reference=sft, stream=[0, 0])
        models = {"policy": trained, "reference": sft, "reward": reward}
        runs[f"β={beta:g}"] = trained
        runs[f"β={beta:g}: evaluation"] = get(evaluate, **shared, **models, **p.evaluation(p.main_completions))
    return runs


def pool(p: OneFront, seed: int, sft: Run, reward: Run, trained: Runs) -> Run:
    """Completions of the SFT policy and of the sweep's policies, in the order of `front_betas`."""
    policies = [sft, *(trained[f"β={beta:g}"] for beta in p.front_betas)]
    counts = [p.pool_reference] + [p.pool_trained] * len(p.front_betas)
    sizes = {"n_prompts": p.prompts, "max_new_tokens": p.new_tokens, "reward_tokens": p.reward_tokens}
    return get(draw_pool, seed=seed, data=p.reviews(), policies=policies, counts=counts, reward=reward, **sizes)
