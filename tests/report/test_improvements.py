"""What notebook 5 compares is comparable: equal steps, equal slopes, seeds that no choice was made on."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from alignkit import paths
from alignkit.divergences import NAMES, divergence
from alignkit.faults import UserFault
from alignkit.metrics import holm, unigram_entropy
from alignkit.report import improvements
from alignkit.report.improvements import (
    COMPARED,
    MEMBERS,
    NEW_DIVERGENCES,
    entropy_at_equal_draws,
    ideas,
    members,
    method_less_others,
    methods,
    proxies,
    strength_to_beta,
    unused_seeds,
)
from alignkit.report.tables import differences
from alignkit.workflow import parameters, schema


@pytest.fixture(params=["smoke", "pocket", "imdb_scratch", "imdb"])
def p(request) -> schema.Improvements:
    return parameters.load(paths.PARAMS / request.param / "5_improvements.yaml")


def test_every_idea_has_the_same_steps_and_completions(p):
    for idea in ideas(p):
        assert idea.changes["steps"] * idea.iterations * idea.runs == p.equal_steps
        k = idea.changes.get("k", p.warp_samples)
        completions = idea.changes.get("batch", p.warp_batch) // k * k
        assert 0.9 * p.warp_batch < completions <= p.warp_batch


def test_what_is_compared_is_trained_for_every_seed_and_differs_in_name(p):
    names = [idea.name for idea in ideas(p)]
    assert len(set(names)) == len(names)
    assert set(COMPARED) <= {idea.name for idea in ideas(p) if idea.main}


def test_the_confirmation_has_every_seed_but_that_of_the_choices(p):
    assert sorted(unused_seeds(p)) == sorted({*p.seeds[1:], *p.confirm_seeds})
    assert p.seeds[0] not in unused_seeds(p)


def test_a_new_seed_that_is_also_a_seed_is_one_line(p):
    values = p.model_dump() | {"confirm_seeds": [p.seeds[0]]}
    with pytest.raises(UserFault, match=rf"^file: confirm_seeds: \[{p.seeds[0]}\] are among seeds already; allowed: "):
        parameters.validated(values, "file")


@pytest.mark.parametrize("name", [n for n in NEW_DIVERGENCES if n not in ("total_variation", "chi_alpha")])
def test_a_beta_gives_the_score_the_slope_of_reverse_kl_at_the_reference(name: str):
    beta = strength_to_beta(name, 0.4)
    step = 1e-5
    rise = divergence(name).score(np.array([-step, step])).diff().item() / (2 * step)
    assert beta * rise == pytest.approx(0.4, rel=1e-4)


def test_every_divergence_is_trained_but_those_between_the_two_kls(p):
    trained = {method.settings["divergence"] for method in methods(p)}
    assert trained == {*NAMES} - {"alpha"}


def test_more_reviews_for_a_weak_reward_model_than_there_are_is_one_line(p):
    values = p.model_dump() | {"train_reviews": 1000, "weak_reviews": [200, 30_000]}
    with pytest.raises(UserFault, match=r"^file: weak_reviews: 30000 is more than train_reviews \(1000\)$"):
        parameters.validated(values, "file")


@pytest.mark.parametrize(
    ("notebook", "changed", "told"),
    [
        ("6_one_front", {"warp_batch": 4, "main_samples": 8}, "main_samples: 8 is more than warp_batch (4)"),
        ("5_improvements", {"few_batch": 3}, "main_samples: 4 is more than few_batch (3)"),
        ("5_improvements", {"again_prompts": 1}, "again_prompts: 1; allowed: greater than or equal to 2"),
        ("5_improvements", {"main_completions": 31}, "main_completions: 31; allowed: a multiple of 2"),
        ("5_improvements", {"loser_reward": 2.0, "winner_reward": 1.0}, "loser_reward: 2.0 is more than winner_reward"),
        ("2_dpo_losses", {"on_policy_rounds": 20, "pair_prompts": 99}, "on_policy_rounds: 20; pair_prompts (99) are"),
        ("6_one_front", {"pool_trained": 60}, "resample: 32 is more than half of pool_reference or of pool_trained"),
        ("6_one_front", {"judge_reviews": 4}, "judge_reviews: 4; allowed: greater than or equal to 50"),
    ],
)
def test_what_training_would_stumble_over_is_one_line_before(notebook: str, changed: dict[str, Any], told: str):
    p = parameters.load(paths.PARAMS / "pocket" / f"{notebook}.yaml")
    with pytest.raises(UserFault) as fault:
        parameters.validated(p.model_dump() | changed, "file")
    assert f"file: {told}" in str(fault.value)


# Tables


def test_the_method_is_what_is_left_when_another_is_subtracted():
    volume = pd.DataFrame(
        {"method": ["a"] * 3 + ["b"] * 3, "seed": [0, 1, 2] * 2, "reward": [5.0, 6, 7, 1, 2, 3.5], "status": "ok"}
    )
    row = method_less_others(differences(volume, "a", ["reward"]), "a").iloc[0]
    assert (row.label, row.difference) == ("a − b", pytest.approx(11.5 / 3))
    assert row.low < row.difference < row.high


def test_holms_adjustment_is_over_all_measures_and_methods_of_one_claim():
    rewards = [5.0, 6, 7, 1, 2, 3.5, 4, 5.2, 6.6]
    volume = pd.DataFrame({"method": list("aaabbbccc"), "seed": [0, 1, 2] * 3, "reward": rewards, "status": "ok"})
    volume = volume.assign(gold=2 * volume.reward + volume.seed)
    found = method_less_others(differences(volume, "a", ["reward", "gold"]), "a")
    assert len(found) == 4
    np.testing.assert_allclose(found.holm, holm(found.p.to_numpy()))


def test_the_short_way_draws_as_many_completions_as_warp(p):
    warps = p.warp_iterations * p.warp_runs * p.warp_steps * p.warp_batch
    assert p.few_steps * p.few_batch == warps


def test_beside_the_averaged_proxy_stands_the_first_that_is_averaged(p, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(improvements, "get", lambda train, settings=None, **inputs: (train.__name__, settings, inputs))
    monkeypatch.setattr(improvements.policies, "shared", lambda p, seed: {"seed": seed})
    monkeypatch.setattr(schema.Improvements, "reviews", lambda p: "reviews")
    three, found = members(p, 0), proxies(p, 0, "reward")
    single = f"{p.weak_reviews[-1]} reviews"
    assert found[f"{single}, averaged"][2]["rewards"] == three
    assert found[single] == three[0]
    assert [run[1].lr / p.reward_lr for run in three] == pytest.approx([share for share, _ in MEMBERS])
    assert {run[1].n_train for run in three} == {p.weak_reviews[-1]}


def test_entropies_are_those_of_as_many_completions_of_each_prompt(monkeypatch: pytest.MonkeyPatch):
    texts = pd.DataFrame({"prompt": ["p", "p", "q", "p"], "completion": ["a", "b", "a", "c d e"]})
    monkeypatch.setattr(improvements, "evaluated_texts", lambda run: texts if run == "kept" else None)
    rows = pd.DataFrame({"run": ["kept", "gone", "kept"], "completions": [3, 3, 2], "unigram_entropy": 9.0})
    few = entropy_at_equal_draws(rows, 2).unigram_entropy.tolist()
    assert few == [pytest.approx(unigram_entropy(["a", "b", "a"])), 9.0, 9.0]  # the last one drew no more than two
    assert rows.unigram_entropy.tolist() == [9.0, 9.0, 9.0]
