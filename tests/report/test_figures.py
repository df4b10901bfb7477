"""A method keeps its look, figures draw all that they are given, and tables are shown without what says nothing."""

import html
import re

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from alignkit import paths
from alignkit.report import dpo_losses, f_divergences, figures, improvements, looks, one_front, warp
from alignkit.workflow import parameters


@pytest.fixture(autouse=True)
def style():
    figures.house_style()
    yield
    plt.close("all")


@pytest.fixture(params=["smoke", "pocket", "imdb_scratch", "imdb"])
def profile(request) -> str:
    return request.param


def load(profile: str, notebook: str):
    return parameters.load(paths.PARAMS / profile / f"{notebook}.yaml")


def drawn_together(profile: str) -> dict[str, list[str]]:
    """The families of single figures."""
    p2, p3, p5 = (load(profile, name) for name in ("2_dpo_losses", "3_f_divergences", "5_improvements"))
    p4, p6 = load(profile, "4_warp"), load(profile, "6_one_front")
    sigmoid = [m.family for m in improvements.methods(p5) if m.settings["loss"] == "sigmoid"]
    pairs = [f"{name} pairs" for name in dpo_losses.other_pairs(p2)]
    alphas = ("alpha", "reverse_kl", "forward_kl")
    main = [m.family for m in f_divergences.methods(p3) if m.main]
    return {
        "2_plane": [m.family for m in dpo_losses.methods(p2) if m.main and m.family],
        "2_others": ["DPO, sigmoid loss", *pairs, "DPO, ipo_per_token loss", "no near-duplicates", "lora"],
        "2_beyond": ["DPO, sigmoid loss", dpo_losses.ON_POLICY, dpo_losses.IMITATION],
        "2_baselines": ["DPO, sigmoid loss", "positive prefix", "keyword bias", "guided search",
                        dpo_losses.IMITATION, "best of n (KL bound)"],
        "3_plane": main,
        "3_alphas": [m.family for m in f_divergences.methods(p3) if m.family and m.settings["divergence"] in alphas],
        "4_anchors": [v.name for v in warp.variations(p4) if v.name.startswith("REINFORCE")],
        "4_merges": ["SLERP", "LERP", "raw SLERP (one seed)"],
        "4_iterations": ["REINFORCE, EMA anchor", *(f"WARP, iteration {i + 1}" for i in range(p4.warp_iterations))],
        "4_runs_and_steps": [f"M={m}" for m in p4.run_counts],
        "5_divergences": sigmoid,
        "5_losses": [m.family for m in improvements.methods(p5) if m.settings["loss"] != "sigmoid"],
        "5_fronts": [*improvements.COMPARED, improvements.ANCHORED],
        "6_one_front": [*one_front.DRAWN, one_front.warp_family(p6),
                        one_front.one_of(f"{one_front.APPROACHED}, β={p6.approach_betas[-1]:g}", max(p6.resample))],
    }  # fmt: skip


def test_in_one_figure_no_two_families_share_a_colour_or_a_marker(profile: str):
    for figure, names in drawn_together(profile).items():
        names = list(dict.fromkeys(["sft", *names]))
        seen = looks.looks(names)
        assert len({str(look.color) for look in seen.values()}) == len(names), figure
        assert len({look.marker for look in seen.values()}) == len(names), figure


def test_a_method_looks_the_same_in_every_figure(profile: str):
    own: dict[str, looks.Look] = {}
    for names in drawn_together(profile).values():
        for name, seen in looks.looks(names).items():
            if looks.look(name) is not None:
                assert own.setdefault(name, seen) == seen
    assert len(own) > 30


def test_names_of_one_method_look_alike():
    for alike in (["WARP", "WARP, T=50", "WARP, T=100", "SLERP"], ["DPO, sigmoid loss", "DPO, reverse_kl"],
                  ["anchored RLOO", "anchored RLOO, over η", "anchored RLOO, over β"]):  # fmt: skip
        assert len({looks.look(name) for name in alike}) == 1
    assert looks.look("SFT, one of 4") is None


