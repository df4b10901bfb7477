"""WARP (Ramé et al. 2024, "WARP: On the Benefits of Weight Averaged Rewarded Policies"), Algorithm 1, line by line."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from alignkit.training.merge import interpolate, merge_policies
from alignkit.training.reinforce import LoopSettings, train_policy_gradient
from alignkit.workflow.store import Run, get


class Iteration(NamedTuple):
    """What one iteration started from, the runs that it trained, their merge, and where the next one starts."""

    init: Run
    thetas: list[Run]
    merged: Run
    next_init: Run


def warp(
    theta_sft: Run,
    training: LoopSettings,
    inputs: Mapping[str, Any],
    *,
    iterations: int,
    runs: int,
    eta: float,
    how: str = "slerp",
    train: Callable[..., dict[str, Any]] = train_policy_gradient,
) -> list[Iteration]:
    """Algorithm 1; `iterations` is its I, `runs` its M, `eta` its η.

    `training` are the settings of lines 4 to 9, `inputs` their seed, data and reward model; `train` is what runs them.
    Every run has its own policy, optimizer, anchor and random stream and is a run of the store: the M runs of an
    iteration may be trained side by side by several processes, and calls whose first iterations agree share these.

    The algorithm's output is the front {(1 - η) θ_sft + η θ_slerp | 0 <= η <= 1}, with θ_slerp the merge of the last
    iteration (`merge.evaluate_interpolation`).
    """
    done, init = [], theta_sft  # line 1
    for i in range(iterations):  # line 2
        # Lines 3 to 9.
        thetas = [get(train, training, **inputs, policy=init, reference=theta_sft, stream=[i, m]) for m in range(runs)]
        merged = get(merge_policies, init=init, thetas=thetas, how=how)  # line 12
        next_init = get(interpolate, init=init, merged=merged, eta=eta)  # line 13
        done.append(Iteration(init, thetas, merged, next_init))
        init = next_init
    return done
