"""What the README and the notebooks claim, held against the committed tables."""

import numpy as np
import pandas as pd
import pytest

from alignkit import paths
from alignkit.metrics import seed_interval
from alignkit.report import readme
from alignkit.workflow import parameters

FIGURES = paths.CHECKOUT / "figures"


def table(profile: str, name: str) -> pd.DataFrame:
    return pd.read_csv(FIGURES / profile / f"{name}.csv")


def mean_of(rows: pd.DataFrame, method: str, column: str) -> float:
    return rows.loc[rows.method == method, column].mean()


def test_the_readmes_results_are_those_of_the_tables() -> None:
    text = (paths.CHECKOUT / "README.md").read_text(encoding="utf-8")
    assert readme.START in text
    assert readme.with_results(text, FIGURES) == text


def test_the_pocket_reward_model_reaches_98_percent_of_the_exact_posteriors_pairwise_accuracy() -> None:
    rows = table("pocket", "1_reward_model")
    assert mean_of(rows, "reward", "pairwise_accuracy") >= 0.98 * mean_of(rows, "exact posterior", "pairwise_accuracy")


def test_the_pocket_reward_model_is_calibrated_to_5_percent() -> None:
    assert mean_of(table("pocket", "1_reward_model"), "reward", "ece") <= 0.05


def test_the_pocket_policys_cross_entropy_is_within_5_percent_of_the_grammars_entropy() -> None:
    assert table("pocket", "1_sft").ratio.between(1, 1.05).all()


def test_all_pairs_are_at_least_as_good_as_plain_pairs_at_equal_forwards_over_three_seeds() -> None:
    gain = table("pocket", "1_all_pairs_gain")
    assert len(gain) == 3
    mean, low, _ = seed_interval(gain.pairwise_accuracy.to_numpy())
    assert mean >= 0
    assert np.isfinite(low)
    rows = table("pocket", "1_reward_model").set_index(["method", "seed"])
    plain = rows.loc["matched"]
    every = rows.loc[f"curve_{plain.reviews.iloc[0]:.0f}"]
    forwards = ["reviews", "epochs", "forwards_per_epoch"]
    pd.testing.assert_frame_equal(every[forwards], plain[forwards])


def test_the_imdb_reward_model_from_scratch_orders_95_percent_of_the_pairs_and_gets_87_percent_of_the_signs() -> None:
    rows = table("imdb_scratch", "1_reward_model")
    assert rows.loc[rows.method == "reward", "reviews"].eq(25_000).all()
    assert mean_of(rows, "reward", "pairwise_accuracy") >= 0.95
    assert mean_of(rows, "reward", "sign_accuracy") >= 0.87


def test_the_imdb_pairs_spelled_out_cost_312_500_000_forwards() -> None:
    costs = table("imdb_scratch", "1_pair_costs").set_index(["reviews", "training"])
    spelled_out = costs.loc[("IMDB", "every pair spelled out")]
    assert (spelled_out.forwards, spelled_out["distinct pairs"]) == (312_500_000, 156_250_000)
    batch = parameters.profile_values("imdb_scratch", "1_reward_model")["reward_batch"]
    in_batch = costs.loc[("IMDB", f"in-batch all pairs, {batch} a step")]
    assert in_batch.forwards == 25_000
    assert in_batch["distinct pairs"] == pytest.approx(25_000 * batch / 4, rel=0.001)


PLACED = ("2_dpo_losses", "3_f_divergences")
COLUMNS = (
    "profile notebook method loss divergence alpha beta seed reward gold kl chosen_logp clamped unigram_entropy "
    "distinct_2 self_bleu repetition well_formed completions tokens_generated tokens_trained status"
).split()


def gain_over_sft(measure: str) -> pd.Series:
    rows = table("pocket", "2_gain").set_index(["method", "measure"])
    return rows.loc[("sigmoid", measure)]


@pytest.mark.parametrize("measure", ["reward", "gold"])
def test_in_the_pocket_world_dpo_raises_reward_and_gold_significantly_over_sft(measure: str) -> None:
    gain = gain_over_sft(measure)
    assert gain.seeds == 3
    assert gain.low > 0
    rows = table("pocket", "2_dpo_losses")
    seeds = (
        rows[rows.method == "sigmoid"].set_index("seed")[measure]
        - rows[rows.method == "sft"].set_index("seed")[measure]
    )
    assert gain[["difference", "low", "high"]].tolist() == pytest.approx(seed_interval(seeds.to_numpy()), rel=1e-3)


