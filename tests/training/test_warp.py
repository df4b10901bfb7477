"""Algorithm 1 over stored runs, its merges and its front."""

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers import as_run, called, profile_values
from safetensors.torch import load_file

from alignkit.merging import angles, liti, slerp
from alignkit.report.algorithm import warp
from alignkit.report.policies import Policy, points, rows
from alignkit.report.warp import seconds_of, variations
from alignkit.training.evaluate import evaluate
from alignkit.training.merge import between, evaluate_interpolation, interpolate, merge_policies, state_of
from alignkit.training.reinforce import LoopSettings, train_policy_gradient
from alignkit.workflow import schema
from alignkit.workflow.store import Run, get

LOOP = LoopSettings(
    reward_tokens=64, steps=2, batch=8, k=1, baseline="none", beta=0.5, lr=1e-2, warmup=0, anchor="ema", ema_rate=0.1,
    max_new_tokens=8,
)  # fmt: skip
SAMPLED = {"reward_tokens": 64, "n_prompts": 4, "k": 2, "max_new_tokens": 8}


@pytest.fixture
def sft(world, build: Path) -> Run:
    return as_run(world.sft, "sft")


@pytest.fixture
def shared(world) -> dict[str, Any]:
    return {"seed": 0, "data": world.data, "reward": as_run(world.reward, "reward")}