def test_of_two_with_one_look_in_a_figure_the_first_keeps_it():
    names = ["DPO", "WARP, T=40", "WARP, T=100"]
    seen = looks.looks(names)
    assert list(seen) == names
    assert seen["WARP, T=40"] == looks.look("WARP")
    assert len({str(look.color) for look in seen.values()}) == len({look.marker for look in seen.values()}) == 3


def test_stages_of_a_method_have_shades_of_its_colour():
    seen = looks.looks(["REINFORCE, EMA anchor", "WARP, iteration 1", "WARP, iteration 2"])
    assert seen["WARP, iteration 2"].color == looks.look("WARP").color
    assert len({look.color for look in seen.values()}) == 3


def table(names: list[str]) -> pd.DataFrame:
    """Two seeds, three places on a front for each family, and SFT."""
    rows = [("sft", seed, 0.0, 0.0, 0.0) for seed in (0, 1)]
    rows += [(name, seed, eta, eta * (i + 1), eta + seed) for i, name in enumerate(names) for seed in (0, 1)
             for eta in (0.3, 0.6, 1.0)]  # fmt: skip
    return pd.DataFrame(rows, columns=["family", "seed", "eta", "kl", "reward"]).assign(beta=lambda t: t.eta)


def lines(figure, label: str) -> list:
    return [line for axis in figure.axes for line in axis.get_lines() if line.get_label() == label]


def test_every_family_of_a_front_is_drawn_and_those_apart_not_joined():
    names = [f"M={m}" for m in range(1, 14)]
    figure = figures.fronts(table(names), "kl", ["reward"], "eta", apart=["M=13"])
    for name in names[:-1]:
        (line,) = lines(figure, name)
        assert line.get_xdata()[0] == 0
        assert line.get_linestyle() == "-"
    (alone,) = lines(figure, "M=13")
    assert alone.get_linestyle() == "None"
    assert len(alone.get_xdata()) == 3


def test_every_family_of_a_plane_is_in_the_legend_below_the_panels():
    names = [f"method {i}" for i in range(15)]
    figure = figures.fronts(table(names), "kl", ["reward", "gold"], "beta")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names, "sft"]
    assert len(figure.axes) == 1  # no gold in the table
    figure.canvas.draw()
    below = figure.legends[0].get_window_extent()
    assert below.y1 <= figure.axes[0].get_window_extent().y0


@pytest.mark.parametrize("most", [0.05, 0.7, 2.1, 4, 15, 40])
def test_marks_of_a_kl_are_round_and_have_room_between_them(most: float):
    _, (axis,) = figures.panels(1)
    axis.set(xlim=(0, most), xlabel="KL")
    figures.root_scale(axis, "x")
    marks, written = axis.get_xticks(), [text.get_text() for text in axis.get_xticklabels()]
    assert written == [f"{mark:g}" for mark in marks]
    assert 4 <= len(marks) <= 9
    assert np.diff(np.sqrt(marks)).min() > np.sqrt(most) / 9
    assert (marks[0], axis.get_xscale(), axis.get_xlabel()) == (0, "function", "KL, √ scale")


def test_no_row_of_a_forest_lies_on_its_frame():
    rows = pd.DataFrame({"label": ["a", "b"], "difference": 1.0, "low": 0.5, "high": 1.5, "holm": [0.01, 0.5]})
    (axis,) = figures.forest(rows, "label", "difference").axes
    assert axis.get_ylim() == (1.5, -0.5)


def test_a_forest_has_a_block_for_each_method_compared_with():
    rows = pd.DataFrame({"family": ["a", "b", "a"], "against": ["c", "c", "d"], "difference": [1.0, 2, 3]})
    (axis,) = figures.forest(rows.assign(low=0.0, high=4.0, holm=1.0), "family", "difference").axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["minus c:", "a", "b", "minus d:", "a"]
    at = {line.get_ydata()[0]: line.get_xdata()[0] for line in axis.lines if line.get_marker() == "o"}
    assert [at[place] for place in (1, 2, 4)] == [1, 2, 3]


