"""Which runs each notebook asks for.

A notebook and `alignkit train` call the same recipe, so what one trains the other loads.
"""

from collections.abc import Callable

from alignkit.params import RewardModel, World
from alignkit.reward import train_reward
from alignkit.runs import Run, get
from alignkit.sampling import sample_completions
from alignkit.sft import train_sft


def reward_model(p: RewardModel, seed: int) -> dict[str, Run]:
    """Notebook 1: the reward model, what it is compared with, and the SFT policy with its samples.

    - reward: all pairs, all train reviews
    - twin: the same without the held-out reviews, which give validation and the sign boundary
    - curve_N: the twin's setting on N reviews
    - matched: the largest of these, with one partner for each review in place of all pairs
    """
    shared = {"seed": seed, "data": p.reviews()}
    full = {**shared, **p.reward_training(), "min_steps": 1}
    small = {**full, "held_out": p.held_out, "min_steps": p.curve_min_steps}
    runs = {
        "reward": get(train_reward, **full),
        "twin": get(train_reward, **full, held_out=p.held_out),
        **{f"curve_{n}": get(train_reward, **small, n_train=n) for n in p.curve_reviews},
        "matched": get(train_reward, **small, n_train=max(p.curve_reviews), pairs="matched"),
        "sft": get(train_sft, **shared, **p.sft()),
    }
    runs["completions"] = get(sample_completions, **shared, policy=runs["sft"], **p.sampling())
    return runs


RECIPES: dict[str, Callable[[World, int], dict[str, Run]]] = {"1_reward_model": reward_model}
