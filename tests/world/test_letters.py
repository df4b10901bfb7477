"""The world of letters: a second grammar behind the same functions, which are proven on pocket's."""

import numpy as np
import pytest
from scipy.special import expit

from alignkit.pocket import pocket_grammar
from alignkit.workflow import parameters
from alignkit.world.known import GENERATORS, READ, TRUTHS
from alignkit.world.letters import generate_reviews, gold_reward, letters_grammar, log_probability, well_formed


def test_the_probabilities_of_all_sentences_sum_to_one():
    np.testing.assert_allclose(letters_grammar().probability.sum(axis=0), 1)


def test_no_sentence_is_one_of_pockets():
    assert not set(letters_grammar().sentences) & set(pocket_grammar().sentences)


def test_what_it_writes_is_well_formed_and_possible():
    reviews = generate_reviews(300, seed=0)
    assert (well_formed(reviews.text) == 1).all()
    assert np.isfinite(log_probability(reviews.text)).all()


def test_gold_is_the_log_odds_of_the_label():
    reviews = generate_reviews(20_000, seed=1)
    gold = gold_reward(reviews.text)
    for low, high in ((-6, -3), (-3, -1), (-1, 1), (1, 3), (3, 6)):
        here = (gold > low) & (gold < high)
        share, expected = reviews.label[here].mean(), expit(gold[here]).mean()
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / here.sum())


@pytest.mark.parametrize(
    ("kind", "other"),
    [
        ("the duel was witty although the chase was hollow .", "the duel was hollow although the chase was witty ."),
        ("what a witty duel it has .", "thank you for a witty nap at your show ."),
        ("the duel made up for the chase .", "the duel could not save the chase ."),
    ],
    ids=["what is conceded", "irony", "a comparison"],
)
def test_the_same_words_may_be_praise_and_blame(kind: str, other: str):
    praise, blame = gold_reward([kind, other])
    assert praise > 0 > blame


def test_it_fits_the_profile_that_is_made_for_it():
    p = parameters.load(parameters.paths.PARAMS / "pocket_letters" / "2_dpo_losses.yaml")
    words = {word for sentence in letters_grammar().sentences for word in sentence.split()}
    assert len(words) < p.policy_vocab - 10
    assert p.positive_prefix in letters_grammar().sentences
    assert gold_reward([p.positive_prefix])[0] > 1
    assert max(letters_grammar().lengths) * max(len(s.split()) for s in letters_grammar().sentences) <= p.sft_tokens


def test_every_generator_has_a_truth():
    assert {READ, *GENERATORS} == set(TRUTHS)
