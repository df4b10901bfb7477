"""What a pretrained policy makes of the reviews before any fine-tuning; writes untuned.csv beside this file.

    python benchmarks/untuned.py path/to/imdb path/to/SmolLM2-135M-Instruct

Nats a token and a character of the test reviews on which profile imdb_scratch tests its own policy, each cut to as many
tokens, those of the policy that reads them.
"""

import sys
from pathlib import Path

import pandas as pd

from alignkit import paths
from alignkit.report.reward_model import characters_a_token
from alignkit.training.sft import cross_entropy
from alignkit.workflow import parameters
from alignkit.world.models import load_policy


def measured(data: str, folder: Path) -> dict[str, object]:
    """The row of one policy, in a folder that has its tokenizer as well."""
    p = parameters.load(paths.PARAMS / "imdb_scratch" / "1_reward_model.yaml", data)
    texts = list(p.reviews().load(0)["test"]["text"])[: p.sft_held_out]
    model, tokenizer = load_policy(str(folder))
    nats = cross_entropy(model.eval(), tokenizer, texts, p.sft_tokens)
    each = {"nats_a_token": nats, "nats_a_character": nats / characters_a_token(folder, texts, p.sft_tokens)}
    return {"policy": f"{folder.name}, not fine-tuned, on IMDB", "texts": len(texts), **each}


if __name__ == "__main__":
    reviews, *folders = sys.argv[1:]
    table = pd.DataFrame([measured(reviews, Path(folder)) for folder in folders])
    table.to_csv(Path(__file__).with_suffix(".csv"), index=False, float_format="%.4g")
    print(table.to_string(index=False))
