"""Findings of a profile beside those of its replica, from tables made by hand."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alignkit import paths
from alignkit.__main__ import main
from alignkit.report import findings, readme, replication
from alignkit.workflow import parameters

AGAIN = "with fresh seeds 1 of 1 firm findings, 0 of 1 narrow ones are answered alike; not: `warp_raises_reward`"
PROFILE, REPLICA = "smoke", f"smoke{parameters.REPLICA}"


def gain(low: float) -> pd.DataFrame:
    """What DPO and WARP gain in reward: 2, from `low` to 3; WARP at a KL of 2."""
    row = {"method": "sigmoid", "policy": "WARP, η=0.5", "measure": "reward", "seeds": 3, "difference": 2.0}
    return pd.DataFrame([row | {"low": low, "high": 3.0}, row | {"measure": "kl"}])


# WARP gains 4 nats between KL 0.25 and 1, so that 0.25 nats are less than a quarter of that.
WARP = pd.DataFrame({"method": ["sft", "WARP", "WARP"], "family": ["sft", "WARP, T=9", "WARP, T=9"]})
WARP = WARP.assign(seed=0, row="main", status="ok", kl=[0.0, 0.25, 1.0], reward=[0.0, 4.0, 4.0])


def longer(**row: float) -> pd.DataFrame:
    """How longer runs differ in reward at one KL."""
    named = {"label": "KL 1", "family": "WARP, T=20", "at_kl": 1.0, "measure": "reward", "difference": 0.1}
    return pd.DataFrame([named | row])


def lay(folder: Path, **tables: pd.DataFrame) -> None:
    """Tables 2_gain and 4_gain, and the findings that notebooks 2 and 4 make of them; DPO has a KL of 2 too."""
    folder.mkdir(parents=True, exist_ok=True)
    dpo = {"method": ["sigmoid"], "row": "main", "status": "ok", "kl": 2.0}
    pd.DataFrame(dpo).to_csv(folder / "2_dpo_losses.csv", index=False)
    for name, table in tables.items():
        table.to_csv(folder / f"{name[1:]}.csv", index=False)
    for notebook in ("2_dpo_losses", "4_warp"):
        found = findings.answers(notebook, findings.of_folders(folder))
        found.to_csv(folder / f"{notebook[0]}_findings.csv", index=False)


@pytest.fixture
def figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with a profile in which DPO raises the reward, and WARP narrowly; in its replica DPO alone does."""
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    (tmp_path / "README.md").write_text("nothing to fill in")
    lay(tmp_path / "figures" / PROFILE, t2_gain=gain(1.5), t4_gain=gain(1))
    lay(tmp_path / "figures" / REPLICA, t2_gain=gain(0.5), t4_gain=gain(-1))
    return tmp_path / "figures"


def published(figures: Path) -> pd.DataFrame:
    return pd.read_csv(figures / PROFILE / "findings.csv").set_index("id")


def test_replicate_says_which_findings_hold_again(figures: Path, capsys: pytest.CaptureFixture):
    assert main(["replicate", PROFILE]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "figures/smoke/findings.csv",
        "figures/smoke/replication.csv",
        f"smoke: {AGAIN}",
    ]
    rows = published(figures)
    assert rows.replicated.dropna().to_dict() == {"dpo_raises_reward": True, "warp_raises_reward": False}
    assert rows.loc["dpo_raises_reward", ["value", "low", "replica_value", "replica_low"]].tolist() == [2, 1.5, 2, 0.5]


def test_both_runs_stand_side_by_side(figures: Path):
    replication.publish_findings(PROFILE)
    row = pd.read_csv(figures / PROFILE / "replication.csv").set_index("id").loc["warp_raises_reward"]
    assert (row.holds, pd.isna(row.replica_holds)) == (True, True)  # its interval there includes zero
    assert "raises" in row.statement
    assert "does not measurably change" in row.replica_statement
    assert row[["low", "high", "replica_low", "replica_high"]].tolist() == [1, 3, -1, 3]


def test_publishing_again_keeps_what_the_replica_says(figures: Path):
    assert replication.publish_findings(PROFILE)
    before = published(figures)
    assert replication.publish_findings(PROFILE) == []
    lay(figures / PROFILE, t2_gain=gain(0.9))
    assert replication.publish_findings(PROFILE) == ["figures/smoke/findings.csv", "figures/smoke/replication.csv"]
    assert published(figures).replica_low.equals(before.replica_low)


