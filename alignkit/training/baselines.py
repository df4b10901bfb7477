"""What one would try before preference learning: no training on pairs, or none at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import transformers

from alignkit.sampling import full_texts, sample
from alignkit.training.evaluate import evaluation_prompts, measures, with_rewards
from alignkit.training.sft import fine_tune
from alignkit.world.models import load_policy
from alignkit.world.reviews import load_reviews


def train_on_positive(
    out: Path,
    *,
    seed: int,
    data: dict[str, Any],
    policy: Path,
    tokens: int,
    held_out: int,
    epochs: float,
    batch: int,
    lr: float,
) -> dict[str, Any]:
    """Fine-tune the SFT policy further on the positive train reviews only.

    Writes the policy, its tokenizer and history.csv.
    """
    transformers.set_seed(seed)
    model, codec = load_policy(policy)
    train = load_reviews(seed=seed, **data)["train"].to_pandas()
    texts = train.text[train.label == 1].tolist()
    log = fine_tune(model, codec, texts, tokens, held_out, seed=seed, epochs=epochs, batch=batch, lr=lr)
    log.to_csv(out / "history.csv", index=False)
    model.save_pretrained(out)
    codec.save_pretrained(out)
    lengths = [min(tokens, len(ids)) for ids in codec(texts[held_out:])["input_ids"]]
    return {"status": "ok", "tokens_trained": round(epochs * sum(lengths))}


def positive_words(data: dict[str, Any], tokenizer, n: int, strength: float) -> dict[str, float]:
    """The n tokens whose presence speaks most for a positive train review, each with the same bias in nats.

    Log-odds of presence with add-one smoothing, among tokens in at least 0.2 % of the reviews.
    """
    train = load_reviews(seed=0, **data)["train"].to_pandas()
    present = np.zeros((2, len(tokenizer)))
    for ids, label in zip(tokenizer(train.text.tolist())["input_ids"], train.label, strict=True):
        present[label, list(set(ids))] += 1
    log_odds = np.log(present[1] + 1) - np.log(present[0] + 1)
    log_odds[present.sum(axis=0) < 0.002 * len(train)] = -np.inf
    return {tokenizer.convert_ids_to_tokens(int(i)): strength for i in np.argsort(-log_odds)[:n]}


def best_of(samples: pd.DataFrame, n: int) -> pd.DataFrame:
    """The best of each n completions of a prompt by reward.  Raises ValueError if n does not divide them."""
    if (samples.groupby("prompt").size() % n).any():
        raise ValueError(f"best of {n}: {n} must divide the number of completions of every prompt")
    group = samples.groupby("prompt", sort=False).cumcount() // n
    return samples.loc[samples.groupby([samples.prompt, group], sort=False).reward.idxmax()]


def guided_search(
    out: Path,
    *,
    seed: int,
    data: dict[str, Any],
    policy: Path,
    reward: Path,
    reward_tokens: int,
    n_prompts: int,
    max_new_tokens: int,
    beams: int,
    tries: int,
    chunk: int,
) -> dict[str, Any]:
    """Reward-guided beam search: every `chunk` tokens, keep the best `beams` of beams x tries sampled continuations.

    The reward model judges unfinished texts, for which it was not made.  The result is no sample of a policy, so it
    has no KL.  Writes completions.parquet with the best text of each test prompt; returns `measures` of them.
    """
    model, tokenizer = load_policy(policy)
    texts = evaluation_prompts(data, tokenizer, n_prompts)
    start = [list(ids) for ids in tokenizer(texts)["input_ids"]]
    gold = data["source"] == "pocket"
    state = pd.DataFrame({"which": range(len(texts)), "ids": start, "finished": False, "reward": -np.inf})
    generated = 0
    for step in range(-(-max_new_tokens // chunk)):
        open_ids = state[~state.finished]
        if open_ids.empty:
            break
        more = {"k": tries, "max_new_tokens": min(chunk, max_new_tokens - step * chunk), "seed": seed + 1000 * step}
        drawn = sample(model, tokenizer, open_ids.ids.tolist(), **more)
        generated += int(drawn.completion_ids.map(len).sum())
        drawn["which"] = np.repeat(open_ids.which.to_numpy(), tries)
        drawn["ids"] = [list(p) + list(c) for p, c in zip(drawn.prompt_ids, drawn.completion_ids, strict=True)]
        drawn["text"] = full_texts(drawn, tokenizer)
        both = pd.concat([with_rewards(drawn, reward, reward_tokens, gold=gold), state[state.finished]])
        state = both.sort_values("reward", ascending=False, kind="stable").groupby("which").head(beams)
    best = state.groupby("which").head(1).sort_values("which").reset_index(drop=True)
    best["prompt"] = texts
    ends = [tokenizer.eos_token_id]
    best["completion"] = [
        tokenizer.decode([i for i in ids[len(first) :] if i not in ends])
        for ids, first in zip(best.ids, start, strict=True)
    ]
    keep = ["prompt", "completion", "text", "finished", "reward", *(("gold", "well_formed") if gold else ())]
    best[keep].to_parquet(out / "completions.parquet", index=False)
    return {"status": "ok", **measures(best), "completions": 1, "tokens_generated": generated}
