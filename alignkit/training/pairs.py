"""Preference pairs: several completions of each training prompt by the SFT policy, scored by the reward model, paired.

Generations and pairs are parquet files that `datasets.load_dataset` reads; the columns of the pairs are those of TRL's
preference format (prompt, chosen, rejected), their token ids, and the reference log-probs that TRL would compute anew
for every run: here they are computed once, when the completions are drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import partial
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import expit

from alignkit.faults import UserFault
from alignkit.sampling import full_texts, sample, sequence_log_probs
from alignkit.training.reward import score_with, zero_of
from alignkit.world.models import load_policy
from alignkit.world.reviews import Reviews, prompts

Rows = list[tuple[int, int]]
"""Pairs of positions (chosen, rejected)."""


@dataclass(frozen=True)
class GenerationSettings:
    """How many completions of train prompts are drawn, for pairs or for distillation."""

    n_prompts: int
    k: int
    """Completions of each prompt."""
    max_new_tokens: int
    reward_tokens: int


def generate(
    out: Path,
    settings: GenerationSettings,
    *,
    seed: int,
    data: Reviews,
    policy: Path,
    reference: Path,
    reward: Path,
    stream: int = 0,
    part: int = 0,
    parts: int = 1,
) -> dict[str, Any]:
    """Draw completions of train prompts (5-15 tokens, the task's setting) and score them.

    policy draws, reference is the policy that drift is measured from.  Another stream draws other completions.  Of
    `parts` shares of the prompts, those of `part` are taken.

    Writes generations.parquet, rows in prompt order: prompt, place (of the prompt), completion, prompt_ids,
    completion_ids, finished, text, reward (nats, less the mean reward of unlabelled reviews), and the log-probs of the
    completion in nats under the policy (own_logps) and under the reference (ref_logps).  Returns status, the number of
    tokens drawn and the mean reward.
    """
    s = settings
    model, tokenizer = load_policy(policy)
    train = data.load(seed)["train"]["text"]
    texts = prompts(list(train), tokenizer, n=s.n_prompts, shortest=5, longest=15, seed=seed)[part::parts]
    samples = sample(model, tokenizer, texts, k=s.k, max_new_tokens=s.max_new_tokens, seed=seed + 1000 * stream)
    samples["place"] = np.repeat(np.arange(len(texts)), s.k)
    samples["text"] = full_texts(samples, tokenizer)
    samples["reward"] = score_with(reward, samples.text.tolist(), tokens=s.reward_tokens) - zero_of(reward)
    ids = samples.prompt_ids.tolist(), samples.completion_ids.tolist()
    samples["own_logps"] = samples["ref_logps"] = sequence_log_probs(model, *ids)
    if reference != policy:
        samples["ref_logps"] = sequence_log_probs(load_policy(reference)[0], *ids)
    samples.to_parquet(out / "generations.parquet", index=False)
    tokens = int(samples.completion_ids.map(len).sum())
    return {"status": "ok", "tokens_generated": tokens, "reward": float(samples.reward.mean())}


# Constructions: which completions of one prompt are compared, given their rewards (k,)


def all_pairs(rewards: np.ndarray, rng: np.random.Generator) -> Rows:
    """Every two completions; the one with the higher reward is chosen."""
    return [(i, j) if rewards[i] > rewards[j] else (j, i) for i, j in combinations(range(len(rewards)), 2)]


def top_bottom(rewards: np.ndarray, rng: np.random.Generator) -> Rows:
    """The best against the lower half, and the upper half against the worst: 5 pairs of 6 completions."""
    order = np.argsort(-rewards, kind="stable").tolist()
    half = len(order) // 2
    return list(dict.fromkeys([*product(order[:1], order[half:]), *product(order[:half], order[-1:])]))


def threshold(rewards: np.ndarray, rng: np.random.Generator, *, winner: float, loser: float) -> Rows:
    """Every completion with reward >= winner against every one with reward < loser."""
    return list(product(np.flatnonzero(rewards >= winner).tolist(), np.flatnonzero(rewards < loser).tolist()))


def bernoulli(rewards: np.ndarray, rng: np.random.Generator) -> Rows:
    """Every two completions; i is chosen with probability σ(r_i - r_j), the labels that DPO's theory assumes."""
    wins = expit(rewards[:, None] - rewards)
    return [(i, j) if rng.random() < wins[i, j] else (j, i) for i, j in combinations(range(len(rewards)), 2)]


CONSTRUCTIONS: dict[str, Callable[..., Rows]] = {
    function.__name__: function for function in (threshold, top_bottom, all_pairs, bernoulli)
}


@dataclass(frozen=True)
class PairSettings:
    """Which completions of a prompt are compared."""

    construction: str
    """One of CONSTRUCTIONS."""
    winner: float | None = None
    """Least reward of a chosen text; for "threshold" alone."""
    loser: float | None = None
    """A rejected text has less reward than this; for "threshold" alone."""
    max_similarity: float = 1.0
    """Two completions whose words are more alike than this (difflib's ratio, 0 to 1) are not compared."""
    test_share: float = 0.2


def build_pairs(out: Path, settings: PairSettings, *, seed: int, generations: Path) -> dict[str, float]:
    """Pair the completions of each prompt; a share of the prompts is kept for validation, none stands on both sides.

    Prompts of equal text are one: of m times k completions, all are compared with all.

    Two completions with the same words are not compared.  Writes pairs/train.parquet and pairs/test.parquet in random
    order, with prompt, chosen, rejected, their ids, rewards and reference log-probs.  Returns the number of pairs and
    the mean difference in reward.  Raises UserFault for an unknown construction or if no pair is left.
    """
    s = settings
    if s.construction not in CONSTRUCTIONS:
        raise UserFault(f"pairs: {s.construction!r}; allowed: {', '.join(CONSTRUCTIONS)}")
    compare = CONSTRUCTIONS[s.construction]
    if s.construction == "threshold":
        if s.winner is None or s.loser is None or s.winner < s.loser:
            raise UserFault(f"pairs: 'threshold' with winner {s.winner} and loser {s.loser}; allowed: winner >= loser")
        compare = partial(threshold, winner=s.winner, loser=s.loser)
    rng = np.random.default_rng(seed)
    table = pd.read_parquet(generations / "generations.parquet")
    groups = table.groupby("prompt", sort=False)
    held_out = set(rng.permutation(len(groups))[: round(s.test_share * len(groups))].tolist())
    kept: dict[str, Rows] = {"train": [], "test": []}
    for i, (_, group) in enumerate(groups):
        texts, rows = group.completion.tolist(), group.index
        pairs = compare(group.reward.to_numpy(), rng)
        kept["test" if i in held_out else "train"] += [
            (rows[j], rows[k]) for j, k in pairs if not _too_alike(texts[j], texts[k], s.max_similarity)
        ]
    (out / "pairs").mkdir()
    gaps = {}
    for name, pairs in kept.items():
        if not pairs:
            raise UserFault(f"pairs: {s.construction!r} leaves no pair in {name}; allowed: settings that leave some")
        order = rng.permutation(len(pairs))
        paired = _side_by_side(*(table.loc[rows] for rows in np.array(pairs)[order].T))
        paired.to_parquet(out / "pairs" / f"{name}.parquet", index=False)
        gaps[name] = (paired.chosen_reward - paired.rejected_reward).mean()
    return {"train_pairs": len(kept["train"]), "test_pairs": len(kept["test"]), "reward_gap": float(gaps["train"])}


def _side_by_side(chosen: pd.DataFrame, rejected: pd.DataFrame) -> pd.DataFrame:
    sides = {"chosen": chosen.reset_index(drop=True), "rejected": rejected.reset_index(drop=True)}
    columns = {"": "completion", "_ids": "completion_ids", "_reward": "reward"}
    paired = {side + suffix: rows[name] for side, rows in sides.items() for suffix, name in columns.items()}
    log_probs = {f"ref_{side}_logps": rows.ref_logps for side, rows in sides.items()}
    return pd.DataFrame(dict(sides["chosen"][["prompt", "prompt_ids"]]) | paired | log_probs)


def _too_alike(a: str, b: str, limit: float) -> bool:
    return a == b or (limit < 1 and SequenceMatcher(None, a.split(), b.split(), autojunk=False).ratio() > limit)


def fewer_pairs(out: Path, *, pairs: Path, share: float) -> dict[str, float]:
    """Keep the training pairs of a share of the prompts, drawn at random, and all validation pairs; less is a part of
    more.  Writes what `build_pairs` does.
    """
    train, test = (pd.read_parquet(pairs / "pairs" / f"{name}.parquet") for name in ("train", "test"))
    # Not as they come: a prompt with many pairs comes first more often.
    first = np.random.default_rng(0).permutation(np.sort(train.prompt.unique()))
    kept = train[train.prompt.isin(first[: max(1, round(share * len(first)))])]
    (out / "pairs").mkdir()
    kept.to_parquet(out / "pairs" / "train.parquet", index=False)
    test.to_parquet(out / "pairs" / "test.parquet", index=False)
    gap = float((kept.chosen_reward - kept.rejected_reward).mean())
    return {"train_pairs": len(kept), "test_pairs": len(test), "reward_gap": gap}
