"""Preference losses against their formulas and against each other."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignkit.faults import UserFault
from alignkit.losses import LOSSES, needs, preference_loss

SCORE = st.floats(-20, 20)
W = torch.tensor([0.5, -1.0, 3.0], dtype=torch.float64)
L = torch.tensor([-0.5, 2.0, 2.5], dtype=torch.float64)


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@given(SCORE, SCORE, st.floats(0.05, 5), st.floats(0, 0.4))
def test_each_loss_is_its_formula(won: float, lost: float, beta: float, eps: float):
    h = beta * (won - lost)
    log_in, log_out = math.log(sigma(h)) if h > -700 else h, math.log(sigma(-h)) if h < 700 else -h
    formulas = {
        "sigmoid": -log_in,
        "cdpo": -(1 - eps) * log_in - eps * log_out,
        "robust": (-(1 - eps) * log_in + eps * log_out) / (1 - 2 * eps),
        "hinge": max(0.0, 1 - h),
        "ipo": (won - lost - 1 / (2 * beta)) ** 2,
    }
    chosen, rejected = torch.tensor([won], dtype=torch.float64), torch.tensor([lost], dtype=torch.float64)
    for name, value in formulas.items():
        settings = {"label_smoothing": eps} if name in ("cdpo", "robust") else {}
        loss = preference_loss(name, chosen, rejected, beta=beta, **settings)
        assert loss.item() == pytest.approx(value, rel=1e-6, abs=1e-6), name


def test_kto_pair_compares_each_side_with_the_other_sides_batch_mean():
    z_w, z_l = max(0.0, W.mean().item()), max(0.0, L.mean().item())
    assert z_w > 0
    by_hand = [
        (1 - sigma(0.5 * (won - z_l)) + 1 - sigma(0.5 * (z_w - lost))) / 2
        for won, lost in zip(W.tolist(), L.tolist(), strict=True)
    ]
    torch.testing.assert_close(preference_loss("kto_pair", W, L, beta=0.5), torch.tensor(by_hand, dtype=torch.float64))


def test_ktos_batch_means_are_at_least_zero_and_carry_no_gradient():
    negative = -W.abs()
    loss = preference_loss("kto_pair", negative, negative, beta=1.0)
    torch.testing.assert_close(loss, (2 - torch.sigmoid(negative) - torch.sigmoid(-negative)) / 2)
    chosen = W.clone().requires_grad_()
    loss = preference_loss("kto_pair", chosen, L, beta=1.0)
    (gradient,) = torch.autograd.grad(loss[0], chosen)
    assert gradient[0] != 0
    assert gradient[1:].tolist() == [0, 0]


def test_ipo_per_token_divides_each_score_by_its_length():
    tokens = torch.tensor([2, 5, 10]), torch.tensor([4, 4, 1])
    loss = preference_loss("ipo_per_token", W, L, beta=0.2, chosen_tokens=tokens[0], rejected_tokens=tokens[1])
    torch.testing.assert_close(loss, (W / tokens[0] - L / tokens[1] - 2.5) ** 2)


def test_without_smoothing_cdpo_and_robust_are_the_sigmoid_loss():
    plain = preference_loss("sigmoid", W, L, beta=0.3)
    for name in ("cdpo", "robust"):
        torch.testing.assert_close(preference_loss(name, W, L, beta=0.3, label_smoothing=0.0), plain)


@given(st.floats(-3, 3), st.floats(0.05, 0.45))
def test_robust_dpo_is_unbiased_for_the_clean_loss_when_labels_flip(h: float, eps: float):
    chosen, rejected = torch.tensor([h], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    kept = preference_loss("robust", chosen, rejected, beta=1.0, label_smoothing=eps)
    flipped = preference_loss("robust", rejected, chosen, beta=1.0, label_smoothing=eps)
    clean = preference_loss("sigmoid", chosen, rejected, beta=1.0)
    torch.testing.assert_close((1 - eps) * kept + eps * flipped, clean)


@given(st.floats(0.05, 0.45))
def test_cdpo_has_its_minimum_at_the_share_of_right_labels(eps: float):
    h = torch.tensor([math.log((1 - eps) / eps)], dtype=torch.float64, requires_grad=True)
    loss = preference_loss("cdpo", h, torch.zeros(1, dtype=torch.float64), beta=1.0, label_smoothing=eps)
    (gradient,) = torch.autograd.grad(loss.sum(), h)
    assert gradient.item() == pytest.approx(0, abs=1e-12)


@given(SCORE, SCORE, st.floats(0.05, 5))
def test_the_sigmoid_loss_pulls_with_beta_times_sigma_of_minus_h(won: float, lost: float, beta: float):
    chosen = torch.tensor([won], dtype=torch.float64, requires_grad=True)
    rejected = torch.tensor([lost], dtype=torch.float64, requires_grad=True)
    loss = preference_loss("sigmoid", chosen, rejected, beta=beta)
    by_chosen, by_rejected = torch.autograd.grad(loss.sum(), [chosen, rejected])
    weight = beta * torch.sigmoid(beta * (rejected - chosen)).detach()
    torch.testing.assert_close(by_chosen, -weight)
    torch.testing.assert_close(by_rejected, weight)


@pytest.mark.parametrize("name", ["sigmoid", "hinge", "kto_pair", "cdpo", "robust"])
@pytest.mark.parametrize("won", [-300.0, 300.0])
def test_losses_and_gradients_are_finite_in_float32_where_a_sigmoid_is_0(name: str, won: float):
    settings = {"label_smoothing": 0.1} if name in ("cdpo", "robust") else {}
    chosen = torch.tensor([won, 1.0], requires_grad=True)
    loss = preference_loss(name, chosen, torch.zeros(2), beta=1.0, **settings)
    (slope,) = torch.autograd.grad(loss.sum(), chosen)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize(
    ("name", "more"),
    [("sigmoid", ()), ("cdpo", ("label_smoothing",)), ("ipo_per_token", ("chosen_tokens", "rejected_tokens"))],
)
def test_a_loss_says_what_it_needs_beside_the_scores(name: str, more: tuple[str, ...]):
    assert needs(name) == more


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "kto_pair"])
def test_only_differences_of_scores_count(name: str):
    settings = {"label_smoothing": 0.1} if name in ("cdpo", "robust") else {}
    if name == "ipo_per_token":
        settings = {"chosen_tokens": torch.tensor(3.0), "rejected_tokens": torch.tensor(3.0)}
    moved = preference_loss(name, W + 7, L + 7, beta=0.4, **settings)
    torch.testing.assert_close(moved, preference_loss(name, W, L, beta=0.4, **settings))


@pytest.mark.parametrize(
    ("name", "settings", "told"),
    [
        ("dpo", {"beta": 0.1}, "allowed: sigmoid"),
        ("sigmoid", {"beta": 0.0}, "beta: 0.0"),
        ("sigmoid", {"beta": float("nan")}, "beta: nan"),
        ("robust", {"beta": 0.1, "label_smoothing": 0.5}, "label_smoothing: 0.5"),
        ("cdpo", {"beta": 0.1, "label_smoothing": -0.1}, "label_smoothing: -0.1"),
    ],
)
def test_a_wrong_name_or_setting_is_told_in_one_line(name: str, settings: dict, told: str):
    with pytest.raises(UserFault, match=told) as fault:
        preference_loss(name, W, L, **settings)
    assert "\n" not in str(fault.value)


def test_what_an_unknown_loss_needs_is_told_like_the_loss_itself():
    with pytest.raises(UserFault, match=r"^loss: 'dpo'; allowed: sigmoid, ") as fault:
        needs("dpo")
    assert "\n" not in str(fault.value)
