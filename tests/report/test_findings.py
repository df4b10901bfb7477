"""Claims about small tables: what is said for each outcome."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alignkit import paths
from alignkit.metrics import holm, seed_interval
from alignkit.report import claims, claims_of_front, findings
from alignkit.report.claims import CLAIMS
from alignkit.report.figures import save_table
from alignkit.report.findings import about_models, answers, tell
from alignkit.report.statements import (
    CHANGES,
    Finding,
    Tables,
    Unanswered,
    all_level,
    compared_at,
    difference,
    lies_between,
    of_one_number,
    outcome,
    over_seeds,
)
from alignkit.report.warp import clear_of_zero


def tables(**known: pd.DataFrame) -> Tables:
    """The tables named t_<name>."""

    def read(name: str) -> pd.DataFrame:
        if f"t_{name}" not in known:
            raise Unanswered(f"no table {name}")
        return known[f"t_{name}"]

    return read


def gains(value: float, low: float, high: float) -> dict[str, pd.DataFrame]:
    """What DPO gains in reward, at a mean KL of 0.5."""
    row = {"method": "sigmoid", "measure": "reward", "seeds": 5, "difference": value, "low": low, "high": high}
    policies = {"method": "sigmoid", "row": ["main", "main", "side"], "status": "ok", "kl": [0.4, 0.6, 9.0]}
    return {"t_2_gain": pd.DataFrame([row]), "t_2_dpo_losses": pd.DataFrame(policies)}


@pytest.mark.parametrize(
    ("low", "high", "said", "holds"),
    [(0.5, 1.5, "raises", True), (-1.5, -0.5, "lowers", False), (-0.5, 1.5, "does not measurably change", None)],
)
def test_a_sentence_says_what_its_interval_allows(low: float, high: float, said: str, holds: bool):
    rows = answers("2_dpo_losses", tables(**gains((low + high) / 2, low, high)))
    row = rows.set_index("id").loc["dpo_raises_reward"]
    where, size = "at a mean KL of 0.50 nats", f"{(low + high) / 2:.2f} [{low:.2f}, {high:.2f}]"
    assert row.statement == f"DPO {said} the reward over SFT, {where}: {size}."
    assert (row.holds if pd.notna(row.holds) else None) is holds
    assert (row.value, row.seeds) == ((low + high) / 2, 5)


def test_one_seed_allows_no_sentence():
    row = answers("2_dpo_losses", tables(**gains(1.0, np.nan, np.nan))).set_index("id").loc["dpo_raises_reward"]
    assert row.statement.startswith("Not asked here: ")
    assert pd.isna(row.holds)
    assert pd.isna(row.value)


@pytest.mark.parametrize("notebook", CLAIMS)
def test_without_tables_every_claim_is_open(notebook: str):
    rows = answers(notebook, tables())
    assert len(rows) == len(CLAIMS[notebook])
    assert rows.statement.str.startswith("Not asked here: ").all()


@pytest.mark.parametrize("notebook", CLAIMS)
def test_tables_without_a_column_leave_every_claim_open(notebook: str):
    # As on real reviews, where the grammar's entropy and gold have no columns.
    table = answers(notebook, lambda _: pd.DataFrame({"seed": [0, 1]}))
    assert table.value.isna().all()
    assert table.statement.str.startswith("Not asked here: ").all()


@pytest.mark.parametrize(
    ("low", "high", "holds"),
    [(0.2, 0.4, True), (0.2, 0.6, None), (0.1, 0.2, None), (0.6, 0.9, False), (-0.3, -0.1, False), (-9, 9, None)],
)
def test_a_claim_holds_where_its_whole_interval_lies_within_its_bounds(low: float, high: float, holds: bool | None):
    assert lies_between(low, high, 0.15, 0.5) is holds
    assert lies_between(np.nan, np.nan, 0.15, 0.5) is None


@given(st.floats(-3, 3), st.floats(0, 3), st.floats(-3, 3), st.floats(0, 3))
def test_a_narrower_interval_never_takes_an_answer_back(middle: float, half: float, least: float, width: float):
    wide = lies_between(middle - half, middle + half, least, least + width)
    narrow = lies_between(middle - half / 2, middle + half / 2, least, least + width)
    assert wide is None or narrow is wide


def test_a_firm_claim_is_clear_of_its_bounds_by_2_4_half_widths():
    assert outcome(1.0, 2.0, least=0.2) == (True, True)  # 1.5 - (1 + √2) 0.5 is above 0.29
    assert outcome(1.0, 2.0, least=0.3) == (True, False)
    assert outcome(1.0, 2.0, least=1.1) == (None, False)
    assert outcome(pd.Series([-1.0, -0.1]), pd.Series([-0.5, 0.1]), -2, 2) == (True, True)
    assert outcome(pd.Series([-1.0, -0.1]), pd.Series([-0.5, 0.1]), -1.3, 2) == (True, False)


@pytest.mark.parametrize(("seeds", "of_firm", "of_narrow"), [(5, 0.98, 0.82), (3, 0.81, 0.72)])
def test_so_many_firm_findings_hold_again_and_narrow_ones(seeds: int, of_firm: float, of_narrow: float):
    """As many fresh seeds; true effects lie anywhere from none to five standard deviations of a seed."""
    effects = np.linspace(0, 5, 3001)
    first, again = np.random.default_rng(0).normal(effects, size=(2, seeds, len(effects)))
    told = [outcome(*seed_interval(x)[1:], least=0) for x in first.T]
    repeated = np.array([outcome(*seed_interval(x)[1:], least=0)[0] is True for x in again.T])
    holds, firm = (np.array([one is True for one in column]) for column in zip(*told, strict=True))
    assert (firm <= holds).all()
    assert repeated[firm].mean() == pytest.approx(of_firm, abs=0.01)
    assert repeated[holds & ~firm].mean() == pytest.approx(of_narrow, abs=0.03)


@pytest.mark.parametrize(("seeds", "of_firm"), [(5, 0.85), (3, 0.25)])
def test_so_many_firm_differences_hold_again_beside_seven_without_effect(seeds: int, of_firm: float):
    effects = np.zeros((8, 3001))
    effects[0] = np.linspace(0, 5, 3001)
    found = []
    for draws in np.random.default_rng(0).normal(effects, size=(2, seeds, *effects.shape)):
        holms = [holm(p)[0] for p in stats.ttest_1samp(draws, 0).pvalue.T]
        rows = zip(draws[:, 0].T, holms, strict=True)
        tables_of = (over_seeds(pd.Series(values)).assign(holm=adjusted) for values, adjusted in rows)
        told = [difference(table, "It", "that") for table in tables_of]
        found.append([(one.holds is True, one.firm) for one in told])
    (_, firm), (again, _) = (np.array(one).T for one in found)
    assert again[firm].mean() == pytest.approx(of_firm, abs=0.02)


def test_a_number_without_seeds_is_firm_where_it_holds():
    assert of_one_number(1.0, True, ("yes", "no"), "so").firm
    assert not of_one_number(1.0, False, ("yes", "no"), "so").firm


@pytest.mark.parametrize(
    ("low", "high", "above", "firm"),
    [(-0.1, 0.1, False, True), (-0.2, 0.1, False, False), (-9, -8.9, False, False), (-9, -8.9, True, True)],
)
def test_of_none_above_only_the_upper_ends_count(low: float, high: float, above: bool, firm: bool):
    table = pd.DataFrame({"label": ["a"], "difference": [(low + high) / 2], "low": low, "high": high, "holm": 1.0})
    assert all_level(table, "none", "some", "reward", above).firm is firm


@pytest.mark.parametrize(("low", "marked"), [(1.5, False), (0.5, True), (-1.0, False)])
def test_a_page_marks_what_holds_narrowly(low: float, marked: bool, build: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[str] = []
    place = SimpleNamespace(update=lambda text: shown.append(text.data))
    for name, table in gains((low + 3) / 2, low, 3.0).items():
        save_table(table, name.removeprefix("t_"), profile="smoke")
    monkeypatch.setattr("alignkit.report.findings.about_gold", lambda _: "")
    tell(place, SimpleNamespace(notebook="2_dpo_losses", profile="smoke", base_seed=None))
    line = next(line for line in shown[0].splitlines() if "over SFT" in line)
    assert (" *(narrow: fresh seeds may leave it open)*" in line) == marked


def test_a_page_does_not_speak_of_tables_that_its_own_run_did_not_write(tmp_path: Path):
    here, published = tmp_path / "here", tmp_path / "published"
    for folder, names in ((here, ["6_rows"]), (published, ["6_rows", "6_losses", "4_warp"])):
        folder.mkdir()
        for name in names:
            pd.DataFrame({"of": [folder.name]}).to_csv(folder / f"{name}.csv", index=False)
    read = findings.of_folders(here, published, own="6_")
    assert [read(name).of.item() for name in ("6_rows", "4_warp")] == ["here", "published"]
    with pytest.raises(Unanswered, match="no table 6_losses"):
        read("6_losses")


def test_what_others_published_is_no_finding_of_this_run(build: Path, monkeypatch: pytest.MonkeyPatch):
    shown: list[str] = []
    place = SimpleNamespace(update=lambda text: shown.append(text.data))
    save_table(gains(1.0, 0.5, 1.5)["t_2_gain"], "2_gain", profile="imdb_scratch")
    monkeypatch.setattr("alignkit.report.findings.about_gold", lambda _: "")
    tell(place, SimpleNamespace(notebook="2_dpo_losses", profile="imdb_scratch", base_seed=None))
    assert (paths.published("imdb_scratch") / "2_matched.csv").is_file()
    assert "Not asked here: Which loss differs in reward from the sigmoid loss, at the same KL?" in shown[0]


def reaching(*kls: float) -> pd.DataFrame:
    """Shares of one family at these KLs, and at 4 of one that lacks a seed."""
    known = {f"KL {kl:g}": [0.9, 0.5] for kl in kls}
    return pd.DataFrame({"family": ["one", "other"], "seeds": [2, 1], "draws": np.nan, "KL 4": [np.nan, 0.5], **known})


@pytest.mark.parametrize(("kls", "at"), [((0.5, 1, 2), 1), ((0.25, 0.5), 0.5), ((2,), 1)])
def test_a_report_is_compared_at_one_nat_or_as_near_as_it_reaches(kls: tuple[float, ...], at: float):
    assert compared_at(tables(t_6_efficiency=reaching(*kls))) == at


def matched(*rows: tuple[float, float, float]) -> Tables:
    """Rewards of losses at one KL less the sigmoid loss's: (low, high, Holm's p) of each."""
    table = pd.DataFrame(rows, columns=["low", "high", "holm"])
    named = table.assign(difference=(table.low + table.high) / 2, measure="reward", label=[*"abc"[: len(rows)]])
    return tables(t_2_matched=named.assign(family=named.label, at_kl=1.0), t_2_dpo_losses=gaining("DPO, sigmoid loss"))


def gaining(family: str, reward: float = 4.0) -> pd.DataFrame:
    """Policies of a family that gain as much at every KL from 0.25 to 1."""
    rows = pd.DataFrame({"method": ["sft", "own", "own"], "family": ["sft", family, family], "seed": 0, "row": "main"})
    return rows.assign(status="ok", kl=[0.0, 0.25, 1.0], reward=[1.0, 1 + reward, 1 + reward])


@pytest.mark.parametrize(
    ("rows", "holds", "said"),
    [
        ([(-0.1, 0.2, 1), (0.0, 0.1, 0.2)], True, "(0 of 2 after Holm), and none by more than 0.25 nats."),
        ([(-0.1, 0.2, 1), (0.01, 0.1, 0.02)], True, ", none by more than 0.25 nats: b (+0.06) (1 of 2 after Holm)."),
        ([(-0.1, 0.2, 1), (0.3, 0.5, 0.02)], False, "b (+0.40) (1 of 2 after Holm)."),
        (
            [(-0.1, 0.2, 1), (0.2, 0.5, 0.02)],
            None,
            "b (+0.35) (1 of 2 after Holm); but up to 0.50 nats is not excluded (below 0.25 is level).",
        ),
        (
            [(-0.1, 0.3, 1), (0.1, 0.2, 0.02)],
            None,
            "b (+0.15) (1 of 2 after Holm); but up to 0.30 nats is not excluded (below 0.25 is level).",
        ),
        (
            [(-0.1, 0.2, 1), (-0.1, 0.5, 0.2)],
            None,
            "(0 of 2 after Holm); but up to 0.50 nats is not excluded (below 0.25 is level).",
        ),
    ],
)
def test_no_difference_is_claimed_where_a_large_one_is_excluded(rows: list, holds: bool | None, said: str):
    found = claims.losses_do_not_differ_at_equal_kl(matched(*rows))
    assert found.holds is holds
    assert found.statement.endswith(said)


def test_level_is_within_a_quarter_of_what_the_other_gains():
    rows = pd.DataFrame({"label": ["a", "b"], "difference": 0.0, "low": [-0.1, -0.2], "high": [0.1, 0.2], "holm": 1.0})
    for gained, holds in ((4.0, True), (0.79, None), (np.array([0.41, 0.81]), True), (np.array([0.39, 0.81]), None)):
        assert all_level(rows, "none", "some", "reward", gain=gained).holds is holds
    told = all_level(rows, "none", "some", "reward", gain=np.array([0.44, 0.9])).statement
    assert (
        told == "none (0 of 2 after Holm), and none by more than 0.23 nats (0.11 where a quarter of the gain is less)."
    )
    told = all_level(rows, "none", "some", "reward", gain=np.array([0.2, 9.0])).statement
    assert told == "none (0 of 2 after Holm); but up to 0.10 nats is not excluded (below 0.05 is level)."
    assert all_level(rows, "none", "some", "reward", above=True, gain=np.array([0.41, 0.81])).holds
    assert all_level(rows, "none", "some", "reward", gain=-9.0).holds is None  # nothing is gained, so nothing is level


def test_what_is_gained_at_a_kl_is_read_from_the_policies():
    rows = pd.DataFrame({"label": ["a"], "family": "a", "at_kl": 0.5, "measure": "reward", "difference": 0.0})
    rows = rows.assign(low=-0.2, high=0.2, holm=1.0)
    for gain, holds in ((0.9, True), (0.7, None)):
        placed = gaining("DPO, sigmoid loss", gain)
        asked = tables(t_2_matched=rows, t_2_dpo_losses=placed)
        assert claims.losses_do_not_differ_at_equal_kl(asked).holds is holds
        # The gain of a loss under the divergence that its rows are compared with.
        losses = rows.assign(family="DPO, ipo, js")
        placed = gaining("DPO, ipo, reverse_kl", gain)
        asked = tables(t_5_losses_against=losses, t_5_improvements=placed)
        assert claims.ipo_and_kto_gain_no_more(asked).holds is holds


def test_a_bound_on_a_number_asks_for_its_whole_interval():
    def asked(*errors: float) -> Finding:
        rows = pd.DataFrame({"method": "reward", "ece": errors})
        return claims.reward_model_is_calibrated(tables(t_1_reward_model=rows))

    assert asked(0.02, 0.03, 0.02).holds is True
    assert asked(0.04, 0.06, 0.02).holds is None
    assert "right to within 0.05 in the mean: calibration error 0.040" in asked(0.04, 0.06, 0.02).statement
    assert asked(0.04, 0.06, 0.02).statement.endswith(", not clear of 0.05.")
    assert asked(0.2, 0.21, 0.22).holds is False
    assert asked(0.02).holds is None


@pytest.mark.parametrize(
    ("low", "high", "holds", "said"),
    [
        (-0.02, 0.06, True, "is level with"),
        (-0.3, 0.06, None, "is not shown to be level with"),
        (-0.3, -0.06, None, "differs from"),
        (0.2, 0.3, False, "differs from"),
    ],
)
def test_warp_is_what_the_profiles_own_table_calls_it(low: float, high: float, holds: bool | None, said: str):
    named = pd.DataFrame({"method": ["WARP", "WARP", "WARP, other"], "family": [None, "WARP, T=7", "WARP, T=9"]})
    rows = [{"against": f"WARP, T={t}", "low": a, "high": b} for t, a, b in ((7, low, high), (9, 8.0, 9.0))]
    order = pd.DataFrame(rows).assign(family="REINFORCE, EMA anchor", at_kl=1, difference=0.1, seeds=5)
    tokens = pd.DataFrame({"method": ["REINFORCE, EMA anchor", "WARP, T=7", "WARP, T=9"], "tokens": [5.0, 20.0, 1.0]})
    known = {"t_6_order": order, "t_6_hypervolume": tokens, "t_4_warp": named}
    found = claims_of_front.reinforce_is_level_with_warp(tables(**known))
    assert (found.holds, said in found.statement) == (holds, True)
    assert "interpolated back, with 0.25 times WARP's training tokens, " in found.statement


def test_where_warp_is_the_best_with_one_draw_nothing_beats_it():
    named = pd.DataFrame({"method": ["WARP"], "family": ["one"]})
    found = claims_of_front.best_with_one_draw_beats_warp(tables(t_4_warp=named, t_6_efficiency=reaching(0.5)))
    assert (found.holds, found.value) == (False, 0)


def test_the_same_policy_is_followed_to_a_kl_of_two():
    shares = {"family": ["near", "far"], "seeds": 2, "draws": np.nan, "KL 1": [0.95, 0.5], "KL 2": [np.nan, 0.6]}
    ends = {f"KL {kl}_{end}": [0.94, 0.5] for kl in (1, 2) for end in ("low", "high")}
    with pytest.raises(Unanswered, match="near does not reach it"):
        claims_of_front.one_draw_far_from_sft(tables(t_6_efficiency=pd.DataFrame(shares | ends)))
    shares["KL 2"] = [0.96, 0.6]
    assert claims_of_front.one_draw_far_from_sft(tables(t_6_efficiency=pd.DataFrame(shares | ends))).value == 0.96


def test_gold_for_one_of_reward_is_compared_within_each_seed():
    start = pd.DataFrame({"family": "sft", "seed": [0, 1], "kl": 0.0, "reward": 1.0, "gold": 0.0})
    # Gold for one of reward: at KL 1 0.9 and 0.8, farther away less.
    swept = pd.DataFrame({"family": "anchored RLOO, over β", "seed": [0, 0, 1, 1], "kl": [4.0, 1.0, 1.0, 4.0]})
    swept = swept.assign(reward=[5.0, 3.0, 2.0, 3.0], gold=[0.4, 1.8, 0.8, 0.9])
    frontier = pd.DataFrame({"optimal_for": "reward", "kl": [0.0, 0.25, 4.0] * 2, "seed": [0, 0, 0, 1, 1, 1]})
    frontier = frontier.assign(reward=[1.0, 2.0, 5.0] * 2, gold=[0.0, 0.5, 2.0] * 2)  # 0.5 along the whole of it
    given = {"t_6_efficiency": reaching(1), "t_6_frontier": frontier}
    found = claims_of_front.anchored_keeps_more_gold(tables(**given, t_6_rows=pd.concat([start, swept])))
    assert found.value == pytest.approx(np.mean([0.4, 0.3]))
    assert found.seeds == 2
    assert "at a KL of 1, where its gold is 0.30 nats higher in all (difference)" in found.statement
    for gone in (swept[swept.kl > 1], swept[swept.seed == 0]):  # no line is drawn from SFT to the first policy
        with pytest.raises(Unanswered, match="no such policy on both sides of a KL of 1"):
            claims_of_front.anchored_keeps_more_gold(tables(**given, t_6_rows=pd.concat([start, gone])))


@pytest.mark.parametrize(
    ("after", "p", "holds", "said"),
    [(0.04, 0.01, True, "temperature brings"), (0.09, 0.01, False, "does not bring"), (0.04, 0.4, None, "measurably")],
)
def test_a_spread_narrows_where_a_test_says_so(after: float, p: float, holds: bool | None, said: str):
    row = {"quantity": "optimal gain at KL 0.5", "spread / mean": 0.07, "spread / mean, divided": after, "p": p}
    calibration = pd.DataFrame([{"quantity": "temperature"}, row])
    five, four = (pd.DataFrame({"seed": range(n)}) for n in (5, 4))
    known = tables(t_6_calibration=calibration, t_6_frontier=five)
    found = claims_of_front.a_temperature_narrows_the_spread(known)
    assert (found.holds, found.kl) == (holds, 0.5)
    assert said in found.statement
    with pytest.raises(Unanswered, match="fewer than five seeds"):
        claims_of_front.a_temperature_narrows_the_spread(tables(t_6_calibration=calibration, t_6_frontier=four))


@pytest.mark.parametrize(("ranks", "holds"), [([1, 2, 3], True), ([3, 1, 2], False)])
def test_an_order_survives_another_cost_where_the_ranks_do(ranks: list[int], holds: bool):
    table = pd.DataFrame({"rank, cost 2": ranks, "rank, cost 5": [1, 2, 3], "cost 5": [5.0, 4, 3]})
    found = claims_of_front.order_in_gold_survives_the_cost_of_a_fault(tables(t_6_fault_costs=table))
    assert found.holds == holds
    assert f"{0 if holds else 3} of 3 methods" in found.statement


def test_the_proxys_part_is_that_of_the_best_policy_used_with_one_draw():
    shares = pd.DataFrame({"family": ["many", "best", "other"], "seeds": 2, "draws": [8, np.nan, np.nan],
                           "KL 1": [0.9, 0.6, 0.5]})  # fmt: skip
    losses = pd.DataFrame({"family": ["best", "best", "other"], "at_kl": 1.0, "part": [0.598, 0.602, 0.1],
                           "proxy error": [0.6, 0.6, 0.1], "optimisation error": [0.4, 0.4, 0.9]})  # fmt: skip
    found = claims_of_front.proxy_loses_more_gold_than_optimisation(tables(t_6_efficiency=shares, t_6_losses=losses))
    assert (found.value, found.holds, found.seeds) == (pytest.approx(0.6), True, 2)
    told = "one draw (best) misses 1.00 nats, the reward model's own optimum 0.60, 0.60 ["
    assert told in found.statement
    assert found.statement.endswith("] times as much: the reward model's errors are more than half of what it misses.")


def test_gold_of_the_best_with_one_draw_is_compared_at_one_kl():
    shares = pd.DataFrame({"family": ["many", "best"], "seeds": 2, "draws": [8, np.nan], "KL 1": [0.9, 0.6]})
    losses = pd.DataFrame({"family": ["best"] * 4 + ["many"] * 2, "seed": [0, 1] * 3, "at_kl": [1.0, 1, 2, 2, 1, 1]})
    losses = losses.assign(gold=[1.5, 1.7, 9, 9, 1.0, 1.3], **{"optimisation error": [-0.3, -0.31, 9, 9, 0.1, 0.1]})
    asked = tables(t_6_efficiency=shares, t_6_losses=losses)
    found = claims_of_front.one_draw_has_more_gold(asked)
    assert (found.value, found.holds, found.kl) == (pytest.approx(0.45), None, 1)
    assert "(best) does not measurably differ in gold from the best way of keeping one of several draws (many)" in (
        found.statement
    )
    found = claims_of_front.one_draw_has_more_gold_than_the_proxys_optimum(asked)
    assert (found.value, found.holds, found.kl) == (pytest.approx(0.305), True, 1)
    assert "(best) has more gold than the reward model's own optimum at a KL of 1" in found.statement


def test_gold_that_the_optimum_of_a_seed_lacks_is_open():
    shares = pd.DataFrame({"family": ["best"], "seeds": 2, "draws": np.nan, "KL 1": [0.6]})
    losses = pd.DataFrame({"family": "best", "at_kl": 1.0, "part": [0.6, np.nan]})
    with pytest.raises(Unanswered, match="not known for every seed"):
        claims_of_front.proxy_loses_more_gold_than_optimisation(tables(t_6_efficiency=shares, t_6_losses=losses))


@pytest.mark.parametrize(
    ("holm", "holds", "said"),
    [(0.01, True, "has more hypervolume than"), (0.06, None, "does not measurably differ in hypervolume from")],
)
def test_the_confirmation_asks_for_holms_p_as_well(holm: float, holds: bool | None, said: str):
    row = {"method": "WARP", "measure": "reward", "seeds": 3, "difference": 2.0, "low": 1.0, "high": 3.0, "holm": holm}
    seen = pd.DataFrame({"method": ["WARP", "WARP", "anchored"], "tokens": [9.0, 11.0, 11.0]})
    found = claims.anchored_beats_warp(tables(t_5_confirmation_gain=pd.DataFrame([row]), t_5_confirmation=seen))
    assert found.holds is holds
    assert f"{said} WARP at equal tokens (to a factor of 1.10) up to" in found.statement
    seen.loc[2, "tokens"] = 11.6
    with pytest.raises(Unanswered, match=r"saw are 1\.16 times the fewest"):
        claims.anchored_beats_warp(tables(t_5_confirmation_gain=pd.DataFrame([row]), t_5_confirmation=seen))


@pytest.mark.parametrize("base_seed", [None, 0])
def test_a_page_says_where_all_seeds_share_their_models(base_seed: int | None):
    told = about_models(SimpleNamespace(base_seed=base_seed))
    assert ("one reward model" in told) == (base_seed is not None)


def test_what_differs_is_named():
    table = pd.DataFrame(
        {"method": ["hinge", "ipo"], "measure": "reward", "difference": [1.0, -1], "holm": [0.01, 0.5]}
    ).assign(low=-1.5, high=1.5)
    found = claims.losses_do_not_differ(tables(t_2_against_sigmoid=table, **gains(1.0, 0.5, 1.5)))
    assert "hinge" in found.statement
    assert "ipo" not in found.statement
    assert not found.holds


def test_findings_about_warp_are_about_the_setting_that_they_name():
    names = ["WARP, T=9, η=0.5", "WARP, T=9, η=1", "WARP, η=0.5", "WARP, η=1"]
    table = pd.DataFrame({"policy": names, "measure": "reward", "difference": [4.0, 8, 3, 6]})
    table = pd.concat([table, table.assign(measure="kl", difference=[2.0, 9, 1, 9])])
    told = tables(t_4_gain=table.assign(low=table.difference - 1, high=table.difference + 1, seeds=5))
    assert claims.warp_raises_reward(told).value == 3
    assert "at a mean KL of 1.00 nats" in claims.warp_raises_reward(told).statement
    assert claims.warp_of_the_task_raises_reward(told).value == 4
    with pytest.raises(Unanswered):
        claims.warp_raises_gold(told)


def test_rows_clear_of_zero_are_named_and_one_seed_answers_nothing():
    table = pd.DataFrame({"label": ["a", "b"], "measure": "gold", "difference": [0.5, -0.5], "holm": [0.01, 0.9]})
    assert clear_of_zero(table) == "a +0.50 in gold (1 of 2 after Holm)"
    assert clear_of_zero(table[1:]) == "no difference is clear of zero (0 of 1 after Holm)"
    assert clear_of_zero(table.assign(holm=np.nan)) == "no interval, or nothing at one KL, so no answer"


@pytest.mark.parametrize(("holm", "holds"), [(0.04, True), (0.06, None), (np.nan, True), (None, True)])
def test_one_of_several_differences_needs_holms_p_as_well(holm: float | None, holds: bool | None):
    row = pd.DataFrame({"difference": [1.0], "low": 0.2, "high": 1.8} | ({} if holm is None else {"holm": holm}))
    found = difference(row, "It", "that", CHANGES)
    assert found.holds is holds
    assert (
        found.statement
        == {
            True: "It raises that: 1.00 [0.20, 1.80].",
            None: "It does not measurably change that: 1.00 [0.20, 1.80], after Holm p = 0.06.",
        }[holds]
    )


def test_fewer_pairs_are_asked_about_at_one_share_in_every_report():
    found = pd.DataFrame({"share": [0.125, 0.25, 0.5, 1], "difference": [4.0, 3.0, 2.0, 0.0], "seeds": 3})
    found = pd.concat(found.assign(measure=name, low=1.0, high=5.0, holm=0.01) for name in ("kl", "reward", "gold"))
    asked = tables(t_2_size_gain=found)
    assert (claims.more_pairs_raise_gold(asked).value, claims.twice_the_pairs_raise_reward(asked).value) == (4, 2)
    asked = tables(t_2_size_gain=found[found.share == 0.25])
    for claim in (claims.more_pairs_raise_gold, claims.twice_the_pairs_raise_reward):
        with pytest.raises(Unanswered):
            claim(asked)


def test_what_is_gained_is_read_off_the_line_that_differences_are():
    """All points of a front count that every seed has, also those drawn from less; one seed's side rows do not."""
    points = [("sft", "sft", 0.0, 0.0, np.nan, "main"), ("WARP", "WARP, T=50", 0.25, 2.0, 0.5, "side"),
              ("WARP", "WARP, T=50", 1.0, 2.5, 1.0, "main")]  # fmt: skip
    columns = ["method", "family", "kl", "reward", "eta", "row"]
    placed = pd.concat(pd.DataFrame(points, columns=columns).assign(seed=seed, status="ok") for seed in range(3))
    one = pd.DataFrame([("WARP, other", "WARP, T=50", 0.24, 9.0, 0.5, "side")], columns=columns)
    placed = pd.concat([placed, one.assign(seed=0, status="ok")])
    rows = pd.DataFrame({"at_kl": [0.25, 1.0]})
    assert claims._gained(placed, rows, "WARP, T=50").tolist() == pytest.approx([2.0, 2.5])


