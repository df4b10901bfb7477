"""What notebook 2 reads from the pairs."""

import pandas as pd
import pytest

from alignkit.report.dpo_losses import chosen_texts, side_rows, size_gains


def test_chosen_texts_are_those_of_the_training_pairs_each_once(run) -> None:
    by_name = {"pairs": run({}), "generations": run({})}
    (by_name["pairs"].path / "pairs").mkdir()
    drawn = pd.DataFrame(
        {
            "prompt": ["x", "x", "x", "x", "y", "y"],
            "completion": ["a", "b", "c", "a", "a", "b"],
            "text": ["x a", "x b", "x c", "x a", "y a", "y b"],
            "reward": [3.0, 2.0, 1.0, 3.0, 0.0, 5.0],
        }
    )
    drawn.to_parquet(by_name["generations"].path / "generations.parquet")
    pairs = pd.DataFrame({"prompt": ["x", "x", "x", "y"], "chosen": ["a", "a", "b", "b"]})
    pairs.assign(rejected="c").to_parquet(by_name["pairs"].path / "pairs" / "train.parquet")
    found = chosen_texts(by_name)
    assert found[["text", "reward"]].values.tolist() == [["x a", 3.0], ["x b", 2.0], ["y b", 5.0]]


def test_side_rows_stand_beside_policies_that_were_drawn_as_they_were() -> None:
    methods = ["sft", "sft, drawn as a side row", "sigmoid", "sigmoid, drawn as a side row", "lora"]
    table = pd.DataFrame({"method": methods, "row": ["main", "side", "main", "side", "side"], "family": ""})
    table["kl"] = range(5)
    found = side_rows(table, ["sft", "lora", "sigmoid"])
    assert found.kl.tolist() == [1, 4, 3]
    assert found.method.tolist() == ["sft", "lora", "sigmoid"]
    assert found.family.tolist() == ["sft", "lora", "DPO, sigmoid loss"]


def test_the_gain_of_all_prompts_is_that_of_all_minus_part() -> None:
    rows = [(m, s, "ok", r) for m, rs in {"all prompts": (3.0, 3.5), "0.5 of the prompts": (1.0, 2.0)}.items()
            for s, r in enumerate(rs)]  # fmt: skip
    found = size_gains(pd.DataFrame(rows, columns=["method", "seed", "status", "reward"]), ["reward"]).iloc[0]
    assert (found.difference, found.share) == (pytest.approx(1.75), 0.5)
    assert found.low < found.difference < found.high
    assert found.high - found.difference == pytest.approx(found.difference - found.low)