def test_the_entropy_of_the_words_falls_on_average_where_reverse_kl_drifts_farthest() -> None:
    rows = table("pocket", "3_f_divergences").set_index(["method", "seed"]).unigram_entropy
    weakest = min(parameters.profile_values("pocket", "3_f_divergences")["reverse_kl_betas"])
    assert (rows[f"reverse_kl β={weakest:g}"] - rows["sft"]).mean() < 0


@pytest.mark.parametrize("notebook", PLACED)
def test_every_row_has_the_columns_of_a_policy_and_its_seeds_and_completions_say_main_or_side(notebook: str) -> None:
    rows, p = table("pocket", notebook), parameters.profile_values("pocket", notebook)
    assert set(COLUMNS) <= set(rows)
    main, side = rows[rows.row == "main"], rows[rows.row == "side"]
    assert set(main.groupby("method").seed.nunique()) == {3}
    assert set(main.completions) == {p["main_completions"]}
    assert set(side.groupby("method").seed.nunique()) == {1}
    assert rows.status.eq("ok").all()
    assert rows[rows.method == "sft"].kl.abs().max() < 1e-6


def test_the_results_are_the_rows_of_all_notebooks() -> None:
    tables = [
        table("pocket", notebook) for notebook in ("0_primer", *PLACED, "4_warp", "5_improvements", "6_one_front")
    ]
    results = table("pocket", "results")
    assert len(results) == sum(map(len, tables))
    assert set(results) == set().union(*tables)


def test_gan_and_jensen_shannon_ended_in_the_same_policy() -> None:
    rows = table("pocket", "3_f_divergences").set_index("method")
    gan = rows.loc["gan"]
    b = parameters.profile_values("pocket", "3_f_divergences")["js_betas"][0]
    training = pd.read_csv(FIGURES / "pocket" / "3_gan.csv").set_index("name")
    assert gan.beta == b
    assert training.largest_difference["log-probs of held-out pairs"] <= 1e-3


def test_total_variation_does_not_move_the_policy() -> None:
    rows = table("pocket", "3_f_divergences")
    rows = rows[rows.method.str.startswith("total variation")]
    assert len(rows) == 2
    assert rows.kl.abs().max() < 1e-9


def test_dpo_finds_the_closed_form_under_every_divergence_that_supports_it_and_misses_it_under_the_others() -> None:
    gaps = table("pocket", "3_oracle")
    assert gaps[gaps.supports_dpo].gap.max() <= 1e-3
    assert gaps[~gaps.supports_dpo].groupby("divergence").gap.max().min() > 1e-2


def test_every_comparison_at_equal_kl_has_an_interval_over_three_seeds() -> None:
    rows = table("pocket", "3_matched")
    assert rows[["low", "high", "holm"]].notna().all().all()
    assert {"reward", "gold"} <= set(rows.measure)
    assert {"forward_kl", "js", "alpha 0.5"} <= set(rows.family)


# Notebook 4


@pytest.mark.parametrize("policy", ["WARP, η=0.5", "WARP, η=1"])
def test_warp_raises_the_mean_reward_over_sft_with_an_interval_clear_of_zero(policy: str) -> None:
    gain = table("pocket", "4_gain").set_index(["policy", "measure"]).loc[(policy, "reward")]
    assert gain.seeds == 3
    assert gain.low > 0


def test_warps_main_rows_have_every_seed_and_32_completions_of_100_prompts() -> None:
    rows, p = table("pocket", "4_warp"), parameters.profile_values("pocket", "4_warp")
    main = rows[rows.row == "main"]
    assert (p["prompts"], p["main_completions"]) == (100, 32)
    assert set(main.completions) == {p["main_completions"]}
    places = main.groupby(["method", "iteration", "eta", "steps"]).seed.nunique()
    assert set(places) == {len(p["seeds"])}
    assert {"sft", "WARP", "LERP", *(f"WARP, μ={rate:g}" for rate in p["ema_rates"])} <= set(main.method)
    assert rows.status.eq("ok").all()


def test_the_three_points_of_mu_have_intervals_over_three_seeds() -> None:
    rows = table("pocket", "4_mu_points")
    assert rows.seeds.tolist() == [3, 3, 3]
    assert rows.filter(regex="_(low|high)$").notna().all(axis=None)


def test_slerp_and_lerp_are_compared_at_equal_kl_with_an_interval() -> None:
    rows = table("pocket", "4_merges_matched")
    rows = rows[rows.family == "LERP"]
    assert set(rows.measure) == {"reward", "gold"}
    assert rows[["low", "high", "holm"]].notna().all(axis=None)