def test_on_policy_pairs_are_compared_at_the_largest_kl():
    table = pd.DataFrame({"family": "DPO, on-policy", "measure": "reward", "at_kl": [1.0, 0.25, 0.5]})
    table = table.assign(difference=[0.3, 0.0, 0.1], low=[0.2, -0.1, 0.0], high=[0.4, 0.1, 0.2])
    found = claims.on_policy_gains_more(tables(t_2_beyond=table))
    assert found.kl == 1
    assert (found.value, found.holds) == (0.3, True)
    assert "at KL 1 (at KL 0.25 +0.00, at KL 0.5 +0.10)" in found.statement


def test_divergences_that_gain_less_are_named_though_none_gains_more():
    table = pd.DataFrame({"label": ["js at KL 1", "alpha at KL 1"], "measure": "reward", "difference": [-0.2, 0.01]})
    table["family"], table["at_kl"] = ["DPO, js", "DPO, alpha 0.5"], 1.0
    table = table.assign(low=[-0.3, -0.1], high=[-0.1, 0.12], holm=[0.01, 1.0])
    placed = gaining("DPO, reverse_kl")
    found = claims.divergences_gain_no_more(tables(t_3_matched=table, t_3_f_divergences=placed))
    assert found.holds
    assert found.statement.endswith("and none has 0.25 nats more. Measurably less: js at KL 1 (-0.20).")


