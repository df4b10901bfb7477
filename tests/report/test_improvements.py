"""What notebook 5 compares is comparable: equal steps, equal slopes, seeds that no choice was made on."""

import numpy as np
import pandas as pd
import pytest
from alignkit.report.improvements_recipe import COMPARED, ideas, unused_seeds
from alignkit.report.improvements_report import fits

from alignkit import paths
from alignkit.divergences import divergence
from alignkit.frontier import curve
from alignkit.report.recipes import NEW_DIVERGENCES, new_divergence_methods, strength_to_beta
from alignkit.workflow import parameters, schema


@pytest.fixture(params=["smoke", "pocket", "imdb_scratch", "imdb"])
def p(request) -> schema.Improvements:
    return parameters.load(paths.PARAMS / request.param / "5_improvements.yaml")


def test_every_idea_has_the_same_number_of_steps_and_about_as_many_completions(p):
    for idea in ideas(p):
        assert idea.changes["steps"] * idea.iterations * idea.runs == p.equal_steps
        k = idea.changes.get("k", p.warp_samples)
        completions = idea.changes.get("batch", p.warp_batch) // k * k
        assert 0.9 * p.warp_batch < completions <= p.warp_batch


def test_what_is_compared_is_trained_for_every_seed_and_differs_in_name(p):
    names = [idea.name for idea in ideas(p)]
    assert len(set(names)) == len(names)
    assert set(COMPARED) <= {idea.name for idea in ideas(p) if idea.main}


def test_the_confirmation_has_every_seed_once_but_the_one_on_which_choices_were_made(p):
    assert sorted(unused_seeds(p)) == sorted({*p.seeds[1:], *p.confirm_seeds})
    assert p.seeds[0] not in unused_seeds(p)


def test_a_new_seed_that_is_also_a_seed_is_one_line(p):
    values = p.model_dump() | {"confirm_seeds": [p.seeds[0]]}
    assert parameters.faults(values, "file") == [
        f"file: confirm_seeds: [{p.seeds[0]}] are among seeds already; allowed: others"
    ]


@pytest.mark.parametrize("name", [n for n in NEW_DIVERGENCES if n not in ("total_variation", "chi_alpha")])
def test_a_beta_gives_the_score_the_slope_of_reverse_kl_at_the_reference(name: str):
    beta = strength_to_beta(name, 0.4)
    step = 1e-5
    rise = divergence(name).score(np.array([-step, step])).diff().item() / (2 * step)
    assert beta * rise == pytest.approx(0.4, rel=1e-4)


def test_every_new_divergence_is_trained(p):
    trained = {method.settings["divergence_name"] for method in new_divergence_methods(p)}
    assert set(NEW_DIVERGENCES) <= trained


def test_a_family_with_too_few_points_has_no_fit_and_others_have():
    kl = np.array([0.5, 1.0, 2.0, 4.0])
    good = pd.DataFrame({"family": "a", "kl": kl, "gold": 1 + curve(kl, 2.0, 0.5)})
    few = pd.DataFrame({"family": "b", "kl": [0.01, 1.0], "gold": [1.0, 2.0]})
    start = pd.DataFrame({"family": ["sft"], "kl": [0.0], "gold": [1.0]})
    found = fits(pd.concat([start, good, few]).assign(seed=0, status="ok")).set_index("family")
    assert (found.alpha["a"], found.beta["a"]) == pytest.approx((2.0, 0.5))
    assert np.isnan(found.alpha["b"])
    assert found.most_kl["a"] == 4.0


def test_more_reviews_for_a_weak_reward_model_than_there_are_is_one_line(p):
    values = p.model_dump() | {"train_reviews": 1000, "weak_reviews": [200, 30_000]}
    assert parameters.faults(values, "file") == ["file: weak_reviews: 30000 is more than train_reviews (1000)"]


def test_more_samples_of_a_prompt_than_completions_a_step_is_one_line():
    p = parameters.load(paths.PARAMS / "pocket" / "6_one_front.yaml")
    values = p.model_dump() | {"warp_batch": 4, "main_samples": 8}
    assert parameters.faults(values, "file") == ["file: main_samples: 8 is more than warp_batch (4)"]
