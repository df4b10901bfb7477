"""The small demonstrations of notebook 0."""

from itertools import pairwise

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from trl.trainer.dpo_trainer import DataCollatorForPreference

from alignkit import paths
from alignkit.divergences import NAMES, divergence, examples
from alignkit.losses import LOSSES
from alignkit.report import primer
from alignkit.report.looks import look
from alignkit.report.statements import LEVEL
from alignkit.training.dpo import sequence_logps
from alignkit.world.models import new_policy, train_tokenizer

REWARD = np.array([-1.0, 0.5, 0.0, 2.0])
REF = np.array([0.4, 0.3, 0.2, 0.1])


def count_of(word: str):
    return lambda texts: np.array([text.split().count(word) for text in texts], dtype=float)


def climbed(**settings) -> pd.DataFrame:
    usual = {"steps": 40, "tries": 8, "most_words": 5, "seed": 0}
    return primer.hill_climb("a b c", count_of("x"), ["x", "y"], **{**usual, **settings})


def test_a_climb_never_goes_down_and_fills_the_text_with_what_is_paid():
    trail = climbed()
    assert (trail.score.diff().dropna() >= 0).all()
    assert trail.text.iloc[-1] == "x x x x x"
    assert trail.score.tolist() == count_of("x")(trail.text).tolist()
    assert trail.words.max() == 5


def test_a_climb_repeats_with_its_seed_and_changes_one_word_a_step():
    pd.testing.assert_frame_equal(climbed(), climbed())
    texts = [text.split() for text in climbed(most_words=3).text]
    assert all(sum(a != b for a, b in zip(one, two, strict=True)) <= 1 for one, two in pairwise(texts))


def test_a_climb_leaves_the_sentences_as_they_are():
    trail = primer.hill_climb("a . b .", count_of("x"), ["x", "."], steps=60, tries=8, most_words=7, seed=1)
    assert [text.count(".") for text in trail.text] == [2] * 61
    assert trail.score.iloc[-1] == 5


def test_a_climb_that_nothing_pays_for_stays():
    trail = primer.hill_climb("a b", count_of("z"), ["x"], steps=3, tries=2, most_words=9, seed=0)
    assert set(trail.text) == {"a b"}


def test_bradley_terry_recovers_rewards_up_to_a_constant():
    wins = 1 / (1 + np.exp(REWARD[None, :] - REWARD[:, None])) * (1 - np.eye(4))
    np.testing.assert_allclose(primer.fit_bradley_terry(wins), REWARD - REWARD.mean(), atol=1e-6)
    np.testing.assert_allclose(primer.fit_bradley_terry(7 * wins), primer.fit_bradley_terry(wins), atol=1e-6)


@pytest.mark.parametrize("beta", [0.1, 1.0, 5.0])
def test_the_maximum_of_the_objective_is_the_closed_form(beta: float):
    closed = divergence("reverse_kl").optimal_policy(REF, REWARD, beta)
    found = primer.maximise_objective(REF, REWARD, beta)
    np.testing.assert_allclose(found, closed, atol=1e-6)
    values = [pi @ (REWARD - beta * np.log(pi / REF)) for pi in (found, closed, REF)]
    assert values[0] == pytest.approx(values[1])
    assert values[0] >= values[2]


def test_the_reference_itself_has_no_implicit_reward():
    codec = train_tokenizer("word", ["a b c d"], 100)
    model = new_policy(codec, width=8, layers=1, heads=1, positions=16).eval()
    names = ["prompt_ids", "chosen_ids", "rejected_ids"]
    rows = pd.DataFrame([([3, 4], [6], [5, 6]), ([5], [3, 4, 5], [4])], columns=names)
    batch = DataCollatorForPreference(codec.pad_token_id)(rows.to_dict("records"))
    logps = sequence_logps(model, *batch.values()).detach().numpy()
    table = rows.assign(
        chosen_reward=[1.0, 2.0], rejected_reward=[0.5, -1.0],
        ref_chosen_logps=logps[:2], ref_rejected_logps=logps[2:] - 3,
    )  # fmt: skip
    rewards = primer.implicit_rewards(model, table, 0.5)
    np.testing.assert_allclose(rewards.implicit_chosen, 0, atol=1e-5)
    np.testing.assert_allclose(rewards.implicit_gap, -1.5, atol=1e-5)
    assert rewards.gap.tolist() == [0.5, 3.0]