def test_the_best_way_at_warps_tokens_draws_no_more_than_warp():
    shares = pd.DataFrame({"family": ["dear", "cheap", "WARP, T=9", "many"], "seeds": 2, "KL 1": [0.9, 0.8, 0.5, 1.0]})
    shares = shares.assign(draws=[np.nan, np.nan, np.nan, 8], **{"KL 1_low": 0.7, "KL 1_high": 1.0})
    tokens = pd.DataFrame({"method": ["dear", "cheap", "WARP, T=9"], "tokens": [30.0, 9, 10]})
    known = {"t_6_efficiency": shares, "t_6_hypervolume": tokens}
    warp = pd.DataFrame({"method": ["WARP"], "family": ["WARP, T=9"]})
    found = claims_of_front.one_draw_at_warps_tokens(tables(**known, t_4_warp=warp))
    assert found.value == 0.8
    assert "(cheap)" in found.statement
    assert found.statement.endswith("WARP, T=9, untuned, gets 0.50.")
    tokens.loc[tokens.method == "dear", "tokens"] = 10.09  # completions of one number differ a little in length
    known["t_6_hypervolume"] = tokens
    assert "(dear)" in claims_of_front.one_draw_at_warps_tokens(tables(**known, t_4_warp=warp)).statement


def test_a_share_that_is_not_clear_of_its_bound_has_another_digit():
    shares = pd.DataFrame({"family": ["many", "one"], "seeds": 2, "draws": [8, np.nan], "KL 1": [1.0, 0.9]})
    for low, told in ((0.99, "gets 1.00 [0.99, 1.00] of"), (0.979, "gets 1.000 [0.979, 1.000] of")):
        ends = {"KL 1_low": low, "KL 1_high": 1.0}
        found = claims_of_front.best_with_many_draws(tables(t_6_efficiency=shares.assign(**ends)))
        assert told in found.statement
        assert found.statement.endswith(", not clear of 0.98.") == (found.holds is None)


