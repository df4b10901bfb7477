"""README's own work in five lines, run word for word at tiny sizes."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from helpers import called

from alignkit import divergences
from alignkit.pocket import generate_reviews
from alignkit.training.sft import train_sft
from alignkit.workflow import parameters
from alignkit.world.models import load_encoder, load_policy, new_encoder, new_policy, save, train_tokenizer

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"(?s)```python\n(.*?)```", TEXT.split("## Own work in five lines")[1].split("\n## ")[0])
REVIEWS, POLICY, REWARD, DIVERGENCE, FRONT = BLOCKS
[ALONE] = re.findall(r"(?s)```python\n(.*?)```", TEXT.split("## The library alone")[1].split("\n## ")[0])


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    generate_reviews(9_000, 0)[["text", "label"]].to_csv("reviews.csv", index=False)
    return tmp_path


def told(monkeypatch: pytest.MonkeyPatch, *blocks: str) -> Any:
    """The parameters of a notebook with these lines in its second code cell."""
    namespace: dict[str, Any] = {"In": ["", "\n".join(blocks)]}
    exec(namespace["In"][1], namespace)
    monkeypatch.setattr("IPython.get_ipython", lambda: SimpleNamespace(user_ns=namespace))
    monkeypatch.setattr("IPython.display.display", lambda *_, **__: None)
    return parameters.from_notebook()


def test_each_is_at_most_five_lines():
    assert [len(block.splitlines()) for block in BLOCKS if len(block.splitlines()) > 5] == []


def test_no_line_of_code_scrolls_sideways():
    code = re.findall(r"(?s)```\w*\n(.*?)```", TEXT)
    assert [line for block in code for line in block.splitlines() if len(line) > 80] == []


def test_own_reviews(monkeypatch: pytest.MonkeyPatch):
    p = told(monkeypatch, REVIEWS)
    assert {name: len(split) for name, split in p.reviews().load(seed=0).items()} == {"train": 7_200, "test": 1_800}
    assert p.seeds == [0]


def test_own_policy(folder: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = train_tokenizer("word", ["a good film ."], 100)
    model = new_policy(tokenizer, width=8, layers=1, heads=1, positions=128)
    save(folder / "models" / "policy", model, tokenizer)
    p = told(monkeypatch, REVIEWS, POLICY, "sft_held_out = 20")
    (folder / "sft").mkdir()
    called(train_sft, folder / "sft", seed=0, data=p.reviews(), **p.sft())
    taken, _ = load_policy(folder / "sft")
    pairs = zip(model.parameters(), taken.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_own_reward_model(folder: Path, monkeypatch: pytest.MonkeyPatch):
    tokenizer = train_tokenizer("encoder_word", ["a good film ."], 100)
    model = new_encoder(tokenizer, width=8, layers=1, heads=1, positions=200, sinusoidal=True, dropout=0.0)
    save(folder / "models" / "reward", model, tokenizer)
    p = told(monkeypatch, REVIEWS, REWARD)
    assert p.reward_training()["base"] == "models/reward"
    assert load_encoder(p.reward_model)[0].config.num_labels == 1


def test_a_new_divergence(monkeypatch: pytest.MonkeyPatch):
    source = Path(divergences.__file__).read_text(encoding="utf-8")
    entry = '        Divergence(\n            name="reverse_kl"'
    assert source.count(entry) == 1
    module: dict[str, Any] = {"__name__": divergences.__name__}
    exec(compile(source.replace(entry, f"{DIVERGENCE}{entry}"), "divergences", "exec"), module)
    new = module["divergence"]("sinh")
    u = torch.linspace(0.1, 5, 50, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(torch.autograd.grad(new.f(u).sum(), u)[0], new.f_prime(u))
    assert torch.allclose(new.score(u.log()), new.f_prime(u))
    assert np.allclose(new.inverse(new.f_prime(u).detach().numpy()), u.detach().numpy())
    far = torch.tensor([-100.0, 100.0], requires_grad=True)  # float32
    assert torch.isfinite(torch.autograd.grad(new.score(far).sum(), far)[0]).all()
    assert new.clamped(far).all()
    ref, reward = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0])
    best = new.optimal_policy(ref, reward, 0.5)

    def value(pi: np.ndarray) -> float:
        return float(pi @ reward - 0.5 * ref @ new.f(pi / ref).numpy())

    for shift in np.array([[1, -1, 0], [0, 1, -1], [1, 0, -1]]) * 1e-3:
        assert value(best) > max(value(best + shift), value(best - shift))


def test_a_method_on_the_front():
    rewards = np.random.default_rng(0).normal(size=(20, 4000))
    # The optimum at β is a normal of mean 1/β, at KL 1/(2β²); this policy has two thirds of that gain.
    given = {"rewards": rewards, "kl": 2 / 9, "reward": rewards.mean() + 4 / 9}
    exec(FRONT, given)
    assert given["share"] == pytest.approx(2 / 3, abs=0.02)
    small = {"rewards": rewards / 10, "kl": 2 / 9, "reward": (rewards.mean() + 4 / 9) / 10}
    exec(FRONT, small)  # whatever the reward's unit
    assert small["share"] == pytest.approx(given["share"])
    assert given["axes"].get_xlabel() == "KL (nats)"
    plt.close("all")


def test_the_library_alone():
    sides = {"policy_chosen": -3.0, "reference_chosen": -4.0, "policy_rejected": -6.0, "reference_rejected": -4.5}
    namespace: dict[str, Any] = {f"{name}_logps": torch.tensor([value]) for name, value in sides.items()}
    exec(ALONE, namespace)
    margin = 0.1 * (js_score(1.0) - js_score(-1.5))
    assert namespace["loss"].item() == pytest.approx(max(0.0, 1.0 - margin), abs=1e-6)


@pytest.mark.parametrize("div", divergences.examples(), ids=lambda div: div.name)
def test_scores_as_the_library_alone_takes_them_are_zero_at_the_reference(div: divergences.Divergence):
    name = re.search(r"^scores = divergence\(.*?\)\.(\w+)", ALONE, re.MULTILINE)[1]  # KTO's loss rests on it
    assert getattr(div, name)(torch.zeros(1)).abs().max() < 1e-6


def js_score(log_ratio: float) -> float:
    """f'(u) of Jensen-Shannon, f-DPO's (Wang et al. 2024): log(2u / (1 + u))."""
    u = np.exp(log_ratio)
    return float(np.log(2 * u / (1 + u)))
