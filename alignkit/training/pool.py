"""Completions of several policies for the same prompts, with their log-probs under all of them: what the optimal
frontier is estimated from, and what one gets by drawing several completions and keeping one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from alignkit.frontier import balance_log_weights
from alignkit.sampling import full_texts, sample, sequence_log_probs
from alignkit.training.evaluate import evaluation_prompts, with_rewards
from alignkit.world.known import truth_of
from alignkit.world.models import load_policy
from alignkit.world.reviews import Reviews


class Pool(NamedTuple):
    """Arrays over (prompts, n): reward, gold (None where it is not known), policy (who drew it), and log_probs
    (policies, prompts, n) in nats; policy 0 is the reference."""

    reward: np.ndarray
    gold: np.ndarray | None
    policy: np.ndarray
    log_probs: np.ndarray

    def log_weights(self) -> np.ndarray:
        """log(π_ref / what drew the pool), (prompts, n)."""
        return balance_log_weights(self.log_probs, np.bincount(self.policy[0], minlength=len(self.log_probs)))

    def of(self, policy: int) -> "Pool":
        """What one policy drew."""
        return self._only(self.policy[0] == policy)

    def without(self, group: int, groups: int) -> "Pool":
        """What is left when the draws of each policy are dealt to so many groups and one of them is taken away."""
        place = pd.Series(self.policy[0]).groupby(self.policy[0]).cumcount().to_numpy()
        return self._only(place % groups != group)

    def _only(self, kept: np.ndarray) -> "Pool":
        gold = None if self.gold is None else self.gold[:, kept]
        return Pool(self.reward[:, kept], gold, self.policy[:, kept], self.log_probs[:, :, kept])


@dataclass(frozen=True)
class PoolSettings:
    """How many completions each policy draws of each test prompt, the reference first."""

    counts: tuple[int, ...]
    n_prompts: int
    max_new_tokens: int
    reward_tokens: int


def draw_pool(
    out: Path, settings: PoolSettings, *, seed: int, data: Reviews, policies: Sequence[Path], reward: Path
) -> dict[str, Any]:
    """Draw completions of test prompts from several policies, the reference first, and score all of them.

    The prompts are those of `evaluate`, the random numbers are not.  Writes pool.parquet: place (of the prompt, since
    two may be alike), prompt, policy (a position), completion, reward, gold (where known), tokens, and log_prob_0,
    log_prob_1, ... of the completion in nats.
    """
    s = settings
    models = [load_policy(folder)[0] for folder in policies]
    tokenizer = load_policy(policies[0])[1]
    texts = evaluation_prompts(data, tokenizer, s.n_prompts)
    drawn = []
    for i, (model, k) in enumerate(zip(models, s.counts, strict=True)):
        chance = int(np.random.SeedSequence(seed, spawn_key=(i, 1)).generate_state(1)[0] >> 1)
        own = sample(model, tokenizer, texts, k=k, max_new_tokens=s.max_new_tokens, seed=chance)
        drawn.append(own.assign(policy=i, place=np.repeat(np.arange(s.n_prompts), k)))
    samples = pd.concat(drawn, ignore_index=True)
    samples["text"] = full_texts(samples, tokenizer)
    samples = with_rewards(samples, reward, s.reward_tokens, truth_of(data.source))
    ids = samples.prompt_ids.tolist(), samples.completion_ids.tolist()
    for i, model in enumerate(models):
        samples[f"log_prob_{i}"] = sequence_log_probs(model, *ids)
    samples["tokens"] = samples.completion_ids.map(len)
    samples.drop(columns=["prompt_ids", "completion_ids", "text"]).to_parquet(out / "pool.parquet", index=False)
    return {"status": "ok", "tokens_generated": int(samples.tokens.sum())}


def load_pool(folder: Path) -> Pool:
    """The arrays of a pool that `draw_pool` wrote; prompts in their order, the draws of a policy side by side."""
    table = pd.read_parquet(folder / "pool.parquet").sort_values(["place", "policy"], kind="stable")
    grid = lambda column: table[column].to_numpy().reshape(table.place.nunique(), -1)  # noqa: E731
    log_probs = np.stack([grid(c) for c in table if c.startswith("log_prob_")])
    return Pool(grid("reward"), grid("gold") if "gold" in table else None, grid("policy"), log_probs)