def test_tuned_methods_that_are_not_compared_are_named():
    order = pd.DataFrame(
        {"family": ["a, tuned"], "against": "WARP, tuned", "label": "a − WARP", "seeds": 3, "at_kl": 0.5}
    )
    order = order.assign(difference=0.01, low=-0.02, high=0.04, p=0.5, holm=0.5)
    tuned = pd.DataFrame({"family": ["WARP, tuned", "a, tuned", "far, tuned"]})
    told = claims_of_front.tuned_alike_none_beats_warp(tables(t_6_tuned_order=order, t_6_tuned=tuned)).statement
    assert told.endswith("Not compared, as not every seed reaches that KL: far, tuned.")
    told = claims_of_front.tuned_alike_none_beats_warp(tables(t_6_tuned_order=order, t_6_tuned=tuned[:2])).statement
    assert "Not compared" not in told


def test_a_change_of_warp_that_moves_gold_alone_is_named():
    causes = pd.DataFrame({"method": ["WARP, x"] * 2, "measure": ["reward", "gold"], "base": "WARP"})
    causes = causes.assign(difference=[0.1, 0.4], low=[-0.1, 0.2], high=[0.3, 0.6], holm=[0.3, 0.01])
    found = claims.no_single_change_moves_warp(tables(t_5_causes=causes))
    assert (found.holds, found.value) == (True, 0)
    assert found.statement.endswith("In gold these do: WARP, x (+0.40).")


