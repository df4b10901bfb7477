"""What is true of any published report, whatever its seeds, sizes and results: its tables agree with each other."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alignkit import paths
from alignkit.report import findings, readme
from alignkit.workflow.parameters import NOTEBOOKS, REPLICA

FIGURES = paths.CHECKOUT / "figures"
PROFILES = sorted({file.parent.name for file in FIGURES.glob("*/*.csv")})
POLICIES = "profile notebook method seed run row status kl reward unigram_entropy distinct_2 self_bleu".split()
"""Columns of every table of policies."""


def table(file: Path) -> pd.DataFrame:
    return pd.read_csv(file)


def main_tables(profile: str) -> dict[str, pd.DataFrame]:
    """The published main tables: one row for each policy or model and seed."""
    files = {name: FIGURES / profile / f"{name}.csv" for name in NOTEBOOKS}
    return {name: table(file) for name, file in files.items() if file.is_file()}


PLACED = [(profile, name) for profile in PROFILES for name, rows in main_tables(profile).items() if "kl" in rows]
INDEXED = [(profile, name) for profile in PROFILES for name in main_tables(profile)]
of_each_profile = pytest.mark.parametrize("profile", PROFILES)
of_each_table_of_policies = pytest.mark.parametrize(("profile", "notebook"), PLACED)


def test_the_readmes_results_are_those_of_the_tables():
    text = (paths.CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert all(readme.START.format(name) in text for name in readme.BLOCKS)
    assert readme.with_results(text, FIGURES) == text


@pytest.mark.parametrize("profile", [name for name in PROFILES if not name.endswith(REPLICA)])  # has tables only
def test_every_figure_has_its_vector_form_beside_it(profile: str):
    pictures = {file.stem for file in (FIGURES / profile).glob("*.png")}
    assert pictures
    assert pictures == {file.stem for file in (FIGURES / profile).glob("*.svg")}


@pytest.mark.parametrize("profile", sorted({profile for profile, _ in PLACED}))
def test_the_results_are_the_rows_of_all_notebooks(profile: str):
    tables = [rows for rows in main_tables(profile).values() if "kl" in rows]
    results = table(FIGURES / profile / "results.csv")
    assert set(results) == set().union(*tables)
    expected = pd.concat(tables, ignore_index=True)[list(results)]
    pd.testing.assert_frame_equal(results, expected, check_dtype=False)


@pytest.mark.parametrize(("profile", "notebook"), INDEXED)
def test_every_row_has_its_run_in_the_index(profile: str, notebook: str):
    rows = main_tables(profile)[notebook].dropna(subset="seed")
    number = notebook.partition("_")[0]
    index = table(FIGURES / profile / f"{number}_runs.csv")
    assert not index.duplicated(["run", "seed"]).any()
    if "run" in rows:
        assert set(rows.run) <= set(index.id)
    else:
        assert set(zip(rows.method, rows.seed, strict=True)) <= set(zip(index.run, index.seed, strict=True))


@of_each_table_of_policies
def test_a_diverged_row_has_no_numbers_and_every_other_has(profile: str, notebook: str):
    rows = main_tables(profile)[notebook]
    assert set(POLICIES) <= set(rows)
    assert set(rows.status) <= {"ok", "diverged"}
    assert (rows.reward.notna() == (rows.status == "ok")).all()
    assert rows[rows.status == "diverged"][["kl", "unigram_entropy"]].isna().all(axis=None)
    assert rows[rows.method == "sft"].kl.abs().max() < 1e-6


@of_each_table_of_policies
def test_main_rows_have_every_seed_and_more_completions(profile: str, notebook: str):
    rows = main_tables(profile)[notebook]
    place = [name for name in ("method", "iteration", "eta", "steps", "beta") if name in rows]
    assert set(rows.row) <= {"main", "side"}
    main, side = rows[rows.row == "main"], rows[rows.row == "side"]
    seeds = set(main.groupby(place, dropna=False).seed.agg(frozenset))
    assert len(seeds) == 1
    assert main.completions.dropna().nunique() == 1
    assert set(side.seed) <= set(next(iter(seeds)))
    if len(side):
        assert side.completions.max() <= main.completions.max()


@of_each_profile
def test_there_is_an_interval_just_where_there_are_several_seeds(profile: str):
    for file in sorted((FIGURES / profile).glob("*.csv")):
        rows = table(file)
        lows = [column for column in rows if column == "low" or column.endswith("_low")]
        if "statement" in rows:  # a finding about a count, or about seeds one by one, has no interval
            continue
        for low in lows if "seeds" in rows else []:
            mean = "difference" if low == "low" else low.removesuffix("_low")
            several = (rows.seeds > 1) & rows[mean].notna()
            assert (rows[low].notna() == several).all(), (file.name, low)


@pytest.mark.parametrize("file", sorted(FIGURES.glob("*/5_confirmation.csv")), ids=lambda file: file.parent.name)
def test_no_choice_was_made_on_a_seed_of_the_confirmation(file: Path):
    chosen_on = table(file.with_name("5_improvements.csv")).query("row == 'side'").seed.mode()
    assert not set(chosen_on) & set(table(file).seed)


def test_an_interval_in_a_table_of_the_readme_stays_on_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(readme, "BLOCKS", {"results": lambda _: "- so: 1 [0.5, 2]\n\n| a | 1 [-0.5, 2.0] |\n"})
    start, end = (mark.format("results") for mark in (readme.START, readme.END))
    told = readme.with_results(f"before\n{start}\nold\n{end}\nafter\n", tmp_path).splitlines()
    assert told[2:5] == ["- so: 1 [0.5, 2]", "", "| a | 1 [-0.5,&nbsp;2.0] |"]


def test_the_readme_tells_the_main_findings_and_shares(tmp_path: Path):
    folder = tmp_path / "pocket"
    folder.mkdir()
    told = pd.DataFrame(
        {"id": [readme.MAIN[0], "another"], "statement": ["It is so.", "It is not."], "value": [1.0, 2]}
    )
    told.to_csv(folder / "findings.csv", index=False)
    names = ["DPO, alpha 0.5", "fine-tuning on positive reviews", "WARP, tuned", "DPO, js", "DPO, alpha 0.1"]
    shares = pd.DataFrame({"family": names, "KL 0.25": [0.9, 0.7, 0.6, 0.5, 0.4], "KL 1": [0.9, None, 0.6, 0.5, 0.4]})
    ends = {f"KL {kl}_{end}": value for kl in ("0.25", "1") for end, value in (("low", 0.1), ("high", 1.0))}
    shares = shares.assign(seeds=[3, 3, 2, 3, 3], draws=None, **ends)
    shares.to_csv(folder / "6_efficiency.csv", index=False)
    (folder / "4_warp.csv").write_text("method,family\n")  # a table without rows names no WARP
    for other, left_out in (("near", ["KL 1"]), ("nowhere", ["KL 1", "KL 0.25"]), ("older", ["draws"])):
        (tmp_path / other).mkdir()  # have no share at KL 1, or no word on draws: no table
        shares.drop(columns=left_out).to_csv(tmp_path / other / "6_efficiency.csv", index=False)
    found, alone = readme.results(tmp_path), readme.share_tables(tmp_path)
    assert readme.main_findings(tmp_path) == "- It is so. (open)"
    assert found.splitlines()[:2] == ["<details open>", f"<summary>{readme.TITLES[0]}</summary>"]
    lines = [line for line in found.splitlines() if "[0.10, 1.00]" in line]
    assert [line.split(" | ")[:2] for line in lines] == [  # by KL 1, tuned ones with the seeds that they have
        ["| DPO, alpha 0.5", "3"],
        ["| WARP, tuned", "2"],
        ["| DPO, js", "3"],
        ["| fine-tuning on positive reviews", "3"],
    ]
    assert lines[2] == "| DPO, js | 3 | 0.50 [0.10, 1.00] | 0.50 [0.10, 1.00] |"
    assert "DPO, alpha 0.1" not in found  # a variation, and not the best of DPO
    (tmp_path / "pocket_other").mkdir()
    other = shares.assign(**{"KL 1": [None, 0.8, None, None, None]})
    other.to_csv(tmp_path / "pocket_other" / "6_efficiency.csv", index=False)
    beside = readme.share_tables(tmp_path).removeprefix(alone).strip().splitlines()
    assert beside[0] == "| share of the optimal gain at KL 1 | pocket, 3 seeds | pocket_other, 3 seeds |"
    assert beside[2:] == ["| fine-tuning on positive reviews |  | 0.80 [0.10, 1.00] |"]  # of families that it has


@pytest.mark.parametrize("profile", [name for name in PROFILES if (FIGURES / name / "findings.csv").is_file()])
def test_the_findings_are_what_the_tables_say(profile: str):
    published, folder = table(FIGURES / profile / "findings.csv"), FIGURES / profile
    said = {n: findings.answers(n, findings.of_folders(folder)) for n in published.notebook.unique()}
    assert published.statement.tolist() == [text for found in said.values() for text in found.statement]
    if profile == "pocket":  # other pages say what was claimed on the day when they were made
        for notebook, found in said.items():
            page = table(folder / f"{notebook.partition('_')[0]}_findings.csv")
            assert page.statement.tolist() == found.statement.tolist()


@of_each_profile
def test_no_finding_tells_a_number_that_is_missing(profile: str):
    files = (FIGURES / profile).glob("*findings.csv")
    told = [text for file in files for text in table(file).statement if re.search(r"\bnan\b", text)]
    assert told == []


@pytest.mark.skipif(not (FIGURES / "pocket" / "findings.csv").is_file(), reason="no findings are published yet")
def test_no_finding_of_the_pocket_report_is_open():
    found = table(FIGURES / "pocket" / "findings.csv")
    assert found.id.nunique() == sum(map(len, findings.CLAIMS.values()))
    assert found.value.notna().all(), found.statement[found.value.isna()].tolist()


def test_a_profile_with_one_seed_is_told_without_intervals(tmp_path: Path):
    (tmp_path / "one").mkdir()
    for file in (FIGURES / "pocket").glob("*.csv"):
        rows = table(file)
        if "seed" in rows:
            rows = rows[rows.seed.isna() | (rows.seed == 0)]
        if "seeds" in rows:
            rows = rows.assign(seeds=1, **{c: np.nan for c in rows if c.endswith(("_low", "_high"))})
        rows.to_csv(tmp_path / "one" / file.name, index=False)
    assert "(1 seed) |" in readme.results(tmp_path)
    assert "nan" not in readme.results(tmp_path)


def test_the_readme_keeps_the_most_draws_and_best_of_n_whatever_its_n(tmp_path: Path):
    names = ["best of n", "SFT, one of 4", "SFT, one of 16", "distilled draws"]
    shares = pd.DataFrame({"family": names, "seeds": 3, "draws": [32, 4, 16, None], "KL 1": [0.9, 0.8, 1.0, 0.5]})
    ends = {f"KL 1_{end}": 0.1 for end in ("low", "high")}
    (tmp_path / "reviews").mkdir()
    shares.assign(**ends).to_csv(tmp_path / "reviews" / "6_efficiency.csv", index=False)
    told = [line.split(" | ")[0] for line in readme.share_tables(tmp_path).splitlines()[2:]]
    assert told == ["| SFT, one of 16", "| best of n", "| distilled draws"]


def test_the_readme_has_each_policys_nats_beside_a_pretrained_ones(tmp_path: Path):
    for folder in ("figures/pocket", "benchmarks"):
        (tmp_path / folder).mkdir(parents=True)
    rows = {
        "seed": [0, 1],
        "tokens_seen": [900, 1100],
        "test_cross_entropy": [1.2, 1.4],
        "nats_a_character": [0.2, 0.4],
    }
    pd.DataFrame(rows).to_csv(tmp_path / "figures" / "pocket" / "1_sft.csv", index=False)
    (tmp_path / "benchmarks" / "untuned.csv").write_text(
        "policy,texts,nats_a_token,nats_a_character\nlarge,9,4.1,0.9\n"
    )
    *_, own, pretrained = readme.language_model_table(tmp_path / "figures").splitlines()
    assert own.startswith("| pocket | 2 | 1,000 | 1.300 [")
    assert pretrained == "| large |  | as it comes | 4.1 | 0.9 |"