def test_what_the_replica_has_no_table_for_is_told_apart(figures: Path):
    (figures / REPLICA / "4_gain.csv").unlink()
    replication.publish_findings(PROFILE)
    rows = published(figures)
    assert pd.isna(rows.replicated["warp_raises_reward"])
    assert replication.held_again(rows.reset_index()) == (
        "with fresh seeds 1 of 1 firm findings are answered alike; not asked again: `warp_raises_reward`"
    )


def test_what_holds_at_no_kl_that_fresh_seeds_reach_is_not_replicated():
    own = pd.DataFrame({"id": ["one"], "statement": "", "value": 1, "low": 0, "high": 2, "kl": 1.0, "holds": True})
    own["asked"] = np.nan
    both = replication.beside_replica(own, own.assign(kl=0.5, holds=None))
    assert both[["replicated", "kl", "replica_kl"]].to_numpy().tolist() == [[False, 1.0, 0.5]]


@pytest.mark.parametrize(("there", "alike"), [(2, True), (1, None)])
def test_no_difference_is_replicated_only_by_as_many_comparisons(there: int, alike: bool | None, figures: Path):
    rows = pd.concat([longer(label=f"KL {kl}", low=-0.1, high=0.1, holm=0.9) for kl in (0.5, 1)])
    for name, kept in ((PROFILE, 2), (REPLICA, there)):
        lay(figures / name, t2_gain=gain(1), t4_gain=gain(1), t4_warp=WARP, t4_task_matched=rows[:kept])
    replication.publish_findings(PROFILE)
    row = published(figures).loc["longer_runs_buy_no_more"]
    assert (row.holds, row.asked, row.replica_asked) == (True, 2, there)
    assert (None if pd.isna(row.replicated) else row.replicated) is alike


def test_what_does_not_hold_here_is_answered_alike_if_it_fails_there(figures: Path):
    less = gain(-3).assign(difference=-2.5, high=-2.0)
    lay(figures / PROFILE, t2_gain=less)
    for there, alike in ((less, True), (gain(0.5), False), (gain(-1), False)):  # refuted, shown, open
        lay(figures / REPLICA, t2_gain=there)
        replication.publish_findings(PROFILE)
        rows = published(figures)
        assert (rows.holds["dpo_raises_reward"], rows.replicated["dpo_raises_reward"]) == (False, alike)
    assert "0 of 1 refuted claims are answered alike" in replication.held_again(rows.reset_index())


def test_what_is_open_here_is_not_replicated_either_way(figures: Path):
    lay(figures / PROFILE, t2_gain=gain(-1))
    replication.publish_findings(PROFILE)
    rows = published(figures)
    assert pd.isna(rows.replicated["dpo_raises_reward"])
    assert rows.replica_value["dpo_raises_reward"] == 2


def test_without_a_replica_the_columns_are_empty(figures: Path):
    replication.publish_findings(REPLICA)  # has none of its own
    rows = pd.read_csv(figures / REPLICA / "findings.csv")
    assert rows[["replicated", "replica_value", "replica_low", "replica_high"]].isna().all(axis=None)
    assert replication.held_again(rows) == ""
    assert not (figures / REPLICA / "replication.csv").exists()


@pytest.mark.parametrize("lacking", [PROFILE, REPLICA])
def test_without_one_of_both_there_is_one_line(lacking: str, figures: Path, capsys: pytest.CaptureFixture):
    for file in (figures / lacking).iterdir():
        file.unlink()
    assert main(["replicate", PROFILE]) == 2
    told = f"replicate: {lacking!r} has no findings in figures; run make report PROFILE={lacking} first\n"
    assert capsys.readouterr().err == told