def weights(run: Run | Path) -> dict[str, torch.Tensor]:
    return load_file((run.path if isinstance(run, Run) else run) / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_one_run_and_one_iteration_is_plain_reinforce_to_the_bit(sft: Run, shared, tmp_path: Path):
    [done] = warp(sft, LOOP, shared, iterations=1, runs=1, eta=1.0)
    plain = {**shared, "reward": shared["reward"].path, "policy": sft.path, "reference": sft.path, "stream": [0, 0]}
    train_policy_gradient(tmp_path, LOOP, **plain)
    assert same(weights(done.merged), weights(tmp_path))
    assert same(weights(done.next_init), weights(tmp_path))
    assert not same(weights(tmp_path), weights(sft))


def test_the_runs_of_an_iteration_differ_by_their_random_stream(sft: Run, shared):
    [done] = warp(sft, LOOP, shared, iterations=1, runs=2, eta=0.5)
    one, two = (pd.read_csv(theta.path / "history.csv") for theta in done.thetas)
    assert one.kl_anchor[0] == two.kl_anchor[0] == 0
    assert one.reward[0] != two.reward[0]
    assert not same(weights(done.thetas[0]), weights(done.thetas[1]))
    records = [theta.record["inputs"] for theta in done.thetas]
    assert [record.pop("stream") for record in records] == [[0, 0], [0, 1]]
    assert records[0] == records[1]


@pytest.mark.slow
def test_a_run_that_another_process_trained_has_the_same_weights(sft: Run, shared, tmp_path: Path):
    """So the runs of an iteration can be trained side by side, in any order."""
    [done] = warp(sft, LOOP, shared, iterations=1, runs=2, eta=0.5)
    models = {"reward": str(shared["reward"].path), "policy": str(sft.path), "reference": str(sft.path)}
    call = (
        "import json, sys; from pathlib import Path; from alignkit.world.reviews import Reviews\n"
        "from alignkit.training.reinforce import LoopSettings, train_policy_gradient\n"
        "settings, data, models = map(json.loads, sys.argv[2:])\n"
        "models = {name: Path(folder) for name, folder in models.items()}\n"
        "inputs = {'seed': 0, 'data': Reviews(**data), 'stream': [0, 1]}\n"
        "train_policy_gradient(Path(sys.argv[1]), LoopSettings(**settings), **inputs, **models)"
    )
    arguments = [str(tmp_path), *(json.dumps(values) for values in (asdict(LOOP), asdict(shared["data"]), models))]
    subprocess.run([sys.executable, "-c", call, *arguments], check=True, capture_output=True)
    assert same(weights(tmp_path), weights(done.thetas[1]))


def test_each_iteration_starts_part_of_the_way_to_the_last_merge(sft: Run, shared):
    first, second = warp(sft, LOOP, shared, iterations=2, runs=2, eta=0.25)
    start, ends = state_of(sft.path), [state_of(theta.path) for theta in first.thetas]
    expected = liti(start, slerp(start, ends), 0.25)
    assert same(expected, state_of(second.init.path))
    assert [theta.record["runs"]["policy"] for theta in second.thetas] == [first.next_init.id] * 2
    assert [theta.record["runs"]["reference"] for theta in second.thetas] == [sft.id] * 2


def test_another_merge_shares_the_runs_of_the_first_iteration(sft: Run, shared):
    spherical = warp(sft, LOOP, shared, iterations=1, runs=2, eta=0.5)
    linear = warp(sft, LOOP, shared, iterations=1, runs=2, eta=0.5, how="lerp")
    assert spherical[0].thetas == linear[0].thetas
    assert not same(weights(spherical[0].merged), weights(linear[0].merged))


def test_the_front_begins_at_the_sft_policy_and_ends_at_the_merge(world, sft: Run, shared, tmp_path: Path):
    [done] = warp(sft, LOOP, shared, iterations=1, runs=2, eta=0.5)
    settings = {"seed": 0, "data": world.data, **SAMPLED, "reference": world.sft, "reward": world.reward}
    for eta, policy in ((0.0, world.sft), (1.0, done.merged.path)):
        front, alone = tmp_path / f"front {eta}", tmp_path / f"alone {eta}"
        front.mkdir()
        alone.mkdir()
        point = called(evaluate_interpolation, front, init=world.sft, merged=done.merged.path, eta=eta, **settings)
        assert point == called(evaluate, alone, policy=policy, **settings)
        assert (front / "completions.parquet").read_bytes() == (alone / "completions.parquet").read_bytes()
        assert sorted(file.name for file in front.iterdir()) == ["completions.parquet"]
    assert point["kl"] > 0


def test_a_merge_writes_a_policy_and_the_angle_of_each_layer(sft: Run, shared, tmp_path: Path):
    [done] = warp(sft, LOOP, shared, iterations=1, runs=2, eta=0.5)
    told = pd.read_csv(done.merged.path / "angles.csv").set_index("layer").angle
    assert told.between(0, 180).all()
    assert {"transformer.h.0", "transformer.wte"} <= set(told.index)
    assert done.merged.metrics["angle"] == pytest.approx(told.mean())
    alone = called(merge_policies, tmp_path, init=sft.path, thetas=[done.thetas[0].path])
    assert pd.isna(alone["angle"])
    assert same(weights(tmp_path), weights(done.thetas[0]))


@pytest.mark.parametrize(("how", "step"), [("slerp", 1), ("raw slerp", None)])
def test_a_merge_is_what_its_name_and_step_say(sft: Run, shared, tmp_path: Path, how: str, step: int | None):
    [done] = warp(sft, replace(LOOP, keep=(1,)), shared, iterations=1, runs=2, eta=0.5)
    folders, start = [theta.path for theta in done.thetas], state_of(sft.path)
    ends = [state_of(folder / f"step-{step}" if step else folder) for folder in folders]
    base = start if how == "slerp" else {name: torch.zeros_like(weight) for name, weight in start.items()}
    merge_policies(tmp_path, init=sft.path, thetas=folders, how=how, step=step)
    assert same(state_of(tmp_path), slerp(base, ends))
    told = pd.read_csv(tmp_path / "angles.csv").set_index("layer").angle.to_dict()
    assert told == pytest.approx({layer: found[0, 1].item() for layer, found in angles(start, ends).items()}, abs=1e-3)
    assert min(told.values()) > 1


def test_a_share_of_the_arc_is_slerp_with_that_weight(world, sft: Run, shared, tmp_path: Path):
    [done] = warp(sft, LOOP, shared, iterations=1, runs=2, eta=0.5)
    first, second = (theta.path for theta in done.thetas)
    between(tmp_path, init=sft.path, first=first, second=second, share=0.3)
    expected = slerp(state_of(sft.path), [state_of(first), state_of(second)], [0.7, 0.3])
    assert same(state_of(tmp_path), expected)


def test_interpolating_half_way_is_the_mean_of_the_two(sft: Run, shared, tmp_path: Path):
    [done] = warp(sft, LOOP, shared, iterations=1, runs=1, eta=0.5)
    called(interpolate, tmp_path, init=sft.path, merged=done.merged.path, eta=0.5)
    start, end, middle = weights(sft), weights(done.merged), weights(tmp_path)
    assert all(torch.allclose(middle[name], (start[name] + end[name]) / 2, atol=1e-7) for name in start)


def test_a_list_of_runs_counts_by_its_ids_and_their_order(sft: Run, shared):
    [done] = warp(sft, LOOP, shared, iterations=1, runs=2, eta=0.5)
    one, two = done.thetas
    again = get(merge_policies, init=sft, thetas=[one, two], how="slerp")
    assert again == done.merged
    assert get(merge_policies, init=sft, thetas=[two, one], how="slerp") != done.merged
    assert again.record["runs"]["thetas"] == [one.id, two.id]


# Notebook 4's runs


@pytest.fixture(scope="module")
def small(world) -> schema.Warp:
    values = profile_values("smoke", "4_warp")
    sizes = {name: vars(world.data)[name] for name in ("train_reviews", "test_reviews", "unsupervised_reviews")}
    sizes |= {"warp_steps": 2, "step_counts": [1, 2], "prompts": 4, "new_tokens": 8}
    return schema.Warp.model_validate(values | sizes)


@pytest.fixture(scope="module")
def evaluated(world, small: schema.Warp, tmp_path_factory: pytest.TempPathFactory) -> list[Policy]:
    sft = as_run(world.sft, "sft")
    reinforce = next(v for v in variations(small) if v.name == "REINFORCE, EMA anchor")
    whole = next(v for v in variations(small) if v.name == "WARP")
    reward = as_run(world.reward, "reward")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGNKIT_BUILD", str(tmp_path_factory.mktemp("build")))
        return [point for variation in (whole, reinforce) for point in points(small, 0, sft, reward, variation)]


def test_the_points_of_a_variation_are_its_fronts_and_its_earlier_steps(small: schema.Warp, evaluated: list[Policy]):
    found = [(p.method, p.where["iteration"], p.where["eta"], p.where["steps"], len(p.trained)) for p in evaluated]
    fronts = [("WARP", i, eta, 2, 2 * i) for i in (1, 2) for eta in small.etas]
    alone = [("REINFORCE, EMA anchor", 1, eta, 2, 1) for eta in small.etas]
    assert found == [*fronts, *alone, ("REINFORCE, EMA anchor", 1, 1.0, 1, 1)]
    assert evaluated[0].trained[0] == evaluated[-1].trained[0]


def test_what_is_interpolated_back_is_joined_to_no_earlier_point(small: schema.Warp, evaluated: list[Policy]):
    families = [point.family for point in evaluated]
    n = len(small.etas)
    assert families == [""] * n + ["WARP, T=2"] * n + ["REINFORCE, EMA anchor"] * n + [""]


def test_variations_have_own_names_and_the_task_setting_is_main(small: schema.Warp):
    names = [variation.name for variation in variations(small)]
    assert len(set(names)) == len(names)
    first = variations(small)[0]
    assert (first.name, first.iterations, first.runs, first.main, dict(first.changes)) == ("WARP", 2, 2, True, {})


def test_each_row_tells_its_settings_and_what_all_its_runs_cost(small: schema.Warp, evaluated: list[Policy]):
    table = rows(evaluated, small)
    assert len(table) == len(evaluated)
    last = table[(table.method == "WARP") & (table.iteration == 2) & (table.eta == 1)].iloc[0]
    assert (last.runs, last.ema_rate, last.anchor, last.row, last.status) == (2, 0.01, "ema", "main", "ok")
    assert set(table.row[table.method == "WARP"]) == {"main"}
    spent = sum(run.metrics["tokens_generated"] for point in evaluated[2:3] for run in point.trained)
    assert last.tokens_generated == spent
    assert table.kl.notna().all()
    # What a run had cost at an earlier step is not known.
    assert table.tokens_generated.isna().tolist() == [*[False] * (len(table) - 1), True]


def test_seconds_add_up_over_all_runs_of_the_algorithm(evaluated: list[Policy]):
    cost = seconds_of({0: evaluated}, "WARP")
    assert cost.runs.tolist() == [4]
    assert cost[["generation", "scoring", "update"]].sum(axis=1).item() <= cost.total.item() + 0.2
