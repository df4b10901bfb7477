"""Every f-divergence against autograd, against the others, and against its closed-form optimum."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_softmax

from alignkit.divergences import FIXED, NAMES, Divergence, divergence
from alignkit.faults import UserFault
from alignkit.finite import minimise_population_loss, population_loss, total_variation

ALPHAS = (0.1, 0.3, 0.5, 0.7, 0.9)
EVERY = [
    *FIXED.values(),
    *(divergence("alpha", alpha) for alpha in (*ALPHAS, 1, 2)),
    *(divergence("chi_alpha", alpha) for alpha in (1.5, 3)),
]
SUPPORTED = [div for div in EVERY if div.supports_dpo]
UNSUPPORTED = [div for div in EVERY if not div.supports_dpo]


def label(div: Divergence) -> str:
    return f"{div.name}{div.powers or ''}"


of_every = pytest.mark.parametrize("div", EVERY, ids=label)
of_supported = pytest.mark.parametrize("div", SUPPORTED, ids=label)
U = torch.tensor([1e-3, 0.02, 0.3, 0.9, 1.1, 2.0, 7.0, 50.0], dtype=torch.float64)


def problem(seed: int, responses: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """A random reference and random rewards."""
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(responses)), rng.normal(size=responses)


# f, f', score, slope


@of_every
def test_f_prime_is_the_derivative_of_f(div: Divergence):
    u = U.clone().requires_grad_()
    (by_autograd,) = torch.autograd.grad(div.f(u).sum(), u)
    torch.testing.assert_close(by_autograd, div.f_prime(U), rtol=1e-9, atol=1e-9)


@of_every
def test_the_score_is_f_prime_in_log_space_and_the_slope_its_derivative(div: Divergence):
    log_u = U.log().requires_grad_()
    score = div.score(log_u)
    torch.testing.assert_close(score, div.f_prime(U), rtol=1e-9, atol=1e-9)
    (by_autograd,) = torch.autograd.grad(score.sum(), log_u)
    torch.testing.assert_close(by_autograd, div.slope(U.log()), rtol=1e-9, atol=1e-9)


@of_every
def test_f_vanishes_at_one_and_is_convex(div: Divergence):
    if div.name == "gan":
        assert div.f(1.0).item() == pytest.approx(-2 * np.log(2))
    elif div.name == "chi_po":
        assert div.f(1.0).item() == 0
    else:
        assert div.f(1.0).item() == pytest.approx(0, abs=1e-12)
    left, right = U[:-1], U[1:]
    assert (div.f((left + right) / 2) <= (div.f(left) + div.f(right)) / 2 + 1e-12).all()


@of_every
def test_the_score_is_finite_and_never_falls_up_to_log_ratios_of_80(div: Divergence):
    log_u = torch.linspace(-80, 80, 4001)
    score = div.score(log_u)
    assert score.dtype == torch.float32
    assert score.isfinite().all()
    assert (score.diff() >= 0).all()


@of_every
def test_the_score_is_clamped_just_where_it_does_not_fit_float32(div: Divergence):
    log_u = torch.linspace(-80, 80, 801)
    exact = div.score(log_u.double())
    clamped = div.clamped(log_u)
    torch.testing.assert_close(div.score(log_u)[~clamped].double(), exact[~clamped], rtol=2e-5, atol=2e-5)
    assert (exact[clamped].abs() > torch.finfo(torch.float32).max / 1e5).all()
    assert (exact[clamped].sign() == div.score(log_u)[clamped].sign()).all()
    assert not div.clamped(log_u.double()).any()


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "js", "jeffrey", "pearson_chi2", "chi_po", "gan"])
def test_ratios_of_80_are_not_clamped_where_f_prime_fits_float32(name: str):
    assert not divergence(name).clamped(torch.tensor([-80.0, 80.0])).any()


def test_where_neyman_is_clamped_it_has_no_gradient_and_says_so():
    log_u = torch.tensor([-80.0, -10.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(divergence("neyman_chi2").score(log_u).sum(), log_u)
    assert divergence("neyman_chi2").clamped(log_u).tolist() == [True, False]
    assert gradient[0] == 0
    assert gradient[1] > 0


@of_every
def test_gradients_are_finite_where_policy_and_reference_agree(div: Divergence):
    log_u = torch.zeros(3, requires_grad=True)
    (gradient,) = torch.autograd.grad(div.score(log_u).sum(), log_u)
    assert gradient.isfinite().all()
    assert div.centred_score(torch.zeros(3)).tolist() == [0, 0, 0]


def test_total_variation_has_a_zero_gradient_but_stays_in_the_graph():
    log_u = torch.tensor([-2.0, 0.5], requires_grad=True)
    (gradient,) = torch.autograd.grad(divergence("total_variation").score(log_u).sum(), log_u)
    assert gradient.tolist() == [0, 0]


@of_every
def test_the_centred_score_is_the_score_less_that_of_equal_shares(div: Divergence):
    v = U.log()
    torch.testing.assert_close(div.centred_score(v), div.score(v) - div.score(0.0), rtol=1e-9, atol=1e-9)


def test_gan_and_jensen_shannon_have_the_same_centred_score_to_the_bit():
    v = torch.linspace(-60, 60, 999)
    assert torch.equal(divergence("gan").centred_score(v), divergence("js").centred_score(v))


# Identities between divergences

LOG_U = st.floats(-30, 30)


@given(LOG_U)
def test_gan_and_jensen_shannon_differ_by_a_constant(v: float):
    assert divergence("js").score(v) - divergence("gan").score(v) == pytest.approx(np.log(2), abs=1e-6)


@given(LOG_U)
def test_hellinger_is_half_of_alpha_one_half(v: float):
    assert 2 * divergence("hellinger").score(v).item() == pytest.approx(
        divergence("alpha", 0.5).score(v).item(), rel=1e-12
    )


@given(LOG_U)
def test_neyman_is_twice_alpha_two(v: float):
    assert divergence("neyman_chi2").score(v).item() == pytest.approx(
        2 * divergence("alpha", 2).score(v).item(), rel=1e-12
    )


@given(LOG_U)
def test_jeffrey_is_the_sum_of_both_kls(v: float):
    both = divergence("reverse_kl").score(v) + divergence("forward_kl").score(v)
    assert divergence("jeffrey").score(v).item() == pytest.approx(both.item(), rel=1e-9, abs=1e-6)


@given(LOG_U)
def test_cnp_is_two_thirds_pearson_and_one_third_neyman(v: float):
    mixed = 2 / 3 * divergence("pearson_chi2").score(v) + 1 / 3 * divergence("neyman_chi2").score(v)
    assert divergence("cnp_chi2").score(v).item() == pytest.approx(mixed.item(), rel=1e-9, abs=1e-6)


@given(LOG_U)
def test_chi_po_is_half_of_pearson_plus_reverse_kl_up_to_a_constant(v: float):
    mixed = divergence("pearson_chi2").score(v) / 2 + divergence("reverse_kl").score(v)
    assert divergence("chi_po").score(v).item() == pytest.approx(mixed.item(), rel=1e-9, abs=1e-6)


@given(st.floats(-5, 5))
def test_alpha_approaches_reverse_kl_at_zero_and_is_forward_kl_at_one(v: float):
    near_zero = divergence("alpha", 1e-7)
    assert near_zero.score(v).item() + 1 == pytest.approx(divergence("reverse_kl").score(v).item(), abs=1e-5)
    assert divergence("alpha", 1).score(v).item() - 1 == pytest.approx(divergence("forward_kl").score(v).item())


def test_the_divergences_say_which_of_them_dpo_can_use():
    assert {div.name for div in UNSUPPORTED} >= {"pearson_chi2", "total_variation", "chi_alpha"}
    for div in EVERY:
        assert (div.f_prime(1e-300).item() < -10) == div.supports_dpo, div.name


# The closed-form optimum


@of_every
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_the_optimal_policy_beats_an_optimiser_and_random_policies(div: Divergence, beta: float):
    ref, reward = problem(3, responses=5)

    def objective(pi: np.ndarray) -> float:
        return float(pi @ reward - beta * ref @ div.f(np.maximum(pi / ref, 1e-12)).numpy())

    pi = div.optimal_policy(ref, reward, beta)
    assert pi.sum() == pytest.approx(1, abs=1e-9)
    assert (pi >= 0).all()
    rng = np.random.default_rng(0)
    for step in (1e-3, 0.1, 1.0):
        for other in rng.dirichlet(np.ones(5), size=50):
            assert objective(pi + step * (other - pi)) <= objective(pi) + 1e-9
    start, options = np.log(ref), {"maxiter": 4000}
    found = minimize(lambda z: -objective(np.exp(log_softmax(z))), start, method="Nelder-Mead", options=options)
    assert objective(pi) >= -found.fun - 1e-6


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(SUPPORTED), st.floats(0.05, 20), st.floats(-5, 5))
def test_the_optimum_sees_no_constant_and_orders_ratios_by_reward(seed, div, beta, shift):
    ref, reward = problem(seed)
    pi = div.optimal_policy(ref, reward, beta)
    np.testing.assert_allclose(div.optimal_policy(ref, reward + shift, beta), pi, atol=1e-7)
    assert (np.diff((pi / ref)[np.argsort(reward)]) >= -1e-9).all()


def test_under_total_variation_mass_leaves_what_is_worse_by_beta():
    # A response that is worse than the best one by more than β (0.5 here) loses its mass to it; others keep theirs.
    ref, reward = np.array([0.2, 0.3, 0.5]), np.array([0.0, 0.7, 1.0])
    found = divergence("total_variation").optimal_policy(ref, reward, 0.5)
    np.testing.assert_allclose(found, [0, 0.3, 0.7], atol=1e-12)


def test_under_reverse_kl_the_optimum_is_the_tilted_reference():
    ref, reward = problem(1)
    tilted = ref * np.exp(reward / 0.5)
    np.testing.assert_allclose(divergence("reverse_kl").optimal_policy(ref, reward, 0.5), tilted / tilted.sum())


def test_equal_rewards_leave_the_reference_and_tensors_stay_tensors():
    ref = torch.full((4,), 0.25, dtype=torch.float64)
    for div in EVERY:
        pi = div.optimal_policy(ref, torch.ones(4), 0.3)
        assert isinstance(pi, torch.Tensor)
        torch.testing.assert_close(pi, ref)


# DPO's promise: minimising the preference loss ends in the closed form


@pytest.mark.slow
@of_supported
@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_minimising_the_loss_ends_in_the_closed_form_on_100_problems(div: Divergence, beta: float):
    for seed in range(100):
        ref, reward = problem(seed)
        pi, _ = minimise_population_loss(div, ref, reward, beta)
        assert total_variation(pi, div.optimal_policy(ref, reward, beta)) <= 1e-3


@of_supported
def test_no_other_policy_has_a_smaller_loss_than_the_closed_form(div: Divergence):
    ref, reward = problem(5)
    best = population_loss(div, np.log(div.optimal_policy(ref, reward, 1.0)), ref, reward, 1.0)
    for other in np.random.default_rng(0).dirichlet(np.ones(8), size=100):
        assert population_loss(div, np.log(other), ref, reward, 1.0) >= best - 1e-12


@pytest.mark.parametrize(
    "div", [divergence("pearson_chi2"), divergence("total_variation"), divergence("chi_alpha", 2)], ids=label
)
def test_where_f_prime_is_bounded_below_the_minimum_is_another(div: Divergence):
    gaps, empty = [], 0
    for seed in range(20):
        ref, reward = problem(seed)
        optimum = div.optimal_policy(ref, reward, 0.1)
        empty += (optimum == 0).any()
        pi, _ = minimise_population_loss(div, ref, reward, 0.1)
        gaps.append(total_variation(pi, optimum))
    # The optimum gives some responses nothing, and no finite log-ratio can say that.
    assert empty == 20
    assert np.median(gaps) > 0.01


def test_pearsons_optimum_is_found_where_every_response_has_mass():
    ref, reward = problem(2)
    div = divergence("pearson_chi2")
    optimum = div.optimal_policy(ref, reward, 5.0)
    assert (optimum > 0).all()
    pi, _ = minimise_population_loss(div, ref, reward, 5.0)
    assert total_variation(pi, optimum) <= 1e-6


# Names and settings


@pytest.mark.parametrize(
    ("name", "alpha", "told"),
    [
        ("kl", None, "allowed: reverse_kl, forward_kl"),
        ("alpha", None, "alpha > 0"),
        ("alpha", -0.5, "alpha > 0"),
        ("alpha", float("nan"), "alpha > 0"),
        ("chi_alpha", 1, "alpha > 1"),
        ("js", 0.5, "takes no alpha"),
    ],
)
def test_a_wrong_name_or_alpha_is_told_in_one_line(name: str, alpha: float | None, told: str):
    with pytest.raises(UserFault, match=told) as fault:
        divergence(name, alpha)
    assert "\n" not in str(fault.value)


def test_every_name_of_the_interface_is_there():
    expected = "reverse_kl forward_kl js pearson_chi2 neyman_chi2 cnp_chi2 hellinger jeffrey gan total_variation"
    assert set(NAMES) >= {*expected.split(), "alpha", "chi_alpha", "chi_po"}