def test_the_readme_says_beside_a_finding_whether_it_holds_again(figures: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(readme, "MAIN", ["dpo_raises_reward", "warp_raises_reward"])
    for name in (PROFILE, REPLICA):  # smoke is no profile that the README tells of
        (figures / name).rename(figures / name.replace("smoke", "pocket"))
    assert "replicated" not in readme.main_findings(figures)
    replication.publish_findings("pocket")
    replication.publish_findings(f"pocket{parameters.REPLICA}")
    assert readme.main_findings(figures).splitlines() == [
        "- DPO raises the reward over SFT, at a mean KL of 2.00 nats: 2.00 [1.50, 3.00]. (replicated)",
        "- WARP, η=0.5 raises the reward over SFT, at a mean KL of 2.00 nats: 2.00 [1.00, 3.00]."
        " (narrow; not replicated)",
        f"- All findings: {AGAIN}.",
    ]


def test_another_profile_says_which_findings_of_pocket_hold_there(figures: Path):
    (figures / REPLICA).rename(figures / "real")
    (figures / PROFILE).rename(figures / "pocket")
    lay(figures / "pocket", t4_task_matched=longer(holm=0.5, low=0, high=0.2), t4_warp=WARP)
    lay(figures / "real", t4_task_matched=longer(holm=0.01, low=1, high=3), t4_warp=WARP)
    replication.publish_findings("pocket")
    replication.publish_findings("real")
    assert not (figures / "pocket" / "agreement.csv").exists()
    rows = pd.read_csv(figures / "real" / "agreement.csv").set_index("id")
    assert rows.there[
        ["dpo_raises_reward", "warp_raises_reward", "longer_runs_buy_no_more", "warp_raises_gold"]
    ].tolist() == [
        "yes",
        "cannot tell",  # its interval includes zero
        "no",
        "not asked",  # no table says
    ]
    assert rows.loc["dpo_raises_reward", ["low", "low_there"]].tolist() == [1.5, 0.5]
    whole = replication.all_answers(figures / "real")
    left_out = set(whole.id) - set(replication.agreement("real", whole).id)
    assert left_out == set(replication.MADE_SO)  # of these every report has the same
    told = readme.agreement_tables(figures)
    assert told.splitlines()[0].startswith(
        "| finding that holds in pocket | real | holds there (yes 1, no 1, cannot tell "
    )
    assert "DPO raises the reward over SFT, at a mean KL of 2.00 nats: 2.00 [0.50, 3.00]" in told


def test_the_last_page_asks_findings_of_the_notebooks_that_it_reads(figures: Path, monkeypatch: pytest.MonkeyPatch):
    (figures / REPLICA).rename(figures / "real")
    (figures / PROFILE).rename(figures / "pocket")
    monkeypatch.setattr(paths, "figures", lambda profile: figures / profile)
    asked = replication.here_and_in_pocket("real").notebook.unique()  # notebooks 0 and 1 may run later
    assert set(asked) == {"2_dpo_losses", "3_f_divergences", "4_warp", "5_improvements", "6_one_front"}


def test_the_readme_tells_of_pockets_variants_in_one_table(figures: Path):
    (figures / REPLICA).rename(figures / "pocket_wide")
    (figures / PROFILE).rename(figures / "pocket")
    lay(figures / "pocket_narrow", t2_gain=gain(-3).assign(high=-1.0), t4_gain=gain(0.5))
    lay(figures / "pocket_letters", t2_gain=gain(2))
    (figures / "pocket_letters" / "4_findings.csv").unlink()  # its report has one notebook
    for name in ("pocket", "pocket_letters", "pocket_narrow", "pocket_wide"):
        replication.publish_findings(name)
    told = readme.agreement_tables(figures).splitlines()
    counts = ("yes 1, no 1, cannot tell 0", "yes 1, no 0, cannot tell 1")
    assert told[0].endswith(f"| pocket_narrow: {counts[0]} | pocket_wide: {counts[1]} |")
    asked = [line.split(" | ")[-3:] for line in told[2:]]
    assert asked == [["yes", "no", "yes |"], ["not asked", "yes", "cannot tell |"]]


def test_reports_beside_pocket_follow_its_findings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("pocket", "reviews", "imdb"):
        (tmp_path / "figures" / name).mkdir(parents=True)
    (tmp_path / "figures" / "reviews" / "findings.csv").touch()
    asked: list[str] = []
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    monkeypatch.setattr("alignkit.workflow.batch.publish", lambda _: [])
    monkeypatch.setattr("alignkit.workflow.batch.note_published", lambda _: None)
    monkeypatch.setattr(replication, "publish_findings", lambda name: asked.append(name) or [])
    monkeypatch.setattr("alignkit.report.readme.update", lambda: [])
    assert main(["publish", "pocket"]) == main(["publish", "imdb"]) == 0
    assert asked == ["pocket", "reviews", "imdb"]
