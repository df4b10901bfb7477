"""The row that a policy has in a table, on hand-made runs."""

import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from alignkit import paths
from alignkit.faults import UserFault
from alignkit.report import dpo_losses, f_divergences, improvements, one_front, warp
from alignkit.report.policies import (
    Method,
    Policy,
    aligned,
    each_once,
    finite,
    named_runs,
    paired,
    policies_on_pairs,
    rows,
)
from alignkit.training.dpo import DpoSettings
from alignkit.workflow import parameters

P = SimpleNamespace(profile="smoke", notebook="2_dpo_losses", base_seed=None)
TRAINED = {"status": "ok", "eval_loss": 0.5, "chosen_logp": -9.0, "rejected_logp": -8.0, "accuracy": 0.75}
TRAINED |= {"clamped": 0.0, "tokens_trained": 1234}
USUAL = DpoSettings("sigmoid", "reverse_kl", beta=0.1, epochs=1.0, batch=8, lr=0.001)
METHODS = [
    Method("sigmoid", {}, main=True, family="DPO, sigmoid loss"),
    Method("strong", {}, family="DPO, sigmoid loss"),
    Method("other pairs", {}, pairs="pairs: all_pairs"),
    Method("broken", {}),
    Method("on fewer", {}, pairs="pairs: fewer"),
    Method("never trained", {}),
]


@pytest.fixture
def runs(run):
    """Two seeds; sft and sigmoid for both, the others for the first."""

    def evaluated(reward: float):
        return run({"status": "ok", "reward": reward, "kl": 2 * reward})

    out = {}
    for seed in (0, 1):
        by_name = {"sft": run({}), "sft: evaluation": evaluated(0.0), "generations": run({"tokens_generated": 999})}
        by_name |= {"pairs": run({}), "pairs: all_pairs": run({}), "pairs: fewer": run({}, share=0.25)}
        by_name |= {"sigmoid": run(TRAINED, asdict(USUAL)), "sigmoid: evaluation": evaluated(1.0 + seed)}
        if seed == 0:
            strong = asdict(replace(USUAL, beta=1.0))
            by_name |= {"strong": run(TRAINED, strong), "strong: evaluation": evaluated(0.5)}
            by_name |= {"other pairs": run(TRAINED, asdict(USUAL)), "other pairs: evaluation": evaluated(0.7)}
            broken = run(TRAINED | {"status": "diverged"}, asdict(replace(USUAL, beta=0.5)))
            by_name |= {"broken": broken, "broken: evaluation": evaluated(7.0)}
            by_name |= {"on fewer": run(TRAINED, asdict(USUAL)), "on fewer: evaluation": evaluated(0.6)}
        out[seed] = by_name
    return out


@pytest.fixture
def table(runs) -> pd.DataFrame:
    return rows(policies_on_pairs(runs, METHODS), P)


def test_every_policy_has_one_row_with_its_run_and_numbers(table: pd.DataFrame, runs) -> None:
    expected = {
        (key.removesuffix(": evaluation"), seed, run.id)
        for seed, by_name in runs.items()
        for key, run in by_name.items()
        if key.endswith(": evaluation")
    }
    assert set(zip(table.method, table.seed, table.run, strict=True)) == expected
    assert len(table) == len(expected) == 8
    sigmoid = table[table.method == "sigmoid"]
    assert sigmoid.reward.tolist() == [1.0, 2.0]
    assert sigmoid.kl.tolist() == [2.0, 4.0]
    assert (set(table.profile), set(table.notebook)) == ({P.profile}, {P.notebook})


def test_a_row_shows_what_training_was_asked_for_measured_and_cost(table: pd.DataFrame) -> None:
    row = table[table.method == "sigmoid"].iloc[0]
    shown = {"loss": "sigmoid", "divergence": "reverse_kl", "beta": 0.1, "batch": 8, "lr": 0.001, "pairs": "pairs"}
    assert row[list(shown)].to_dict() == shown
    assert row[["eval_loss", "accuracy", "tokens_generated", "tokens_trained"]].tolist() == [0.5, 0.75, 999, 1234]
    others = table.drop_duplicates("method").set_index("method")
    assert others.pairs["other pairs"] == "pairs: all_pairs"
    assert others.tokens_generated["on fewer"] == 250  # pairs of a quarter of the prompts need a quarter of the draws
    assert pd.isna(others.loss["sft"])
    assert np.isnan(others.tokens_trained["sft"])


