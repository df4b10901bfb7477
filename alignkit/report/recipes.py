"""Which runs each notebook asks for: a notebook and `alignkit train` call the same recipe, so one loads what the other
trained.  Main rows are trained for every seed, side rows for the first seed of the profile only."""

from collections.abc import Callable
from typing import Any

import transformers

from alignkit.report import dpo_losses, f_divergences, improvements, one_front, primer, reward_model, warp
from alignkit.report.policies import Runs

# Bars of loading models would stay in the notebooks, as widgets without their state.
transformers.logging.disable_progress_bar()

RECIPES: dict[str, Callable[[Any, int], Runs]] = {
    "0_primer": primer.recipe,
    "1_reward_model": reward_model.recipe,
    "2_dpo_losses": dpo_losses.recipe,
    "3_f_divergences": f_divergences.recipe,
    "4_warp": warp.recipe,
    "5_improvements": improvements.recipe,
    "6_one_front": one_front.recipe,
}