def test_padding_changes_the_log_prob_of_a_text_in_trls_rloo_trainer_and_not_here() -> None:
    rows = table("pocket", "4_padding")
    assert rows.left_pads.tolist() == list(range(9))
    assert rows.alignkit.max() - rows.alignkit.min() <= 1e-4  # of six digits in the table
    assert rows.trl.max() - rows.trl.min() > 0.1


def test_k1_beats_the_exact_estimate_of_the_kl_at_the_optimum_for_a_rare_prize_only() -> None:
    rows = table("pocket", "4_kl_estimators").set_index(["case", "estimate"])
    assert rows.bias.drop(index="k2", level="estimate").abs().max() <= 1e-5
    quieter = {case: here["standard deviation"][case].idxmin() for case, here in rows.groupby(level="case")}
    assert quieter.pop("optimum for a rare prize") == "k1"
    assert set(quieter.values()) == {"exact"}


def test_the_time_of_warp_is_told_with_its_parts() -> None:
    rows = table("pocket", "4_timings_of_warp")
    parts = rows[["generation", "scoring", "update"]].sum(axis=1)
    assert (parts <= rows.total).all()
    assert (parts >= 0.8 * rows.total).all()
    assert set(rows.runs) == {4}


@pytest.mark.parametrize("profile", ["pocket", "imdb_scratch"])
def test_every_figure_has_its_vector_form_beside_it(profile: str) -> None:
    pictures = {f.stem for f in (FIGURES / profile).glob("*.png")}
    assert pictures
    assert pictures == {f.stem for f in (FIGURES / profile).glob("*.svg")}


@pytest.mark.parametrize("profile", ["pocket", "imdb_scratch"])
def test_every_row_of_a_reward_model_has_its_run_in_the_index(profile: str) -> None:
    rows = table(profile, "1_reward_model").dropna(subset="seed")
    index = table(profile, "1_runs")
    assert set(zip(rows.method, rows.seed, strict=True)) <= set(zip(index.run, index.seed, strict=True))


def test_anchored_rloo_beats_warp_and_warp_with_rloo_in_hypervolume_on_five_seeds_that_no_choice_was_made_on() -> None:
    gain = table("pocket", "5_confirmation_gain")
    assert {"WARP", "WARP + RLOO"} <= set(gain.method)
    assert set(gain.measure) == {"reward", "gold"}
    assert gain.seeds.eq(5).all()
    assert (gain.low > 0).all()
    p = parameters.load(paths.PARAMS / "pocket" / "5_improvements.yaml")
    assert p.seeds[0] not in set(table("pocket", "5_confirmation").seed)
    tokens = table("pocket", "5_confirmation").groupby("method").tokens.mean()
    assert tokens.max() / tokens.min() < 1.15


def test_the_best_method_has_98_percent_of_the_optimal_gain_at_kl_1_and_at_kl_2_over_three_seeds() -> None:
    efficiency = table("pocket", "6_efficiency")
    efficiency = efficiency[efficiency.seeds == 3]
    assert efficiency["KL 1"].max() >= 0.98
    assert efficiency["KL 2"].max() >= 0.98


def test_no_policy_lies_above_the_optimal_frontier_beyond_the_simultaneous_bound() -> None:
    checked = table("pocket", "6_above")
    assert len(checked) > 100
    assert not checked.above.any()


def test_reinforce_interpolated_back_is_level_with_warp_for_a_quarter_of_its_tokens() -> None:
    shares = table("pocket", "6_efficiency").set_index("family")
    tokens = table("pocket", "6_hypervolume").groupby("method").tokens.mean()
    for kl in ("KL 0.5", "KL 1", "KL 2"):
        assert shares[kl]["REINFORCE, EMA anchor"] == pytest.approx(shares[kl]["WARP, T=50"], abs=0.03)
    assert tokens["REINFORCE, EMA anchor"] < 0.25 * tokens["WARP, T=50"]


def test_policies_held_at_sft_keep_more_gold_for_their_proxy_than_the_proxys_optimum() -> None:
    optimum = table("pocket", "6_frontier_gains")
    kept = optimum.gold[optimum.kl == 2] / optimum.reward[optimum.kl == 2]
    swept = table("pocket", "6_settings")
    swept = swept[swept.family == "anchored RLOO, over β"]
    assert ((swept.gold / swept.reward) > kept.item()).all()
    assert kept.item() == pytest.approx(0.70, abs=0.02)