def test_family_and_main_rows_are_those_of_the_recipe(table: pd.DataFrame) -> None:
    found = table.drop_duplicates("method").set_index("method")
    families = {"sft": "sft", "sigmoid": "DPO, sigmoid loss", "strong": "DPO, sigmoid loss"}
    assert found.family.to_dict() == families | {"other pairs": "", "broken": "", "on fewer": ""}
    assert found.index[found.row == "main"].tolist() == ["sft", "sigmoid"]


def test_a_policy_of_a_diverged_run_keeps_its_row_without_numbers(table: pd.DataFrame) -> None:
    row = table[table.method == "broken"].iloc[0]
    assert (row.status, row.beta) == ("diverged", 0.5)
    assert row[["reward", "kl"]].isna().all()
    assert (table.status[table.method != "broken"] == "ok").all()


@pytest.mark.parametrize(
    "metrics", [{"status": "diverged", "diverged_at": 3, "loss": 1.0}, {"status": "ok", "loss": float("nan")}]
)
def test_a_start_that_diverged_is_one_line_with_the_rate(run, metrics: dict) -> None:
    broken = run(metrics)
    (broken.path / "run.json").write_text(
        json.dumps({"metrics": metrics, "settings": {"lr": 7}, "inputs": {"seed": 2}})
    )
    with pytest.raises(
        UserFault, match=r"^sft_lr: with 7 its weights are not finite after step .* of seed 2; try less$"
    ):
        finite("sft", broken)
    sound = run({"status": "ok", "loss": 1.0})
    assert finite("sft", sound) is sound


def test_a_row_of_several_runs_has_the_tokens_of_all(run) -> None:
    spent = {"tokens_generated": 3, "tokens_trained": 5}
    sound, broken = run({"status": "ok"} | spent), run({"status": "diverged"} | spent)
    record = run({"status": "ok", "kl": 1.0})
    merged = Policy("WARP", 0, record, trained=(sound, sound), where={"iteration": 1, "eta": 0.5, "steps": 4})
    found = rows([merged, replace(merged, trained=(sound, broken))], P)
    assert found.tokens_generated.tolist() == [6, 6]
    assert found.status.tolist() == ["ok", "diverged"]
    assert found.kl.isna().tolist() == [False, True]
    assert found.loc[0, ["iteration", "eta", "steps"]].tolist() == [1, 0.5, 4]


def test_pairs_that_none_are_left_of_name_what_decides_it(run, monkeypatch) -> None:
    def get(*_, **__):
        raise UserFault("pairs: 'threshold' leaves no pair in train; allowed: settings that leave some")

    monkeypatch.setattr("alignkit.report.policies.get", get)
    p = SimpleNamespace(winner_reward=1.0, loser_reward=-1.0)
    with pytest.raises(UserFault, match="settings that leave some, of pair_samples, winner_reward and loser_reward"):
        paired(p, 0, {"generations": run({})}, "threshold")


def test_seeds_that_share_the_supervised_policy_share_its_measures(run) -> None:
    drawn = [run({"status": "ok", "reward": reward, "kl": 0.0}) for reward in (1.0, 2.0)]
    supervised = [Policy("sft", seed, record, True, "sft") for seed, record in enumerate(drawn)]
    trained = Policy("sigmoid", 0, run({"status": "ok", "reward": 5.0, "kl": 1.0}))
    own = rows([*supervised, trained], P)
    assert own.reward.tolist() == [1.0, 2.0, 5.0]
    shared = rows([*supervised, trained], SimpleNamespace(**vars(P) | {"base_seed": 0}))
    assert shared.reward.tolist() == [1.5, 1.5, 5.0]
    pd.testing.assert_frame_equal(shared.drop(columns="reward"), own.drop(columns="reward"))


def test_runs_behind_several_points_are_named_once(run) -> None:
    theta, merge, first, second = (run({}) for _ in range(4))
    where = {"iteration": 1, "steps": 4}
    points = [Policy("WARP", 0, record, trained=(theta,), merged=merge, where={**where, "eta": eta})
              for record, eta in ((first, 0.5), (second, 1.0))]  # fmt: skip
    named = each_once({"sft": first}, [pair for point in points for pair in named_runs(point)])
    assert list(named.values()) == [first, theta, merge, second]
    assert len(named) == 4


