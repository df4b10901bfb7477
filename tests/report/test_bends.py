"""Gao et al.'s two curves, fitted to points that lie on them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignkit.frontier import LEAST_KL
from alignkit.report.tables import curve, fit

KL = np.array([0.1, 0.5, 1.0, 3.0, 8.0, 20.0])


@given(st.sampled_from(["rl", "bon"]), st.floats(-3, 5), st.floats(0.05, 2))
def test_a_fit_finds_the_curve_that_its_points_lie_on(form: str, alpha: float, beta: float):
    found = fit(KL, curve(KL, alpha, beta, form), form)
    assert (found.alpha, found.beta) == pytest.approx((alpha, beta), abs=1e-6)


@pytest.mark.parametrize("form", ["rl", "bon"])
def test_no_point_of_a_fitted_curve_lies_above_its_peak(form: str):
    found = fit(KL, curve(KL, 2.0, 0.6, form), form)
    peak = curve(np.array([found.peak_kl]), found.alpha, found.beta, form)
    around = curve(found.peak_kl * np.linspace(0.2, 3, 200), found.alpha, found.beta, form)
    assert around.max() <= peak[0] + 1e-9
    assert found.r2 == pytest.approx(1)


def test_gold_that_rises_without_a_bend_has_no_peak():
    assert np.isnan(fit(KL, 2 * np.sqrt(KL) * (1 + 0.1 * np.sqrt(KL)), "bon").peak_kl)


def test_points_at_the_start_do_not_count():
    noisy = np.append(curve(KL, 2.0, 0.5), 99.0)
    assert fit(np.append(KL, LEAST_KL / 2), noisy).alpha == pytest.approx(2)


@pytest.mark.parametrize("kl", [KL[:2], np.append(KL[:2], LEAST_KL / 2)])
def test_fewer_than_three_points_are_not_fitted(kl: np.ndarray):
    assert np.isnan(fit(kl, kl)).all()


def test_another_form_than_the_two_is_refused():
    with pytest.raises(KeyError, match="cubic"):
        fit(KL, KL, "cubic")


def test_a_curve_that_falls_from_the_start_has_its_peak_there():
    kl = np.array([0.2, 0.5, 1.0, 2.0])
    assert fit(kl, curve(kl, -2.0, 0.5, "bon"), "bon").peak_kl == 0
