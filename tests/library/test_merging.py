"""Merging against geometry, an implementation in numpy, and the identities that it promises."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2LMHeadModel

from alignkit.merging import angles, ema_, layer_of, lerp, liti, slerp
from alignkit.world.models import new_policy, train_tokenizer

State = Mapping[str, torch.Tensor]
SHAPES = {
    "transformer.wte.weight": (5, 2),
    "transformer.h.0.attn.weight": (2, 3),
    "transformer.h.0.mlp.weight": (4,),
    "transformer.h.1.mlp.weight": (3, 3),
    "transformer.ln_f.weight": (3,),
}
LAYERS = [[name for name in SHAPES if layer_of(name) == layer] for layer in dict.fromkeys(map(layer_of, SHAPES))]
GROUPS = {"layer": LAYERS, "tensor": [[name] for name in SHAPES], "all": [list(SHAPES)]}
TIED, ALIAS = "transformer.wte.weight", "lm_head.weight"


def random_state(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    return {name: torch.tensor(rng.normal(size=shape)).to(dtype) for name, shape in SHAPES.items()}


def flat(state: State, names: Sequence[str]) -> np.ndarray:
    return np.concatenate([state[name].detach().double().numpy().ravel() for name in names])


def cut(vector: np.ndarray, like: State, names: Sequence[str]) -> dict[str, torch.Tensor]:
    """The inverse of `flat`."""
    parts = np.split(vector, np.cumsum([like[name].numel() for name in names])[:-1])
    return {name: torch.tensor(part.reshape(like[name].shape)) for name, part in zip(names, parts, strict=True)}


def moved(init: State, by: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor + by(name) for name, tensor in init.items()}


def assert_same(first: State, second: State) -> None:
    """To the bit."""
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in second)


def assert_near(first: State, second: State, tolerance: float = 1e-6) -> None:
    assert first.keys() == second.keys()
    for name in second:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=tolerance, msg=name)


@pytest.fixture(scope="module")
def init() -> dict[str, torch.Tensor]:
    return random_state(0)


@pytest.fixture(scope="module")
def thetas() -> list[dict[str, torch.Tensor]]:
    return [random_state(seed) for seed in (1, 2, 3)]


# SLERP as geometry


def pair_at(angle: float, norm: float, seed: int) -> tuple[dict[str, torch.Tensor], list[dict[str, torch.Tensor]]]:
    """θ_init and two policies whose task vectors have this norm in each layer, and 1/4 to 4/4 of the angle between."""
    rng, start = np.random.default_rng(seed), random_state(seed)
    ends: list[dict[str, torch.Tensor]] = [{}, {}]
    for i, names in enumerate(LAYERS, start=1):
        here, omega = flat(start, names), angle * i / len(LAYERS)
        one, other = np.linalg.qr(rng.normal(size=(len(here), 2)))[0].T
        for end, direction in zip(ends, (one, math.cos(omega) * one + math.sin(omega) * other), strict=True):
            end |= cut(here + norm * direction, start, names)
    return start, ends


@settings(max_examples=500, deadline=None)
@given(st.floats(0, math.pi - 0.01), st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_slerp_of_equal_norms_keeps_the_norm_and_bisects_the_angle(angle: float, norm: float, seed: int) -> None:
    start, ends = pair_at(angle, norm, seed)
    merged = slerp(start, ends, [0.5, 0.5])
    for i, names in enumerate(LAYERS, start=1):
        here = flat(start, names)
        middle = (flat(merged, names) - here) / norm
        assert np.linalg.norm(middle) == pytest.approx(1, abs=1e-6)
        for end in ends:
            cosine = middle @ (flat(end, names) - here) / norm
            assert cosine == pytest.approx(math.cos(angle * i / len(LAYERS) / 2), abs=1e-6)


@given(st.floats(0.01, math.pi - 0.01), st.floats(0, 1), st.integers(0, 1000))
def test_slerp_walks_the_angle_at_the_pace_of_the_weight(angle: float, weight: float, seed: int) -> None:
    start, ends = pair_at(angle, 1.0, seed)
    merged = slerp(start, ends, [1 - weight, weight])
    for i, names in enumerate(LAYERS, start=1):
        here = flat(start, names)
        cosine = (flat(merged, names) - here) @ (flat(ends[0], names) - here)
        assert cosine == pytest.approx(math.cos(weight * angle * i / len(LAYERS)), abs=1e-6)


def test_lerp_shortens_the_task_vectors_where_slerp_does_not() -> None:
    start, ends = pair_at(math.pi / 2, 1.0, seed=0)
    names = LAYERS[-1]
    for merge, norm in ((slerp, 1), (lerp, math.sqrt(0.5))):
        assert np.linalg.norm(flat(merge(start, ends), names) - flat(start, names)) == pytest.approx(norm)


@pytest.mark.parametrize("per", GROUPS)
@pytest.mark.parametrize("weights", [[0.5, 0.5], [0.8, 0.2], [1 / 3, 1 / 3, 1 / 3], [0.2, 0.5, 0.3], [0.0, 0.4, 0.6]])
def test_slerp_is_what_numpy_finds(init, thetas, per: str, weights: list[float]) -> None:
    some = thetas[: len(weights)]
    assert_near(slerp(init, some, weights, per=per), by_numpy(init, some, weights, GROUPS[per]))


def by_numpy(
    init: State, thetas: Sequence[State], weights: Sequence[float], groups: Sequence[Sequence[str]]
) -> dict[str, torch.Tensor]:
    """SLERP of flat vectors, one policy after the other."""
    out = {}
    for names in groups:
        start = flat(init, names)
        merged, so_far = flat(thetas[0], names) - start, weights[0]
        for theta, weight in zip(thetas[1:], weights[1:], strict=True):
            so_far += weight
            merged = arc(merged, flat(theta, names) - start, weight / so_far)
        out |= cut(start + merged, init, names)
    return out


def arc(u: np.ndarray, v: np.ndarray, weight: float) -> np.ndarray:
    a, b = u / np.linalg.norm(u), v / np.linalg.norm(v)
    omega = 2 * np.arctan2(np.linalg.norm(a - b), np.linalg.norm(a + b))
    return (np.sin((1 - weight) * omega) * u + np.sin(weight * omega) * v) / np.sin(omega)


def test_the_ways_to_share_an_angle_differ_and_layer_is_the_default(init, thetas) -> None:
    by = {per: slerp(init, thetas, per=per) for per in GROUPS}
    assert_same(by["layer"], slerp(init, thetas))
    name = "transformer.h.0.attn.weight"  # not alone in its layer
    for one, other in (("layer", "tensor"), ("layer", "all"), ("tensor", "all")):
        assert (by[one][name] - by[other][name]).abs().max() > 1e-3


# Ends and symmetries


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("per", GROUPS)
def test_with_all_weight_on_one_policy_a_merge_is_that_policy(dtype: torch.dtype, per: str) -> None:
    init, *thetas = (random_state(seed, dtype) for seed in range(4))
    for m, theta in enumerate(thetas):
        weights = [float(i == m) for i in range(3)]
        assert_same(slerp(init, thetas, weights, per=per), theta)
        assert_same(lerp(init, thetas, weights), theta)
    for weights, theta in (([1, 0], thetas[0]), ([0, 1], thetas[1])):
        assert_same(slerp(init, thetas[:2], weights, per=per), theta)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_liti_at_its_ends_is_the_start_and_the_merge_to_the_bit(dtype: torch.dtype) -> None:
    init, merged = random_state(0, dtype), random_state(1, dtype)
    assert_same(liti(init, merged, 0.0), init)
    assert_same(liti(init, merged, 1.0), merged)


def test_a_policy_without_weight_does_not_count_even_if_it_diverged(init, thetas) -> None:
    diverged = {name: torch.full_like(tensor, math.nan) for name, tensor in init.items()}
    assert_same(liti(init, diverged, 0.0), init)
    assert_same(liti(diverged, thetas[0], 1.0), thetas[0])
    assert_same(lerp(init, [thetas[0], diverged], [1, 0]), thetas[0])


def test_liti_is_a_straight_line_through_both_and_beyond(init, thetas) -> None:
    for eta in (-0.5, 0.3, 1.7):
        line = {name: (1 - eta) * init[name] + eta * thetas[0][name] for name in init}
        assert_near(liti(init, thetas[0], eta), line, 1e-12)


def test_lerp_is_the_weighted_sum_of_task_vectors_and_the_mean_by_default(init, thetas) -> None:
    mean = {name: sum(theta[name] for theta in thetas) / 3 for name in init}
    assert_near(lerp(init, thetas), mean, 1e-12)
    weights = (0.5, 0.1, 0.9)
    by_hand = moved(init, lambda n: sum(w * (t[n] - init[n]) for w, t in zip(weights, thetas, strict=True)))
    assert_near(lerp(init, thetas, weights), by_hand, 1e-12)


@pytest.mark.parametrize("merge", [slerp, lerp])
def test_the_merge_of_one_policy_is_that_policy_to_the_bit(init, thetas, merge) -> None:
    assert_same(merge(init, thetas[:1]), thetas[0])


@pytest.mark.parametrize("merge", [slerp, lerp])
@pytest.mark.parametrize("m", [2, 3, 5])
def test_the_merge_of_equal_policies_is_that_policy(init, thetas, merge, m: int) -> None:
    assert_near(merge(init, [thetas[0]] * m), thetas[0], 1e-12)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_the_order_of_two_policies_does_not_matter(weight: float, seed: int) -> None:
    init, a, b = (random_state(3 * seed + i) for i in range(3))
    one, other = slerp(init, [a, b], [weight, 1 - weight]), slerp(init, [b, a], [1 - weight, weight])
    assert_near(one, other, 1e-12)


def test_the_order_of_three_policies_matters_to_slerp_and_not_to_lerp(init, thetas) -> None:
    assert_near(lerp(init, thetas), lerp(init, thetas[::-1]), 1e-12)
    one, other = slerp(init, thetas), slerp(init, thetas[::-1])
    assert max((one[name] - other[name]).abs().max() for name in init) > 0.01


# Where no arc is defined


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.0, -1.0, -0.4])
@pytest.mark.parametrize("per", GROUPS)
def test_parallel_and_zero_task_vectors_are_interpolated_linearly(init, thetas, factor: float, per: str) -> None:
    other = {name: init[name] + factor * (thetas[0][name] - init[name]) for name in init}
    for pair in ([thetas[0], other], [other, thetas[0]]):
        merged = slerp(init, pair, [0.3, 0.7], per=per)
        assert all(tensor.isfinite().all() for tensor in merged.values())
        assert_near(merged, lerp(init, pair, [0.3, 0.7]), 1e-12)


def test_policies_that_did_not_move_are_merged_to_the_initialisation(init) -> None:
    for merge in (slerp, lerp):
        assert_near(merge(init, [init, init, init]), init, 1e-12)


def test_a_layer_that_did_not_move_leaves_the_others_their_arc(init, thetas) -> None:
    still = "transformer.ln_f.weight"
    pair = [thetas[0] | {still: init[still]}, thetas[1]]
    merged = slerp(init, pair)
    torch.testing.assert_close(merged[still], (init[still] + thetas[1][still]) / 2)
    whole = slerp(init, thetas[:2])
    assert_same({n: t for n, t in merged.items() if n != still}, {n: t for n, t in whole.items() if n != still})


@pytest.mark.parametrize("angle", [0.00101, 0.00099])  # of the last layer; the others are below either way
def test_slerp_and_lerp_agree_where_one_takes_over_from_the_other(angle: float) -> None:
    start, ends = pair_at(angle, 1.0, seed=0)
    assert_near(slerp(start, ends), lerp(start, ends), 1e-6)


# Memory and precision


def test_no_input_is_modified_and_no_output_shares_memory_with_one(init, thetas) -> None:
    states = [init, *thetas]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    outputs = [
        *(slerp(init, thetas, per=per) for per in GROUPS),
        *(slerp(init, thetas[:2], weights) for weights in ([1, 0], [0, 1])),
        *(slerp(init, thetas[:1]), lerp(init, thetas[:1]), lerp(init, thetas), angles(init, thetas)),
        *(liti(init, thetas[0], eta) for eta in (0.0, 0.5, 1.0)),
    ]
    for state, kept in zip(states, before, strict=True):
        assert_same(state, kept)
    memory = {tensor.untyped_storage().data_ptr() for state in states for tensor in state.values()}
    for output in outputs:
        assert not memory & {tensor.untyped_storage().data_ptr() for tensor in output.values()}


def test_integer_buffers_are_copies_of_the_initialisations(init, thetas) -> None:
    buffer = torch.tensor([[True, False], [True, True]]), torch.arange(3)
    with_buffers = [s | dict(zip(("h.0.mask", "h.0.ids"), buffer, strict=True)) for s in (init, *thetas)]
    start, *ends = with_buffers
    for merge in (slerp, lerp):
        merged = merge(start, ends)
        for name in ("h.0.mask", "h.0.ids"):
            assert torch.equal(merged[name], start[name])
            assert merged[name].dtype == start[name].dtype
            assert merged[name].data_ptr() != start[name].data_ptr()
        assert_same({name: merged[name] for name in init}, merge(init, thetas))
    assert set(angles(start, ends)) == set(angles(init, thetas))
    ema_(start := {name: tensor.clone() for name, tensor in start.items()}, ends[0], 0.5)
    assert torch.equal(start["h.0.ids"], buffer[1])


def test_bfloat16_comes_back_as_bfloat16_and_was_merged_in_float32() -> None:
    coarse = [random_state(seed, torch.bfloat16) for seed in range(4)]
    fine = [{name: tensor.float() for name, tensor in state.items()} for state in coarse]
    for merge in (slerp, lerp):
        merged, precise = merge(coarse[0], coarse[1:]), merge(fine[0], fine[1:])
        assert all(tensor.dtype == torch.bfloat16 for tensor in merged.values())
        assert_same(merged, {name: tensor.bfloat16() for name, tensor in precise.items()})


def test_angles_between_bfloat16_policies_are_computed_in_float64() -> None:
    coarse = [random_state(seed, torch.bfloat16) for seed in range(3)]
    fine = [{name: tensor.double() for name, tensor in state.items()} for state in coarse]
    by_layer = angles(fine[0], fine[1:])
    for layer, found in angles(coarse[0], coarse[1:]).items():
        torch.testing.assert_close(found, by_layer[layer], rtol=0, atol=1e-4)


# Tied weights


@pytest.fixture(scope="module")
def tied() -> list[GPT2LMHeadModel]:
    """θ_init and three policies, as GPT-2 has them: the embedding is also the head."""
    tokenizer = train_tokenizer("word", ["a b c"], 10)
    models = []
    with torch.random.fork_rng():
        for seed in range(4):
            torch.manual_seed(seed)
            models.append(new_policy(tokenizer, width=8, layers=2, heads=2, positions=8))
            with torch.no_grad():
                for weight in models[-1].parameters():
                    weight.normal_()  # biases are zero in a new GPT-2, and would not move
    return models


def cloned(model: GPT2LMHeadModel) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def without(state: State, name: str) -> dict[str, torch.Tensor]:
    return {n: tensor for n, tensor in state.items() if n != name}


@pytest.mark.parametrize("how", [cloned, GPT2LMHeadModel.state_dict])
@pytest.mark.parametrize("per", GROUPS)
def test_tied_weights_are_merged_once_and_alike_whether_aliases_or_copies(tied, how, per: str) -> None:
    init, *thetas = map(how, tied)
    assert (init[TIED].data_ptr() == init[ALIAS].data_ptr()) == (how is not cloned)
    merged = slerp(init, thetas, [0.2, 0.5, 0.3], per=per)
    assert torch.equal(merged[TIED], merged[ALIAS])
    alone = slerp(without(init, ALIAS), [without(theta, ALIAS) for theta in thetas], [0.2, 0.5, 0.3], per=per)
    assert_same(without(merged, ALIAS), alone)


def test_tied_weights_count_once_in_the_angle_of_the_whole_policy(tied) -> None:
    for how in (cloned, GPT2LMHeadModel.state_dict):
        init, *thetas = map(how, tied)
        alone = angles(without(init, ALIAS), [without(theta, ALIAS) for theta in thetas], per="all")
        assert_same(angles(init, thetas, per="all"), alone)
        assert "lm_head" not in angles(init, thetas)


def test_a_merged_state_loads_into_a_tied_model(tied) -> None:
    init, *thetas = (model.state_dict() for model in tied)
    fresh = GPT2LMHeadModel(tied[0].config)
    merged = slerp(init, thetas)
    fresh.load_state_dict(merged)
    assert_same(fresh.state_dict(), merged)
    assert fresh.lm_head.weight is fresh.transformer.wte.weight


def test_matrices_that_are_equal_at_the_initialisation_only_are_not_tied(init, thetas) -> None:
    name, twin = "transformer.h.0.attn.weight", "transformer.h.1.attn.weight"
    start = init | {name: torch.zeros(2, 3).double(), twin: torch.zeros(2, 3).double()}
    ends = [theta | {twin: theta[name].clone() if i == 0 else -theta[name]} for i, theta in enumerate(thetas)]
    layers = [[*names, twin] if names == ["transformer.h.1.mlp.weight"] else names for names in LAYERS]
    groups = {"layer": layers, "tensor": [[n] for n in start], "all": [list(start)]}
    for per, found in groups.items():
        assert_near(slerp(start, ends, [0.3, 0.3, 0.4], per=per), by_numpy(start, ends, [0.3, 0.3, 0.4], found))
    assert twin in angles(start, ends, per="tensor")


# EMA


def test_ema_at_rate_0_leaves_the_anchor_and_at_1_copies_the_policy(init, thetas) -> None:
    for rate, expected in ((0.0, init), (1.0, thetas[0])):
        anchor = {name: tensor.clone() for name, tensor in init.items()}
        ema_(anchor, thetas[0], rate)
        assert_same(anchor, expected)


def test_an_anchor_in_float32_follows_a_policy_in_bfloat16(init) -> None:
    anchor = {name: tensor.float().clone() for name, tensor in init.items()}
    policy = {name: (tensor + 1).bfloat16() for name, tensor in init.items()}
    for _ in range(1000):
        ema_(anchor, policy, 0.01)
    assert all(tensor.dtype == torch.float32 for tensor in anchor.values())
    assert_near(anchor, {name: tensor.float() for name, tensor in policy.items()}, 1e-3)


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_ema_forgets_its_start_at_the_rate_of_the_closed_form(init, thetas, rate: float) -> None:
    anchor, policy = ({name: tensor.clone() for name, tensor in state.items()} for state in (init, thetas[0]))
    for step in range(1, 8):
        ema_(anchor, policy, rate)
        left = (1 - rate) ** step
        assert_near(anchor, {name: left * init[name] + (1 - left) * policy[name] for name in init}, 1e-12)
    assert_same(policy, thetas[0])


def test_ema_of_a_moving_policy_weighs_each_place_by_its_age(init, thetas) -> None:
    anchor = {name: tensor.clone() for name, tensor in init.items()}
    for theta in thetas:
        ema_(anchor, theta, 0.2)
    shares = (0.8**3, 0.2 * 0.8**2, 0.2 * 0.8, 0.2)
    by_hand = {n: sum(w * s[n] for w, s in zip(shares, (init, *thetas), strict=True)) for n in init}
    assert_near(anchor, by_hand, 1e-12)


def test_ema_moves_the_tied_weights_of_a_live_model_once_and_in_place(tied) -> None:
    anchor = GPT2LMHeadModel(tied[0].config)
    anchor.load_state_dict(tied[0].state_dict())
    policy, start = tied[1].state_dict(), cloned(tied[0])
    before = cloned(tied[1])
    ema_(anchor.state_dict(), policy, 0.25)
    assert_same(policy, before)
    assert_near(anchor.state_dict(), {name: 0.75 * start[name] + 0.25 * policy[name] for name in policy})
    assert anchor.lm_head.weight is anchor.transformer.wte.weight
    assert_same(tied[0].state_dict(), start)


# Angles


def test_orthogonal_is_90_equal_0_and_opposite_180_degrees(init, thetas) -> None:
    start, (first, second) = pair_at(math.pi / 2, 2.0, seed=0)
    opposite = {name: 2 * start[name] - first[name] for name in start}
    expected = torch.tensor([[0, 90, 0, 180], [90, 0, 90, 90], [0, 90, 0, 180], [180, 90, 180, 0]]).double()
    found = angles(start, [first, second, first, opposite])[layer_of(LAYERS[-1][0])]
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("per", GROUPS)
def test_angles_are_symmetric_with_zeros_on_the_diagonal(init, thetas, per: str) -> None:
    found = angles(init, thetas, per=per)
    assert len(found) == len(GROUPS[per])
    for (group, matrix), names in zip(found.items(), GROUPS[per], strict=True):
        assert group in {"all", names[0], layer_of(names[0])}
        assert matrix.shape == (3, 3)
        torch.testing.assert_close(matrix, matrix.T, rtol=0, atol=1e-9)
        assert matrix.diagonal().tolist() == [0, 0, 0]
        one, other = (flat(theta, names) - flat(init, names) for theta in thetas[:2])
        cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
        assert matrix[0, 1].item() == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-6)


def test_the_angle_beside_a_policy_that_did_not_move_is_nan(init, thetas) -> None:
    for matrix in angles(init, [thetas[0], init, thetas[1]]).values():
        assert matrix.isnan().tolist() == [[False, True, False], [True, True, True], [False, True, False]]


def test_a_layer_is_named_up_to_its_first_number_or_else_after_its_module() -> None:
    layers = {
        "transformer.h.0.attn.weight": "transformer.h.0",
        "transformer.h.11.mlp.c_fc.bias": "transformer.h.11",
        "transformer.h.1.experts.3.weight": "transformer.h.1",
        "transformer.wte.weight": "transformer.wte",
        "transformer.ln_f.weight": "transformer.ln_f",
        "lm_head.weight": "lm_head",
        "weight": "weight",
    }
    assert {name: layer_of(name) for name in layers} == layers


def test_a_gpt2s_layers_are_embeddings_blocks_and_last_norm(tied) -> None:
    init, *thetas = (model.state_dict() for model in tied)
    blocks = ["transformer.h.0", "transformer.h.1"]
    assert list(angles(init, thetas)) == ["transformer.wte", "transformer.wpe", *blocks, "transformer.ln_f"]


# Faults


def renamed(state: State) -> dict[str, torch.Tensor]:
    return {f"model.{name}": tensor for name, tensor in state.items()}


def reshaped(state: State) -> dict[str, torch.Tensor]:
    return {name: tensor.flatten() for name, tensor in state.items()}


FAULTS = {
    "other names": lambda i, t: slerp(i, [t[0], renamed(t[1])]),
    "other shapes": lambda i, t: slerp(i, [t[0], reshaped(t[1])]),
    "a name less": lambda i, t: lerp(i, [t[0], without(t[1], TIED)]),
    "other names, liti": lambda i, t: liti(i, renamed(t[0]), 0.5),
    "other shapes, angles": lambda i, t: angles(i, [t[0], reshaped(t[1])]),
    "no policy": lambda i, t: slerp(i, []),
    "too many weights": lambda i, t: slerp(i, t[:2], [0.2, 0.3, 0.5]),
    "too few weights": lambda i, t: lerp(i, t, [0.5, 0.5]),
    "a negative weight": lambda i, t: slerp(i, t[:2], [1.5, -0.5]),
    "weights that sum to less": lambda i, t: slerp(i, t[:2], [0.5, 0.4]),
    "weights that sum to more": lambda i, t: slerp(i, t[:2], [0.5, 0.6]),
    "an unknown group": lambda i, t: slerp(i, t, per="row"),
    "an unknown group, angles": lambda i, t: angles(i, t, per="row"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_cannot_be_merged_is_told_in_one_line(init, thetas, fault: str) -> None:
    with pytest.raises(ValueError, match="allowed: ") as refused:
        FAULTS[fault](init, thetas)
    assert "\n" not in str(refused.value)