def test_side_rows_are_of_the_first_seed_and_take_as_many_steps(run, monkeypatch) -> None:
    asked = []

    def get(train, settings=None, **inputs):
        asked.append((train.__name__, settings))
        return run({"status": "ok"})

    monkeypatch.setattr("alignkit.report.policies.get", get)
    p = parameters.load(paths.PARAMS / "smoke" / "2_dpo_losses.yaml")
    start = {name: run({}) for name in ("sft", "reward")}
    start |= {"pairs": run({"train_pairs": 100}), "pairs: all_pairs": run({"train_pairs": 400})}
    choice = {"loss": "sigmoid", "divergence": "reverse_kl", "beta": 0.1}
    methods = [method._replace(settings=choice) for method in METHODS[:3]]
    assert set(aligned(p, p.seeds[0], methods, start)) - set(start) == {
        f"{name}{part}" for name in ("sigmoid", "strong", "other pairs") for part in ("", ": evaluation")
    }
    epochs = [settings.epochs for name, settings in asked if name == "train_dpo"]
    assert epochs == pytest.approx([p.dpo_epochs, p.dpo_epochs, p.dpo_epochs / 4])
    assert set(aligned(p, p.seeds[0] + 1, methods, start)) - set(start) == {"sigmoid", "sigmoid: evaluation"}


def test_on_policy_dpo_takes_its_twins_steps_and_rounds_follow_each_other(run, monkeypatch) -> None:
    asked = []

    def get(train, settings=None, **inputs):
        made = run({"status": "ok", "train_pairs": 25, "tokens_generated": 7})
        asked.append((train.__name__, settings, inputs, made))
        return made

    monkeypatch.setattr("alignkit.report.policies.get", get)
    monkeypatch.setattr("alignkit.report.dpo_losses.get", get)
    p = parameters.load(paths.PARAMS / "smoke" / "2_dpo_losses.yaml").model_copy(update={"on_policy_rounds": 2})
    start = {name: run({}) for name in ("sft", "reward")} | {"pairs": run({"train_pairs": 100})}
    twins = {name: run({}, asdict(replace(USUAL, beta=3.0))) for name in dpo_losses.names_over_beta(p)}
    found = dpo_losses.on_policy(p, 0, start | twins)
    first, second = [(s, inputs, made) for name, s, inputs, made in asked if name == "train_dpo"][:2]
    assert first[0] == second[0]
    assert first[0].beta == 3.0
    assert sum(s.epochs * 25 for s, *_ in (first, second)) == pytest.approx(USUAL.epochs * 100)
    assert (first[1]["policy"], second[1]["policy"]) == (start["sft"], first[2])
    again = [inputs for name, _, inputs, _ in asked if name == "generate"][:2]
    assert [(inputs["policy"], inputs["part"]) for inputs in again] == [(start["sft"], 0), (first[2], 1)]
    evaluations = [inputs for name, _, inputs, _ in asked if name == "evaluate"]
    assert evaluations[0]["policy"] == second[2]
    assert all(inputs["reference"] == start["sft"] for inputs in [*again, *evaluations])
    assert f"on-policy {dpo_losses.names_over_beta(p)[0]}: evaluation" in found


# Families


@pytest.fixture(params=["smoke", "pocket", "imdb_scratch", "imdb"])
def profile(request) -> str:
    return request.param


def load(profile: str, notebook: str):
    return parameters.load(paths.PARAMS / profile / f"{notebook}.yaml")


def test_what_is_trained_on_usual_pairs_at_the_usual_rate_has_a_family(profile: str) -> None:
    chosen = {"loss", "divergence", "alpha", "beta", "label_smoothing"}
    for module, notebook in (
        (dpo_losses, "2_dpo_losses"),
        (f_divergences, "3_f_divergences"),
        (improvements, "5_improvements"),
    ):
        for method in module.methods(load(profile, notebook)):
            usual = method.pairs == "pairs" and set(method.settings) <= chosen
            assert bool(method.family) == usual, method.name


def test_a_sweep_over_beta_is_one_family_and_other_methods_are_others(profile: str) -> None:
    for module, notebook in ((f_divergences, "3_f_divergences"), (improvements, "5_improvements")):
        methods = [method for method in module.methods(load(profile, notebook)) if method.family]
        by_family = pd.DataFrame(
            [(m.family, m.settings["loss"], m.settings["divergence"], m.settings.get("alpha")) for m in methods]
        )
        assert len(by_family.drop_duplicates()) == by_family[0].nunique()


def test_every_variation_but_what_an_earlier_report_did_is_on_a_front(profile: str) -> None:
    without = {v.name for v in warp.variations(load(profile, "4_warp")) if not v.family}
    assert without == {"frozen θ^m", "greedy decoding", "token mean with prompt"}
    assert all(v.family for v in improvements.ideas(load(profile, "5_improvements")))


def test_the_anchored_method_over_beta_is_not_the_one_over_eta(profile: str) -> None:
    names = [v.family for v in improvements.ideas(load(profile, "5_improvements"))]
    assert len(set(names)) == len(names)
    assert one_front.SWEPT not in names
