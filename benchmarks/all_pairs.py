"""What does comparing all pairs of a batch cost?  Time of a training step, all pairs against plain pairs.

    python benchmarks/all_pairs.py

The two kinds of step alternate, so that other load on the machine meets both; the ratio is what counts.
"""

import statistics
import time

import torch
from torch.nn.functional import logsigmoid

from alignkit.pocket import generate_reviews
from alignkit.training.reward import all_pairs_loss, encode
from alignkit.world.models import new_encoder, train_tokenizer

STEPS, BATCH = 60, 64


def plain_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    return -logsigmoid(chosen - rejected).mean()


def main() -> None:
    texts = generate_reviews(BATCH, seed=0).sort_values("label", ascending=False).text.tolist()
    tokenizer = train_tokenizer("encoder_word", texts, 400)
    shape = {"width": 64, "layers": 2, "heads": 8, "positions": 64, "sinusoidal": True, "dropout": 0.0}
    model = new_encoder(tokenizer, **shape)
    inputs = tokenizer.pad({"input_ids": encode(tokenizer, texts, 64)}, return_tensors="pt")
    seconds: dict[str, list[float]] = {"all pairs": [], "plain pairs": []}
    for step in range(2 * STEPS):
        name, loss = (("all pairs", all_pairs_loss), ("plain pairs", plain_loss))[step % 2]
        started = time.perf_counter()
        chosen, rejected = model(**inputs).logits.squeeze(-1).chunk(2)
        loss(chosen, rejected).backward()
        seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(times[5:]) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {1000 * median:.2f} ms a step of {BATCH} texts")
    print(f"ratio: {medians['all pairs'] / medians['plain pairs']:.3f}")


if __name__ == "__main__":
    main()