def test_a_row_of_one_seed_has_no_bar_beside_means_of_several():
    means = pd.DataFrame({"method": ["all", "one"], "area": [2.0, 9.0]})
    seeds = pd.DataFrame({"method": ["all", "all", "one"], "seed": [3, 4, 3], "area": [1.0, 3.0, 9.0]})
    (axis,) = figures.bars(means, "method", "area", "area", seeds).axes
    assert [label.get_text() for label in axis.get_yticklabels()] == ["all", "one (one seed)"]
    assert [bar.get_width() for bar in axis.patches] == pytest.approx([2, np.nan], nan_ok=True)
    black = next(line for line in axis.lines if line.get_label() == "seed 3")
    assert black.get_xdata().tolist() == [1, 9]
    alone = figures.bars(means, "method", "area", "area", seeds[seeds.seed == 3])
    assert [bar.get_width() for bar in alone.axes[0].patches] == [2, 9]


def test_a_figure_says_that_all_of_it_is_of_one_seed():
    rows = table(["a", "b"])
    assert figures.fronts(rows, "kl", ["reward"], "beta").get_suptitle() == ""
    one = figures.fronts(rows[rows.seed == 1], "kl", ["reward"], "beta")
    assert one.get_suptitle() == "one seed (1)"


def test_no_figure_is_wider_than_a_page_shows():
    log = pd.DataFrame({"method": "a", "seed": 0, "step": [0, 1], "reward": [0.0, 1], "kl_sft": [0.0, 1]})
    log = log.assign(entropy=1.0, length=3.0)
    wide = figures.curves(log, ["reward", "kl_sft", "entropy", "length"], ["a"])
    assert wide.get_figwidth() <= figures.WIDEST


# Tables


@pytest.fixture
def shown(monkeypatch) -> list[str]:
    out: list[str] = []
    monkeypatch.setattr(figures, "display", lambda page: out.append(page.data))
    return out


def cells(page: str) -> list[list[str]]:
    rows = page.split("<tr")[1:]
    return [[html.unescape(text) for text in re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row)] for row in rows]


def test_a_shown_table_has_no_empty_row_or_column(shown: list[str]):
    figures.show_table(pd.DataFrame({
        "method": ["a", "b", "c"], "seeds": [3, 3, 3], "texts": [25000, np.nan, 7], "kl": [1.25, np.nan, 0.5],
        "said": ["x", "", "z"], "gold": [np.nan] * 3}), digits=1)  # fmt: skip
    assert cells(shown[0]) == [["method", "seeds", "texts", "KL (nats)", "said"],
                               ["a", "3", "25,000", "1.2", "x"], ["c", "3", "7", "0.5", "z"]]  # fmt: skip


def test_of_a_long_table_ten_rows_are_shown_and_the_rest_is_linked(shown: list[str], tmp_path, monkeypatch):
    monkeypatch.setattr(figures.paths, "figures", lambda profile: tmp_path / profile)
    long = pd.DataFrame({"a": range(13), "b": 1.5})
    for profile, link in (("pocket", "../figures/pocket/9_long.csv"), ("smoke", "9_long.csv")):
        figures.save_table(long, "9_long", profile=profile)
        figures.show_table(long)
        assert [row[0] for row in cells(shown[-2])[1:]] == [str(i) for i in range(10)]
        assert shown[-1] == f"3 more rows in [9_long.csv]({link})."
    figures.show_table(long, most=13)
    assert len(cells(shown[-1])) == 14


def test_what_diverged_is_told_where_its_table_is_saved(shown: list[str], tmp_path, monkeypatch):
    monkeypatch.setattr(figures.paths, "figures", lambda profile: tmp_path)
    table = pd.DataFrame({"method": ["a", "b", "c"], "status": ["ok", "diverged", "ok"]})
    figures.save_table(table[::2], "9_a", profile="smoke")
    assert shown == []
    figures.save_table(table, "9_a", profile="smoke")
    assert shown == ["1 of the 3 rows of [9_a.csv](9_a.csv) diverged: no numbers, and no place in a figure."]


