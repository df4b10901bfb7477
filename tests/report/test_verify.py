"""Comparing a regenerated report with the committed one, on a small report in a repository of its own."""

import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from alignkit import paths
from alignkit.__main__ import main
from alignkit.report import findings
from alignkit.report.verify import MEASURES, compared_means

SEEDS = (0, 1, 2)
FIRM, NARROW = 1.5, 1.0
"""Lower ends of an interval up to 3, by which a gain is above zero."""


def rows(seeds: tuple[int, ...] = SEEDS, shift: float = 0.0) -> pd.DataFrame:
    """SFT and one policy, whose reward is 1, 2, 3 ... plus a shift over the seeds, its gold 5."""
    sft = pd.DataFrame({"method": "sft", "seed": seeds, "eta": np.nan, "reward": 0.0, "gold": -1.0})
    policy = pd.DataFrame({"method": "WARP", "seed": seeds, "eta": 0.5, "reward": 0.0, "gold": 5.0})
    policy["reward"] = shift + 1 + np.arange(len(seeds))
    return pd.concat([sft, policy])


def gain(low: float | None) -> pd.DataFrame:
    row = {"policy": "WARP, η=0.5", "measure": "reward", "seeds": 3, "difference": 2, "low": low, "high": 3}
    return pd.DataFrame([row, row | {"measure": "kl"}])


def commit(folder: Path) -> None:
    named = ("-c", "user.name=reader", "-c", "user.email=reader@example.org")
    for command in (["add", "."], [*named, "commit", "-q", "--allow-empty", "-m", "a report"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The committed tables of a small pocket report."""
    folder = tmp_path / "figures" / "pocket"
    folder.mkdir(parents=True)
    rows().to_csv(folder / "4_warp.csv", index=False)
    gain(FIRM).to_csv(folder / "4_gain.csv", index=False)
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    commit(folder)
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    return folder


def test_an_equal_report_has_the_same_bits(figures: Path, capsys: pytest.CaptureFixture):
    assert main(["verify", "pocket"]) == 0
    told = capsys.readouterr().out
    assert "tables: 2 of 2 are equal byte for byte" in told
    assert "6 there, 6 here, 6 of one policy and seed in both; 6 equal\nsame bits" in told
    assert "  holds  4_warp, warp_raises_reward: " in told
    assert "  open   2_dpo_losses, dpo_raises_reward: " in told


def test_a_mean_that_moved_is_told_in_standard_errors(figures: Path, capsys: pytest.CaptureFixture):
    rows(seeds=(5, 6, 7), shift=4).to_csv(figures / "4_warp.csv", index=False)
    assert main(["verify", "pocket"]) == 0
    told = capsys.readouterr().out
    # Both have standard deviation 1 over three seeds: 4 / sqrt(1/3 + 1/3) = 4.9.
    assert "   +4.9  4_warp: WARP, eta 0.5, reward: 2 -> 6" in told
    assert "0 of one policy and seed in both" in told
    assert "4 compared, 3 equal, 0 moved by at most 2 standard errors" in told
    assert "1 by more" in told


@pytest.mark.parametrize(
    ("before", "low", "high", "code", "word"),
    [
        (FIRM, -0.5, 3, 1, "FAILS"), (NARROW, -0.5, 3, 0, "lost "), (NARROW, -3, -0.5, 1, "FAILS"),
        (FIRM, None, 3, 0, "gone "),
    ],
    ids=["firm, open", "narrow, open", "narrow, refuted", "no interval"],
)  # fmt: skip
def test_a_firm_statement_must_hold_and_a_narrow_one_not_be_refuted(
    before: float, low: float | None, high: float, code: int, word: str,
    figures: Path, capsys: pytest.CaptureFixture,
):  # fmt: skip
    gain(before).to_csv(figures / "4_gain.csv", index=False)
    commit(figures)
    gain(low).assign(high=high).to_csv(figures / "4_gain.csv", index=False)
    assert main(["verify", "pocket"]) == code
    told = capsys.readouterr().out
    assert f"  {word}  4_warp, warp_raises_reward: " in told
    assert ("FAILS" in told) == (code == 1)


def test_rows_that_went_and_came_are_named(figures: Path, capsys: pytest.CaptureFixture):
    rows().replace("WARP", "LERP").to_csv(figures / "4_warp.csv", index=False)
    (figures / "4_gain.csv").unlink()
    assert main(["verify", "pocket"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert {"no longer here: 4_warp: WARP, eta 0.5", "new: 4_warp: LERP, eta 0.5"} <= set(told)
    assert "tables no longer made: 4_gain" in told
    assert any(line.startswith("  gone   4_warp, warp_raises_reward: Not asked here: ") for line in told)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["imdb"], "verify: 'imdb' has no tables in figures; allowed: pocket"),
        (
            ["pocket", "--against", "v9"],
            "verify: v9 has no tables in figures/pocket (fatal: not a valid object name: v9)",
        ),
    ],
    ids=["profile", "revision"],
)
def test_what_cannot_be_compared_is_one_line(
    arguments: list[str], told: str, figures: Path, capsys: pytest.CaptureFixture
):
    assert main(["verify", *arguments]) == 2
    assert capsys.readouterr().err == f"{told}\n"


def test_tables_that_were_never_committed_are_one_line(figures: Path, capsys: pytest.CaptureFixture):
    figures.rename(figures.with_name("smoke"))
    assert main(["verify", "smoke"]) == 2
    assert capsys.readouterr().err.startswith("verify: HEAD has no tables in figures/smoke (")


# Standard errors


def long(place: str, values: list[float]) -> pd.DataFrame:
    frame = pd.DataFrame({"place": place, "notebook": "4_warp", "seed": range(len(values)), "reward": values})
    return frame.reindex(columns=["place", "notebook", "seed", *MEASURES])


def test_a_single_seed_takes_the_spread_of_its_notebooks_other_rows():
    before = pd.concat([long("many", [0.0, 2.0]), long("one", [1.0])])
    after = pd.concat([long("many", [0.0, 2.0]), long("one", [5.0])])
    moved = compared_means(before, after).set_index("place").moved
    assert moved["many"] == 0
    assert moved["one"] == pytest.approx(4 / np.sqrt(2 + 2))  # the variance over seeds of the other row is 2


def test_a_single_seed_without_any_spread_has_no_standard_error():
    moved = compared_means(long("one", [1.0]), long("one", [5.0])).moved
    assert moved.isna().all()
    assert compared_means(long("one", [1.0]), long("one", [1.0])).moved.tolist() == [0]


def test_welchs_sizes_are_those_of_scipy():
    old, new = [0.0, 1.0, 3.0], [2.0, 2.5, 7.0, 4.0]
    found = compared_means(long("many", old), long("many", new)).iloc[0]
    expected = stats.ttest_ind(new, old, equal_var=False)
    assert (found.moved, found.df) == pytest.approx((expected.statistic, expected.df))


# Findings


def test_every_claim_asks_a_question_and_has_a_name_of_its_own():
    claims = [claim for of in findings.CLAIMS.values() for claim in of]
    assert len({claim.__name__ for claim in claims}) == len(claims) > 15
    assert all(claim.__doc__.endswith("?") and "\n" not in claim.__doc__ for claim in claims)
