"""What profile imdb takes on a GPU, estimated: its runs are counted, and what their steps take at the published sizes.

    python benchmarks/estimates.py measure  # steps.csv and estimates.csv; a minute and a half of one core
    python benchmarks/estimates.py          # estimates.csv alone

A step takes LAUNCHES + its matrix products / (peak x share), a run STARTING seconds more; one process at a time.
"""

import sys
from collections import Counter
from pathlib import Path

import pandas as pd
import torch
from plan import Planned, planned
from steps import DRAWN, measured

from alignkit import paths
from alignkit.report import readme
from alignkit.training.dpo import VALIDATION_PAIRS
from alignkit.workflow import parameters
from alignkit.workflow.schema import NOTEBOOKS

HERE = Path(__file__).parent
TRAIN, SCORED = 25_000, 12_438 + 2_000
"""Reviews to learn from, and those that each reward model scores: test reviews and anchors."""
GPUS = {"T4": (8.1, 0.4, 65, 0.2, 2.0), "A100": (19.5, 0.3, 312, 0.15, 1.3), "H100": (67, 0.13, 989, 0.1, 1.0)}
"""Peak in float32 (teraflop a second) and the share of it that is reached, the same in half precision, which trainers
use, and how long launches take beside an H100's machine.  The H100's share in float32 was measured, the others are
careful guesses: the smaller a GPU, the better a step of this size fills it."""
LAUNCHES = {"gradient": 0.96, "drawn": 0.78, "pairs": 0.18, "texts": 0.18, "reviews": 0.18}
"""Seconds in which an H100 waits for a step's launches: for 12 layers 12/30 of what was measured with the 30 layers of
SmolLM2-135M, 1.96 s to draw 64 x 48 tokens by `generate` and 0.44 s to learn from them."""
SINGLE = ("gradient", "drawn")
STARTING = 8
"""Seconds in which a run loads, saves and checks its models."""
POLICY = 0.5
"""GB of the weights that a run keeps."""
KEEPING = "train_sft train_dpo train_on_positive distil regress merge_policies interpolate between".split()
LOOPS = "train_policy_gradient train_greedily train_on_token_means".split()


def steps_of(run: Planned) -> Counter[str]:
    """How many steps of each kind a run takes; what only looks at a text costs a third of learning from it."""
    s = run.settings
    match run.function:
        case "train_reward":
            learned = max(s["epochs"] * (s["n_train"] or TRAIN - s["held_out"]) / s["batch"], s["min_steps"])
            return Counter(reviews=learned + (SCORED + s["held_out"]) / 3 / s["batch"])
        case "average_rewards":
            return Counter(reviews=SCORED / 3 / 32)
        case "train_policy_gradient" | "train_greedily" | "train_on_token_means" | "regress":
            return Counter(gradient=s["steps"])
        case "train_dpo":
            made = run.inputs["pairs"].metrics["train_pairs"]
            return Counter(pairs=(s["epochs"] * made + 9 * min(VALIDATION_PAIRS, made / 4) / 3) / s["batch"])
        case "train_sft":
            return Counter(texts=2 * s["held_out"] / 3 / s["batch"])
        case "train_on_positive":
            return Counter(texts=(s["epochs"] * (TRAIN / 2 - s["held_out"]) + 11 * s["held_out"] / 3) / s["batch"])
        case "distil":
            drawn = run.inputs["draws"].settings
            return Counter(texts=drawn["n_prompts"] * s["per_prompt"] * (0.95 + 9 * 0.05 / 3) / s["batch"])
        case "draw_pool":
            policies = len(s["counts"])
            return Counter(drawn=s["n_prompts"] * sum(s["counts"]) * (1 + policies) / 3 / DRAWN)
        case "guided_search":
            return Counter(drawn=s["n_prompts"] * s["beams"] * s["tries"] / DRAWN)
    return Counter(drawn=s.get("n_prompts", 0) * s.get("k", 0) / run.inputs.get("parts", 1) / DRAWN)


def kept(run: Planned) -> int:
    """How many policies a run writes."""
    return (run.function in KEEPING) + (run.function in LOOPS) * (1 + len(run.settings.get("keep", ())))


def seconds(kind: str, teraflop: float, gpu: str) -> float:
    """How long a step takes on a GPU."""
    single, share, half, share_of_half, slower = GPUS[gpu]
    return LAUNCHES[kind] * slower + teraflop / (single * share if kind in SINGLE else half * share_of_half)


def estimated(steps: pd.DataFrame) -> pd.DataFrame:
    """One row a notebook, with one seed and with all; a run counts with the first notebook that has it."""
    whole = steps.set_index("step")
    rows = []
    for seeds in ({"seeds": [0]}, {}):
        seen: set[str] = set()
        for notebook in NOTEBOOKS:
            p = parameters.load(paths.PARAMS / "imdb" / f"{notebook}.yaml", **seeds)
            new = [run for run in planned(p) if run.id not in seen]
            seen |= {run.id for run in new}
            took = sum(map(steps_of, new), Counter())
            row = {"notebook": notebook, "seeds": len(p.seeds), "runs": len(new)}
            row |= {f"{kind}_steps": round(took[kind]) for kind in whole.index}
            row |= {"disk_gb": POLICY * sum(map(kept, new)), "peak_gb": whole.peak_gb[list(took)].max()}
            for gpu in GPUS:
                each = {kind: seconds(kind, whole.teraflop[kind], gpu) for kind in took}
                row[gpu] = (sum(took[kind] * each[kind] for kind in took) + STARTING * len(new)) / 3600
            rows.append(row)
    return pd.DataFrame(rows)


def main() -> None:
    """Count, write, and print the table of the README."""
    if sys.argv[1:] == ["measure"]:
        torch.set_num_threads(1)
        measured().to_csv(HERE / "steps.csv", index=False, float_format="%.3g")
    estimated(pd.read_csv(HERE / "steps.csv")).to_csv(HERE / "estimates.csv", index=False, float_format="%.3g")
    print(readme.estimates(paths.CHECKOUT / "figures"))


if __name__ == "__main__":
    main()
