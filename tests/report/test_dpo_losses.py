"""What notebook 2 reads from the pairs."""

import pandas as pd

from alignkit.report.dpo_losses import chosen_texts


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
