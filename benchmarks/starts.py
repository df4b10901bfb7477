"""What the benchmarks start from, at the sizes of a profile and on pocket reviews; and how two sides are timed."""

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from alignkit import paths
from alignkit.training.pairs import GenerationSettings, PairSettings, build_pairs, generate
from alignkit.training.reinforce import LoopSettings, train_policy_gradient
from alignkit.training.reward import fixed_reviews, write_scores
from alignkit.training.sft import SftSettings, train_sft
from alignkit.workflow import parameters
from alignkit.world.models import POSITIONS, new_encoder, new_policy, save, train_tokenizer
from alignkit.world.reviews import Reviews

PROMPTS = 64
"""Completions that are drawn at a time."""
READ = 8
"""Tokens that the reward model reads of a text."""
SAMPLES, BETA = 4, 0.1
"""Completions of each prompt, and the strength of the KL, in the policy gradient."""
RATE = 1e-6
"""Its learning rate, so low that the policies of both sides stay as they are, and their texts as long."""
LARGE = "SmolLM2-135M"
"""A size, with random weights, for a GPU; the others are profiles."""


class Start(NamedTuple):
    """Folders and reviews, as a training function takes them."""

    data: Reviews
    policy: Path
    reward: Path
    new_tokens: int


def start(folder: Path, size: str, reviews: int = 2000, *, trained: bool = False, seed: int = 0) -> Start:
    """A policy of the size, trained for seconds if asked for, and a reward model that costs next to nothing.

    An untrained policy ends no text, and its vocabulary is filled up with words that no review has.
    """
    data = Reviews("pocket", reviews, 100, 100)
    here = Start(data, folder / "policy", folder / "reward", of_profile(_profile(size), "4_warp")["new_tokens"])
    here.policy.mkdir(parents=True)
    here.reward.mkdir()
    texts = list(data.load(0)["train"]["text"])
    if trained:
        _train(here, of_profile(size, "4_warp"), seed)
    else:
        torch.manual_seed(0)
        save(here.policy, *_untrained(size, texts))
    encoder_words = train_tokenizer("encoder_word", texts, 400)
    shape = {"width": 8, "layers": 1, "heads": 1, "positions": READ, "sinusoidal": False, "dropout": 0.0}
    encoder = new_encoder(encoder_words, **shape).eval()
    save(here.reward, encoder, encoder_words)
    write_scores(here.reward, fixed_reviews(data), encoder, encoder_words, READ)
    return here


def of_profile(profile: str, notebook: str) -> dict[str, Any]:
    """The parameters of a notebook in a shipped profile."""
    return parameters.load(paths.PARAMS / profile / f"{notebook}.yaml").model_dump()


def _profile(size: str) -> str:
    return "imdb_scratch" if size == LARGE else size


def _train(here: Start, values: dict, seed: int) -> None:
    shape = {name: values[f"policy_{name}"] for name in ("tokenizer", "vocab", "width", "layers", "heads")}
    training = {"tokens": values["sft_tokens"], "epochs": 2, "batch": 64, "lr": values["sft_lr"], "held_out": 64}
    train_sft(here.policy, SftSettings(policy="scratch", **shape, **training), seed=seed, data=here.data)


def _untrained(size: str, texts: list[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    values = of_profile(_profile(size), "4_warp")
    vocab = 49152 if size == LARGE else values["policy_vocab"]
    words = train_tokenizer("word", [*texts, " ".join(f"word{i}" for i in range(vocab))], vocab)
    if size != LARGE:
        shape = {name: values[f"policy_{name}"] for name in ("width", "layers", "heads")}
        return new_policy(words, **shape, positions=POSITIONS), words
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9}
    ends = {"eos_token_id": words.eos_token_id, "bos_token_id": words.bos_token_id, "pad_token_id": words.pad_token_id}
    config = LlamaConfig(
        **shape, **ends, vocab_size=vocab, num_key_value_heads=3, tie_word_embeddings=True, max_position_embeddings=2048
    )
    return LlamaForCausalLM(config), words


def pairs(folder: Path, here: Start, prompts: int, seed: int = 0) -> Path:
    """A folder with about 5 preference pairs a prompt, and a few more for validation."""
    folder.mkdir(parents=True)
    models = {"policy": here.policy, "reference": here.policy, "reward": here.reward}
    given = {"seed": seed, "data": here.data, **models}
    generate(folder, GenerationSettings(prompts, k=6, max_new_tokens=here.new_tokens, reward_tokens=READ), **given)
    build_pairs(folder, PairSettings("top_bottom", test_share=0.06), seed=seed, generations=folder)
    return folder


def policy_gradient(here: Start, steps: int, seed: int = 0) -> None:
    """RLOO with a fixed anchor by `train_policy_gradient`."""
    how = {"batch": PROMPTS, "k": SAMPLES, "baseline": "rloo", "beta": BETA, "lr": RATE, "warmup": 0}
    anchor = {"anchor": "reference", "ema_rate": 0.01, "max_new_tokens": here.new_tokens, "reward_tokens": READ}
    inputs = {"seed": seed, "data": here.data, "policy": here.policy, "reference": here.policy, "reward": here.reward}
    with tempfile.TemporaryDirectory() as out:
        train_policy_gradient(Path(out), LoopSettings(steps=steps, **how, **anchor), **inputs)


def seconds(do: Callable[..., object], *given: object) -> float:
    """How long a call takes; on a GPU, from an empty queue to an empty queue."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    started = time.perf_counter()
    do(*given)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def seconds_a_step(run: Callable[[int], object], steps: int) -> float:
    """How long a step of run(steps) takes; what it takes to begin and to end cancels, the first step with it."""
    return (seconds(run, 1 + steps) - seconds(run, 1)) / steps


def summary(taken: Iterable[tuple[float, float]]) -> dict[str, float]:
    """Medians of (our, their) seconds, and their seconds / ours, turn by turn: median and quartiles."""
    ours, theirs = np.array(list(taken)).T
    low, ratio, high = np.percentile(theirs / ours, [25, 50, 75]).tolist()
    medians = {"ours_ms": 1000 * float(np.median(ours)), "theirs_ms": 1000 * float(np.median(theirs))}
    return {**medians, "ratio": ratio, "low": low, "high": high, "turns": len(ours)}


def in_turn(ours: Callable[[], float], theirs: Callable[[], float], repeats: int) -> dict[str, float]:
    """`summary` of two sides that take turns, so that other load meets both; each returns its seconds.

    A first turn, in which libraries set themselves up, does not count.
    """
    return summary([(ours(), theirs()) for _ in range(1 + repeats)][1:])
