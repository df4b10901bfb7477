"""Claims about small tables: what is said for each outcome."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from alignkit.report import claims
from alignkit.report.claims import CLAIMS
from alignkit.report.findings import found
from alignkit.report.statements import Tables, Unanswered, difference
from alignkit.report.warp import clear_of_zero


def tables(**known: pd.DataFrame) -> Tables:
    """The tables named t_<name>."""

    def read(name: str) -> pd.DataFrame:
        if f"t_{name}" not in known:
            raise Unanswered(f"no table {name}")
        return known[f"t_{name}"]

    return read


def gains(value: float, low: float, high: float) -> pd.DataFrame:
    row = {"method": "sigmoid", "measure": "reward", "seeds": 5, "difference": value, "low": low, "high": high}
    return pd.DataFrame([row])


@pytest.mark.parametrize(
    ("low", "high", "said", "holds"),
    [(0.5, 1.5, "raises", True), (-1.5, -0.5, "lowers", False), (-0.5, 1.5, "does not measurably change", False)],
)
def test_a_sentence_says_what_its_interval_allows(low: float, high: float, said: str, holds: bool):
    rows = found("2_dpo_losses", tables(t_2_gain=gains((low + high) / 2, low, high)))
    row = rows.set_index("id").loc["dpo_raises_reward"]
    assert row.statement == f"DPO {said} the reward over SFT: {(low + high) / 2:.2f} [{low:.2f}, {high:.2f}]."
    assert (row.holds, row.value, row.seeds) == (holds, (low + high) / 2, 5)


def test_one_seed_allows_no_sentence():
    row = found("2_dpo_losses", tables(t_2_gain=gains(1.0, np.nan, np.nan))).set_index("id").loc["dpo_raises_reward"]
    assert row.statement.startswith("Open: ")
    assert pd.isna(row.holds)
    assert pd.isna(row.value)


@pytest.mark.parametrize("notebook", CLAIMS)
def test_without_tables_every_claim_is_open(notebook: str):
    rows = found(notebook, tables())
    assert len(rows) == len(CLAIMS[notebook])
    assert rows.statement.str.startswith("Open: ").all()


@pytest.mark.parametrize("notebook", CLAIMS)
def test_tables_without_a_column_leave_every_claim_open(notebook: str):
    # As on real reviews, where the grammar's entropy and gold have no columns.
    table = found(notebook, lambda _: pd.DataFrame({"seed": [0, 1]}))
    assert table.value.isna().all()
    assert table.statement.str.startswith("Open: ").all()


def test_a_wanted_lack_of_difference_holds_where_zero_is_inside():
    assert difference(gains(0.1, -1, 1), "It", "it", wanted="0").holds
    assert not difference(gains(2, 1, 3), "It", "it", wanted="0").holds


def shares(own: float, warps: float) -> Callable[[str], pd.DataFrame]:
    rows = [{"family": "REINFORCE, EMA anchor", "KL 0.5": own, "KL 1": own, "KL 2": np.nan}]
    rows += [{"family": f"WARP, T={t}", "KL 0.5": v, "KL 1": v, "KL 2": v} for t, v in ((7, warps), (9, 9.0))]
    named = pd.DataFrame({"method": ["WARP", "WARP", "WARP, other"], "family": [None, "WARP, T=7", "WARP, T=9"]})
    return tables(t_6_efficiency=pd.DataFrame(rows), t_4_warp=named)


@pytest.mark.parametrize(("own", "holds"), [(0.6, True), (0.4, False)])
def test_warp_is_what_the_profiles_own_table_calls_it(own: float, holds: bool):
    assert claims.reinforce_is_level_with_warp(shares(own, 0.58)).holds == holds


@pytest.mark.parametrize(("ranks", "holds"), [([1, 2, 3], True), ([3, 1, 2], False)])
def test_an_order_survives_another_cost_where_the_ranks_do(ranks: list[int], holds: bool):
    table = pd.DataFrame({"rank, cost 2": ranks, "rank, cost 5": [1, 2, 3], "cost 5": [5.0, 4, 3]})
    found = claims.order_in_gold_survives_the_cost_of_a_fault(tables(t_6_fault_costs=table))
    assert found.holds == holds
    assert f"{0 if holds else 3} of 3 methods" in found.statement


def test_the_proxys_part_is_that_of_the_best_policy_used_with_one_draw():
    shares = pd.DataFrame({"family": ["many", "best", "other"], "seeds": 2, "draws": [8, np.nan, np.nan],
                           "KL 1": [0.9, 0.6, 0.5]})  # fmt: skip
    losses = pd.DataFrame({"family": ["best", "best", "other"], "at_kl": 1.0, "part": [0.5, 0.7, 0.1]})
    found = claims.proxy_loses_more_gold_than_optimisation(tables(t_6_efficiency=shares, t_6_losses=losses))
    assert (found.value, found.holds, found.seeds) == (pytest.approx(0.6), True, 2)
    assert "(best)" in found.statement


def test_what_differs_is_named():
    table = pd.DataFrame(
        {"method": ["hinge", "ipo"], "measure": "reward", "difference": [1.0, -1], "holm": [0.01, 0.5]}
    )
    found = claims.losses_do_not_differ(tables(t_2_against_sigmoid=table))
    assert "hinge" in found.statement
    assert "ipo" not in found.statement
    assert not found.holds


def test_findings_about_warp_are_about_the_setting_that_they_name():
    names = ["WARP, T=9, η=0.5", "WARP, T=9, η=1", "WARP, η=0.5", "WARP, η=1"]
    table = pd.DataFrame({"policy": names, "measure": "reward", "difference": [4.0, 8, 3, 6]})
    told = tables(t_4_gain=table.assign(low=table.difference - 1, high=table.difference + 1, seeds=5))
    assert claims.warp_raises_reward(told).value == 3
    assert claims.warp_of_the_task_raises_reward(told).value == 4
    with pytest.raises(Unanswered):
        claims.warp_raises_gold(told)


def test_rows_clear_of_zero_are_named_and_one_seed_answers_nothing():
    table = pd.DataFrame({"label": ["a", "b"], "measure": "gold", "difference": [0.5, -0.5], "holm": [0.01, 0.9]})
    assert clear_of_zero(table) == "a +0.50 in gold (1 of 2 after Holm)"
    assert clear_of_zero(table[1:]) == "no difference is clear of zero (0 of 1 after Holm)"
    assert clear_of_zero(table.assign(holm=np.nan)) == "no interval, so no answer"


def test_methods_are_compared_at_the_middle_kl_that_their_table_has():
    rows = {"family": "DPO, on-policy", "measure": "reward", "at_kl": [0.25, 0.5, 1.0], "difference": [9.0, 1.0, -9.0]}
    table = pd.DataFrame(rows).assign(low=[8.0, 0.5, -10.0], high=[10.0, 1.5, -8.0])
    found = claims.on_policy_gains_more(tables(t_2_beyond=table))
    assert (found.value, found.holds) == (1.0, True)
    assert "at KL 0.5" in found.statement