def test_a_column_has_as_many_digits_as_it_needs_and_no_more_than_asked(shown: list[str]):
    figures.show_table(pd.DataFrame({"beta": [0.5, 2.0], "epsilon": [0.05, 0.1], "kl": [1 / 3, 0.5], "n": [1e4, 2]}))
    assert cells(shown[0])[1:] == [["0.5", "0.05", "0.333", "10,000"], ["2.0", "0.10", "0.500", "2"]]


def test_an_interval_stays_on_one_line(shown: list[str]):
    figures.show_table(pd.DataFrame({"reward": ["0.64 [-0.27, 1.01]"], "betas": ["[0.5, 1.0, 2.0]"]}))
    assert cells(shown[0])[1] == ["0.64 [-0.27,\N{NO-BREAK SPACE}1.01]", "[0.5, 1.0, 2.0]"]


def test_curves_of_one_figure_differ_in_dashes_too():
    log = pd.DataFrame({"method": ["a", "a", "b", "b"], "seed": 0, "step": [0, 1] * 2, "reward": 0.5})
    drawn = figures.curves(log, ["reward"], ["a", "b"]).axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 2
    assert len({line.get_linestyle() for line in drawn}) == 2


def test_a_curve_is_the_mean_of_its_seeds_as_far_as_all_go():
    log = pd.DataFrame({"method": "a", "seed": [0, 0, 0, 1, 1], "step": [0, 2, 4, 0, 3], "reward": [0.0, 2, 4, 2, 8]})
    *seeds, mean = figures.curves(log, ["reward"], ["a"]).axes[0].lines
    assert [line.get_label().startswith("_") for line in seeds] == [True, True]
    assert (mean.get_label(), *mean.get_data()) == ("a", pytest.approx([0, 2, 3]), pytest.approx([1, 4, 5.5]))


def test_text_stands_on_the_left_and_a_tiny_number_is_not_zero(shown: list[str]):
    figures.show_table(pd.DataFrame({"method": ["a", "b"], "p": [0.00004, 0.5]}))
    assert cells(shown[0])[1:] == [["a", "4e-05"], ["b", "0.500"]]
    assert shown[0].count("text-align: left") >= 2


def test_dollars_in_a_table_are_no_formula(shown: list[str]):
    figures.show_table(pd.DataFrame({"method": ["SFT"], "text": ["$20 , not $10"]}))
    assert "$" not in html.unescape(shown[0].replace(figures.DOLLAR, ""))
    assert shown[0].count(figures.DOLLAR) == 2


def test_what_has_no_number_at_a_kl_in_some_seed_is_named(shown: list[str]):
    rows = [(name, seed, kl) for name in "ab" for seed in (0, 1) for kl in (2.0, 0.5, 1.0)]
    matched = pd.DataFrame(rows, columns=["family", "seed", "at_kl"]).assign(reward=1.0)
    figures.say_unreached(matched)
    assert shown == []
    matched.loc[(matched.family == "b") & (matched.seed == 1) & (matched.at_kl != 1), "reward"] = np.nan
    figures.say_unreached(matched)
    assert shown == ["**b**: in some seed no policies on both sides of KL 0.5, 2, so no row there."]


def test_the_same_table_is_shown_as_the_same_html(shown: list[str]):
    for _ in range(2):
        figures.show_table(pd.DataFrame({"a": ["x & <y>"], "b": [1.5]}))
    first, second = shown
    assert first == second
    assert "x &amp; &lt;y&gt;" in first


def test_a_tag_in_a_sentence_is_shown_and_not_live(monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda what: shown.append(what.data))
    figures.say("**A text:** good <script>alert(1)</script> film")
    assert html.unescape(shown[0]) == "**A text:** good <script>alert(1)</script> film"
    assert "<" not in shown[0]


def test_a_quoted_dollar_is_no_tag_in_a_sentence(monkeypatch: pytest.MonkeyPatch):
    shown = []
    monkeypatch.setattr(figures, "display", lambda what: shown.append(what.data))
    figures.say(figures.quoted("$5 <b>") + " <span>")
    assert shown == ['<span class="tex2jax_ignore">&#36;</span>5 &#60;b&#62; &lt;span>']