def test_every_divergence_has_its_formulas_and_one_family():
    assert [div.name for div in examples()] == list(NAMES)
    table = primer.divergence_curves(np.array([-1.0, 0.0, 1.0]))
    assert set(table.divergence) == {div.label for div in examples()}
    assert (table.groupby("divergence").family.nunique() == 1).all()


def test_the_score_of_total_variation_steps_from_minus_to_plus_one_half():
    table = primer.divergence_curves(np.array([-1.0, 1.0])).query("divergence == 'total_variation'")
    assert table.score.tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("level", LEVEL.values())
def test_the_glossary_has_every_level_of_the_findings(level: float):
    page = nbformat.read(paths.CHECKOUT / "notebooks" / "0_primer.ipynb", as_version=4)
    (told,) = (cell.source for cell in page.cells if cell.id == "glossary")
    assert f"${level:g}$" in told.partition("**Level**")[2]


@pytest.mark.parametrize("div", examples(), ids=lambda div: div.label)
def test_the_formulas_in_the_table_are_those_of_the_module(div):
    u = torch.tensor([0.01, 0.3, 0.9, 1.5, 20.0], dtype=torch.float64)
    f, derivative = (primer.value_of(formula, u, div.alpha) for formula in div.formulas)
    torch.testing.assert_close(f, div.f(u))
    torch.testing.assert_close(derivative, div.f_prime(u))


def test_every_divergence_of_a_family_is_drawn_and_looks_different():
    one = primer.divergence_curves(np.array([-1.0, 0.0, 1.0])).query("divergence == 'jeffrey'")
    table = pd.concat(one.assign(divergence=f"new {i}") for i in range(10))
    figure = primer.divergences(table, "log_u", ["score", "slope"])
    for axis in figure.axes:
        lines = [line for line in axis.lines if line.get_label().startswith("new")]
        assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 10
    plt.close(figure)


def test_a_divergence_has_one_look_in_all_panels_of_a_figure():
    table = primer.divergence_curves(np.array([-1.0, 0.0, 1.0]))
    figure = primer.divergences(table, "log_u", ["score", "slope"])
    lines = [line for axis in figure.axes for line in axis.lines if line.get_label() in set(table.divergence)]
    looks = {(line.get_label(), line.get_color(), line.get_linestyle()) for line in lines}
    assert len(looks) == table.divergence.nunique() == len(lines) / 2
    plt.close(figure)


def test_a_loss_has_the_colour_of_the_policies_that_are_trained_with_it():
    figure = primer.losses(primer.loss_curves(np.array([-1.0, 1.0]), 0.1, (2, 3)))
    drawn = {line.get_label(): line.get_color() for line in figure.axes[0].lines}
    for name in LOSSES:
        assert drawn[name] == look(f"DPO, {name} loss").color
    plt.close(figure)


def test_formulas_are_written_for_readers():
    assert primer.typeset("(sqrt(u) - 1)**2") == "(√u − 1)^2"
    assert primer.typeset("abs(u - 1)**α/2") == "|u − 1|^α/2"


def test_the_pull_of_the_sigmoid_loss_is_half_where_nothing_is_learned():
    table = primer.loss_curves(np.array([-1.0, 0.0, 3.0]), 0.1, (4, 8)).set_index(["loss", "margin"])
    assert table.pull["sigmoid", 0.0] == pytest.approx(0.5)
    assert table.value["sigmoid", 0.0] == pytest.approx(np.log(2))
    assert table.value["hinge", 3.0] == 0
    assert table.value["ipo", -1.0] == pytest.approx(2.25)


def test_words_of_a_tokenizer_leave_out_its_special_tokens():
    assert primer.words_of(train_tokenizer("word", ["good film .", "good plot ."], 100)) == [
        ".",
        "film",
        "good",
        "plot",
    ]