def test_the_distilled_policys_gain_is_over_its_own_seeds_start():
    start = pd.DataFrame({"method": "sft", "seed": [0, 1], "kl": 0.0, "reward": [1.0, 5.0]})
    own = pd.DataFrame({"method": "distilled draws", "seed": [0, 1], "kl": [0.2, 0.4], "reward": [2.0, 6.1], "eta": 1})
    halfway = own.assign(eta=0.5, reward=9.0)
    rows = pd.concat([start, own, halfway, own.assign(method="WARP", reward=9.0)]).assign(status="ok")
    found = claims.distilling_raises_reward(tables(t_5_improvements=rows))
    assert (found.holds, found.value, found.seeds) == (True, pytest.approx(1.05), 2)
    assert "raises the reward over SFT, at a mean KL of 0.30 nats: 1.05" in found.statement
    with pytest.raises(KeyError):  # which `answers` tells as not asked
        claims.distilling_raises_gold(tables(t_5_improvements=rows))


def equal_kl(families: list[str], differences: list[float], kls: list[float]) -> pd.DataFrame:
    """Differences in reward and, twice as large, in gold at equal KLs; all intervals have a half-width of 0.1."""
    reward = pd.DataFrame({"family": families, "at_kl": kls, "measure": "reward", "difference": differences})
    both = pd.concat([reward, reward.assign(measure="gold", difference=2 * reward.difference)])
    return both.assign(low=both.difference - 0.1, high=both.difference + 0.1, holm=0.01)


