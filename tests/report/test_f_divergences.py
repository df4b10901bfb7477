"""What notebook 3 computes at equal KL for shorter and longer prompts."""

import pandas as pd
import pytest

from alignkit.report.f_divergences import reward_by_prompt_length


def test_prompts_are_halved_by_length_and_a_diverged_policy_is_left_out(run) -> None:
    prompts = pd.Series(["a", "a b", "a b c", "a b c d"])
    runs = {0: {}}
    table = []
    for method, family, kl, reward in (
        ("sft", "sft", [0, 0, 0, 0], [0, 0, 0, 0]),
        ("js", "js", [1, 1, 4, 4], [1, 3, 10, 12]),
    ):
        made = run({"status": "ok"})
        pd.DataFrame({"prompt": prompts, "kl": kl, "reward": reward}).to_parquet(made.path / "completions.parquet")
        runs[0][f"{method}: evaluation"] = made
        table.append({"method": method, "seed": 0, "family": family, "status": "ok"})
    runs[0]["lost: evaluation"] = run({"status": "diverged"})  # wrote no completions
    table.append({"method": "lost", "seed": 0, "family": "lost", "status": "diverged"})
    found = pd.concat(reward_by_prompt_length(runs, pd.DataFrame(table), kl) for kl in (1.0, 4.0))
    at = found.dropna(subset="reward").set_index(["prompts", "at_kl"]).reward
    assert at.to_dict() == pytest.approx({("short", 1.0): 2.0, ("long", 4.0): 11.0})
    assert set(found.family) == {"js"}
