"""Each benchmark at tiny sizes: it runs, and its ratios are finite; how large they are is not tested."""

import math
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from alignkit import paths
from alignkit.report import f_divergences, readme
from alignkit.workflow import parameters

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]
SMALL = ({"n_embd": 16, "n_layer": 1, "n_head": 2}, {"dim": 16, "hidden_dim": 32, "n_layers": 1, "n_heads": 2})
"""Shapes of a policy and of a reward model."""


@pytest.fixture(scope="module")
def bench():
    """The modules in benchmarks/, which are scripts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        import estimates
        import growth
        import peers
        import plan
        import starts
        import steps
        import untuned

        modules = (estimates, growth, peers, plan, starts, steps, untuned)
        yield {module.__name__: module for module in modules}


@pytest.fixture(scope="module")
def here(bench, tmp_path_factory):
    return bench["starts"].start(tmp_path_factory.mktemp("start"), "smoke", reviews=1200)


def finite(row: dict[str, float]) -> bool:
    names = ("ours_ms", "theirs_ms", "ratio", "low", "high")
    return all(math.isfinite(row[name]) for name in names) and row["turns"] >= 1


@pytest.mark.parametrize("name", ["drawing", "gradient_step", "share_of_rate"])
def test_a_benchmark_of_the_policy_gives_finite_ratios(name: str, bench, here) -> None:
    steps = {} if name == "drawing" else {"steps": 2}
    assert finite(getattr(bench["peers"], name)(here, 1, **steps))


def test_the_sweep_of_dpo_gives_finite_ratios(bench, here, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(bench["peers"], "SWEEP", {"js": bench["peers"].SWEEP["js"], "reverse_kl": {}})
    rows = bench["peers"].dpo_sweep(here, bench["starts"].pairs(tmp_path / "pairs", here, 20), betas=(0.5,))
    assert list(rows) == ["as it comes", "all ready"]
    assert all(map(finite, rows.values()))


def test_reward_models_give_finite_ratios(bench) -> None:
    assert finite(bench["peers"].reward_step(1))
    assert finite(bench["peers"].reward_at_equal_accuracy(1, n=200, epochs=1.0))


def test_a_row_measured_again_takes_the_place_of_the_first(bench, tmp_path: Path) -> None:
    peers, file = bench["peers"], tmp_path / "benchmarks" / "peers.csv"
    file.parent.mkdir()
    given = {"ratio": 2.0, "low": 1.0, "high": 3.0}
    for name, column, ratio in [
        ("a", "1 thread", 9.0),
        ("b", "1 thread", 2.0),
        ("a", "1 thread", 2.5),
        ("b", "GPU", 8),
    ]:
        peers.keep({"benchmark": name, "column": column, **given, "ratio": ratio}, file)
    assert readme.speeds(tmp_path / "figures").splitlines() == [
        "| time of ... / time of alignkit | 1 thread | GPU |",
        "|---|---|---|",
        "| a | 2.50 [1.00, 3.00] |  |",
        "| b | 2.00 [1.00, 3.00] | 8.00 [1.00, 3.00] |",
    ]


def test_what_was_measured_is_printed_wherever_it_is_kept(bench, tmp_path: Path, monkeypatch, capsys) -> None:
    row = dict.fromkeys(("ours_ms", "theirs_ms", "ratio", "low", "high", "turns"), 1.0)
    monkeypatch.setattr(bench["peers"], "measured", lambda *_, **__: [("a step", row)])
    monkeypatch.setattr(bench["peers"].torch, "set_num_threads", lambda _: None)
    monkeypatch.setattr("sys.argv", ["peers.py", "--device", "cpu", "--only", "step", "--out", str(tmp_path / "kept")])
    bench["peers"].main()
    assert "| a step | 1.00 [1.00, 1.00] |" in capsys.readouterr().out


def test_a_column_measured_anew_keeps_no_row_of_its_old_sizes(bench, tmp_path: Path) -> None:
    peers, file = bench["peers"], tmp_path / "peers.csv"
    for name, column in (("a step of 48", "1 thread"), ("a step of 48", "GPU")):
        peers.keep({"benchmark": name, "column": column, "ratio": 2.0}, file)
    peers.keep({"benchmark": "a step of 40", "column": "1 thread", "ratio": 2.0}, file)
    peers.keep_only(["a step of 40"], "1 thread", file)
    rows = pd.read_csv(file)
    assert [*zip(rows.benchmark, rows.column, strict=True)] == [("a step of 48", "GPU"), ("a step of 40", "1 thread")]


def test_what_was_drawn_has_the_lengths_that_the_profiles_have(bench) -> None:
    told = pd.read_csv(ROOT / "benchmarks" / "peers.csv").query("column == '1 thread'").benchmark
    drawn = told[told.str.startswith("drawing")].tolist()
    lengths = {size: bench["starts"].of_profile(size, "4_warp")["new_tokens"] for size in ("pocket", "imdb_scratch")}
    assert drawn == [f"drawing 64 × {tokens} tokens, {size}: `generate`" for size, tokens in lengths.items()]


@pytest.mark.parametrize("name", ["pairs", "steps of the policy gradient", "tokens of a completion", "seeds"])
def test_what_grows_can_be_timed(name: str, bench, here) -> None:
    assert (
        bench["growth"]
        .timed({name: bench["growth"].growing(here)[name]}, repeats=1, scales=(1,))
        .notna()
        .all(axis=None)
    )


def test_a_batch_twice_as_large_takes_twice_the_products(bench) -> None:
    steps = bench["steps"]
    shapes = steps.models("meta", *SMALL)
    for step, _, _ in steps.KINDS.values():
        (_, few, kept), (_, many, more), (_, most, yet_more) = (steps.counted(shapes, step, n) for n in (8, 16, 32))
        assert (many, most) == pytest.approx((2 * few, 4 * few))
        assert yet_more - more == pytest.approx(2 * (more - kept), rel=0.01)


def test_steps_of_every_kind_are_counted_and_their_memory_summed(bench) -> None:
    table = bench["steps"].measured(*SMALL)
    assert list(table.step) == list(bench["steps"].KINDS)
    assert (table[["teraflop", "core_seconds", "peak_gb"]] > 0).all(axis=None)
    assert table.peak_gb.tolist() == pytest.approx((table.models_gb + table.kept_gb + table.moment_gb).tolist())
    assert (table.kept_gb > 0).tolist() == [step != "drawn" for step in table.step]


def test_a_plan_has_every_policy_of_the_notebook_once(bench) -> None:
    p = parameters.load(paths.PARAMS / "imdb" / "3_f_divergences.yaml")
    count = sum(len(p.seeds) if method.main else 1 for method in f_divergences.methods(p))
    runs = bench["plan"].planned(p)
    assert sum(run.function == "train_dpo" for run in runs) == count
    assert len({run.id for run in runs}) == len(runs)
    pairs = next(run for run in runs if run.function == "build_pairs").metrics["train_pairs"]
    assert pairs == 0.8 * p.pair_prompts * 5


def test_the_estimates_are_of_todays_runs(bench) -> None:
    kept = [pd.read_csv(ROOT / "benchmarks" / f"{name}.csv") for name in ("estimates", "steps")]
    today = bench["estimates"].estimated(kept[1])
    counted = ["notebook", "seeds", "runs", "gradient_steps", "pairs_steps", "drawn_steps"]
    pd.testing.assert_frame_equal(kept[0][counted], today[counted], check_dtype=False, rtol=0.01)


def test_more_work_is_estimated_to_take_longer_on_the_smaller_gpu(bench) -> None:
    seconds = bench["estimates"].seconds
    for kind in bench["steps"].KINDS:
        assert seconds(kind, 1.0, "H100") < seconds(kind, 2.0, "H100") < seconds(kind, 2.0, "A100")
        assert seconds(kind, 2.0, "A100") < seconds(kind, 2.0, "T4")


def test_nats_a_character_are_nats_a_token_over_the_tokens_characters(bench, here, monkeypatch) -> None:
    texts = ["a fine film , and a dull one .", "what a film ."]
    reviews = SimpleNamespace(load=lambda _: {"test": {"text": texts}})
    given = SimpleNamespace(reviews=lambda: reviews, sft_held_out=2, sft_tokens=6)
    monkeypatch.setattr(parameters, "load", lambda *_: given)
    row = bench["untuned"].measured("anywhere", here.policy)
    read = [" ".join(text.split()[:6]).partition(" ")[2] for text in texts]  # six words, the first is given
    assert row["texts"] == 2
    characters = sum(len(text) + 1 for text in read)
    assert row["nats_a_token"] / row["nats_a_character"] == pytest.approx(characters / (5 + 4), rel=0.2)