def test_the_way_back_is_told_beside_earlier_steps_of_the_same_run():
    found = claims.going_back_gains_more(tables(t_4_back_matched=equal_kl(["back"] * 2, [0.8, 0.5], [0.6, 1.3])))
    assert (found.holds, found.value, found.kl) == (True, 0.5, 1.3)
    told = "than the same run stopped earlier, at a mean KL of 1.3 (at a mean KL of 0.6 +0.80): 0.50 [0.40, 0.60]."
    assert found.statement.endswith(told)


def test_a_merge_is_told_with_its_cost_and_an_iteration_beside_the_first():
    known = {"t_4_iterations_matched": equal_kl(["WARP, iteration 2", "WARP, iteration 3"], [0.7, -0.2], [1.0] * 2)}
    known |= {"t_4_runs_matched": equal_kl(["WARP, iteration 1"], [0.3], [1.0])}
    known |= {
        "t_4_warp": pd.DataFrame({"method": ["sft", *["WARP"] * 3], "iteration": range(4), "runs": [np.nan, 2, 2, 2]})
    }
    merged, third = (f(tables(**known)) for f in (claims.merged_runs_gain_more, claims.another_iteration_gains_more))
    assert (merged.holds, merged.value) == (True, 0.3)
    assert "gains more reward than one run of that length, with 2 times its tokens, at KL 1: 0.30" in merged.statement
    assert (third.holds, third.value) == (False, -0.2)
    once = {"t_4_warp": known["t_4_warp"][:2]}
    with pytest.raises(Unanswered):  # one iteration is compared with none
        claims.another_iteration_gains_more(tables(**known | once))


def test_the_best_policy_is_set_beside_best_of_n():
    shares = pd.DataFrame({"family": ["own"], "seeds": 3, "draws": np.nan, "KL 1": 0.9})
    order = pd.DataFrame({"family": ["best of n", "other"], "against": "own", "at_kl": 1.0, "seeds": 3, "holm": 0.01})
    order = order.assign(difference=[0.3, -0.5], low=[0.2, -0.6], high=[0.4, -0.4])
    found = claims_of_front.one_draw_beats_best_of_n(tables(t_6_efficiency=shares, t_6_order=order))
    assert (found.holds, found.value) == (False, -0.3)
    assert "(own) gets less of it than best of n at a KL of 1 (difference in share): -0.30" in found.statement
