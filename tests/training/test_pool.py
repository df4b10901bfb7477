"""Pools of completions: whose draws they are, under whom they are scored, and what is read from them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import called

from alignkit.sampling import sample, sequence_log_probs
from alignkit.training import pool as pool_module
from alignkit.training.evaluate import evaluation_prompts
from alignkit.training.merge import between, save_policy, state_of
from alignkit.training.pool import Pool, draw_pool, load_pool
from alignkit.training.reward import score_with
from alignkit.world.models import load_policy

SIZES = {"reward_tokens": 64, "n_prompts": 6, "max_new_tokens": 10}


def moved(world, to: Path, by: float) -> Path:
    """The SFT policy with its weights scaled a little: another policy."""
    save_policy(to, world.sft, {name: weight * by for name, weight in state_of(world.sft).items()})
    return to


@pytest.fixture(scope="module")
def pool_folder(world, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("pool")
    other = moved(world, tmp_path_factory.mktemp("other"), 1.1)
    drawn = called(
        draw_pool,
        out,
        seed=0,
        data=world.data,
        policies=[world.sft, other],
        counts=[5, 3],
        reward=world.reward,
        **SIZES,
    )
    assert drawn["tokens_generated"] == pd.read_parquet(out / "pool.parquet").tokens.sum()
    return out


def test_each_policy_draws_its_count_for_each_prompt(pool_folder: Path):
    pool = load_pool(pool_folder)
    assert pool.reward.shape == pool.gold.shape == (6, 8)
    assert pool.log_probs.shape == (2, 6, 8)
    assert (pool.policy == [0] * 5 + [1] * 3).all()
    assert pool.of(1).reward.shape == (6, 3)
    np.testing.assert_array_equal(pool.of(1).log_probs, pool.log_probs[:, :, 5:])


def test_policies_draw_with_different_random_numbers(pool_folder: Path, world, tmp_path: Path):
    called(
        draw_pool,
        tmp_path,
        seed=0,
        data=world.data,
        policies=[world.sft, world.sft],
        counts=[4, 4],
        reward=world.reward,
        **SIZES,
    )
    table = pd.read_parquet(tmp_path / "pool.parquet")
    first, second = (table[table.policy == i].completion.tolist() for i in (0, 1))
    assert first != second
    np.testing.assert_array_equal(table.log_prob_0, table.log_prob_1)


def test_every_draw_has_its_log_prob_under_every_policy(pool_folder: Path, world, tmp_path: Path):
    other, codec = load_policy(moved(world, tmp_path, 1.1))
    chance = int(np.random.SeedSequence(0, spawn_key=(1, 1)).generate_state(1)[0] >> 1)
    asked = evaluation_prompts(world.data, codec, 6)
    drawn = sample(other, codec, asked, k=3, max_new_tokens=10, seed=chance)
    rows = pd.read_parquet(pool_folder / "pool.parquet").query("policy == 1")
    assert rows.completion.tolist() == drawn.completion.tolist()
    ids = drawn.prompt_ids.tolist(), drawn.completion_ids.tolist()
    for i, model in enumerate((load_policy(world.sft)[0], other)):
        np.testing.assert_allclose(rows[f"log_prob_{i}"], sequence_log_probs(model, *ids), atol=1e-4)


def test_draws_of_the_reference_alone_have_equal_weights(pool_folder: Path):
    np.testing.assert_allclose(load_pool(pool_folder).of(0).log_weights(), 0, atol=1e-12)


def test_weights_of_the_pool_are_the_reference_over_the_mixture(pool_folder: Path):
    pool = load_pool(pool_folder)
    mixture = 5 / 8 * np.exp(pool.log_probs[0]) + 3 / 8 * np.exp(pool.log_probs[1])
    np.testing.assert_allclose(np.exp(pool.log_weights()), np.exp(pool.log_probs[0]) / mixture, rtol=1e-9)


def test_a_row_has_the_log_prob_and_the_reward_of_its_own_text(pool_folder: Path, world):
    table = pd.read_parquet(pool_folder / "pool.parquet").query("policy == 0")
    model, tokenizer = load_policy(world.sft)
    prompts = tokenizer(table.prompt.tolist())["input_ids"]
    ends = [tokenizer.eos_token_id]
    ids = [tokenizer(c)["input_ids"] + (ends if len(tokenizer(c)["input_ids"]) < n else [])
           for c, n in zip(table.completion, table.tokens, strict=True)]  # fmt: skip
    np.testing.assert_allclose(table.log_prob_0, sequence_log_probs(model, prompts, ids), atol=1e-4)
    texts = (table.prompt + " " + table.completion).str.strip().tolist()
    rewards = score_with(world.reward, texts, tokens=64)
    np.testing.assert_allclose(np.diff(rewards), np.diff(table.reward), atol=1e-4)


def test_the_arc_between_two_policies_starts_and_ends_at_them(world, tmp_path: Path):
    first, second = moved(world, tmp_path / "a", 1.05), moved(world, tmp_path / "b", 0.9)
    for share, end in ((0.0, first), (1.0, second)):
        between(tmp_path / f"{share}", init=world.sft, first=first, second=second, share=share)
        found, expected = state_of(tmp_path / f"{share}"), state_of(end)
        assert all((found[name] == expected[name]).all() for name in expected)


def test_groups_of_draws_together_are_all_draws_of_each_policy():
    policy = np.tile([0] * 4 + [1] * 6, (2, 1))
    reward = np.arange(20.0).reshape(2, 10)
    whole = Pool(reward, None, policy, np.stack([reward, -reward]))
    parts = [whole.without(group, 3) for group in range(3)]
    gone = [sorted(set(reward[0]) - set(part.reward[0])) for part in parts]
    assert sorted(value for group in gone for value in group) == reward[0].tolist()
    assert gone[0] == [0, 3, 4, 7]
    assert (parts[0].log_probs == np.stack([parts[0].reward, -parts[0].reward])).all()
    assert parts[0].of(1).reward[0].tolist() == [5, 6, 8, 9]


def test_two_prompts_that_are_alike_are_two_prompts(world, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pool_module, "evaluation_prompts", lambda *_: ["a good film", "a bad film", "a good film"])
    sizes = {**SIZES, "n_prompts": 3}
    called(draw_pool, tmp_path, seed=0, data=world.data, policies=[world.sft], counts=[4], reward=world.reward, **sizes)
    table = pd.read_parquet(tmp_path / "pool.parquet")
    np.testing.assert_array_equal(load_pool(tmp_path).reward, table.reward.to_numpy().reshape(3, 4))
