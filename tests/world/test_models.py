"""Tokenizers and models: round trips, saving and loading, dropout, and faults in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from alignkit.faults import UserFault
from alignkit.pocket import generate_reviews
from alignkit.world.models import load_encoder, load_policy, new_encoder, new_policy, precision, train_tokenizer

TOLERANCE = 1e-5
TEXTS = generate_reviews(100, seed=0).text.tolist()
KINDS = ["word", "bpe", "encoder_word", "wordpiece"]
SIZES = {"width": 16, "layers": 2, "heads": 2, "positions": 128}


@pytest.fixture(scope="module")
def tokenizers() -> dict[str, PreTrainedTokenizerBase]:
    return {kind: train_tokenizer(kind, TEXTS, 500) for kind in KINDS}


@pytest.fixture(scope="module")
def saved(tokenizers, tmp_path_factory) -> dict[str, Path]:
    """A folder with a tokenizer and a model, by tokenizer kind."""
    torch.manual_seed(0)
    folders = {}
    for kind, tokenizer in tokenizers.items():
        folders[kind] = tmp_path_factory.mktemp(kind)
        model_for(kind, tokenizer).save_pretrained(folders[kind])
        tokenizer.save_pretrained(folders[kind])
    return folders


def model_for(kind: str, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    if kind in ("word", "bpe"):
        return new_policy(tokenizer, **SIZES)
    return new_encoder(tokenizer, **SIZES, sinusoidal=True, dropout=0.5)


def logits_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    with torch.no_grad():
        return model(**tokenizer(TEXTS[:1], return_tensors="pt").to(model.device)).logits.cpu()


def dropout_rates(model: nn.Module) -> list[float]:
    return [module.p for module in model.modules() if isinstance(module, nn.Dropout)]


@pytest.mark.parametrize("kind", ["word", "bpe"])
def test_policy_tokenizers_give_their_training_texts_back_and_add_nothing(tokenizers, kind: str) -> None:
    tokenizer = tokenizers[kind]
    ids = tokenizer(TEXTS)["input_ids"]
    assert tokenizer.batch_decode(ids) == TEXTS
    assert not {id for row in ids for id in row} & set(tokenizer.all_special_ids)


@settings(max_examples=50, deadline=None)
@given(text=st.text(max_size=40))
def test_bpe_gives_any_text_back(tokenizers, text: str) -> None:
    assert tokenizers["bpe"].decode(tokenizers["bpe"](text)["input_ids"]) == text


def test_a_word_tokenizer_for_encoders_adds_cls_and_sep(tokenizers) -> None:
    tokenizer = tokenizers["encoder_word"]
    assert tokenizer.batch_decode(tokenizer(TEXTS)["input_ids"]) == [f"[CLS] {text} [SEP]" for text in TEXTS]


def test_wordpiece_keeps_every_letter_in_lower_case_and_adds_cls_and_sep(tokenizers) -> None:
    tokenizer = tokenizers["wordpiece"]
    for text in TEXTS:
        first, *pieces, last = tokenizer.convert_ids_to_tokens(tokenizer(text.title())["input_ids"])
        assert (first, last) == ("[CLS]", "[SEP]")
        assert "".join(piece.removeprefix("##") for piece in pieces) == text.replace(" ", "")


@pytest.mark.parametrize("kind", KINDS)
def test_a_word_that_was_never_seen_becomes_the_unknown_token_or_bytes(tokenizers, kind: str) -> None:
    tokenizer = tokenizers[kind]
    unknown = tokenizer.unk_token_id in tokenizer("ΩΩ")["input_ids"]
    assert unknown == (kind != "bpe")


def test_an_unknown_tokenizer_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="letters"):
        train_tokenizer("letters", TEXTS, 100)


@pytest.mark.parametrize("kind", KINDS)
def test_a_vocabulary_is_no_larger_than_asked_for(kind: str) -> None:
    size = {"bpe": 300, "wordpiece": 100}.get(kind, 50)
    assert len(train_tokenizer(kind, TEXTS, size)) <= size


@pytest.mark.parametrize("kind", KINDS)
def test_a_reloaded_model_and_tokenizer_give_the_same_logits(tokenizers, tmp_path: Path, kind: str) -> None:
    model = model_for(kind, tokenizers[kind]).eval()
    model.save_pretrained(tmp_path)
    tokenizers[kind].save_pretrained(tmp_path)
    auto = AutoModelForCausalLM if kind in ("word", "bpe") else AutoModelForSequenceClassification
    again, tokenizer = auto.from_pretrained(tmp_path).eval(), AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer(TEXTS)["input_ids"] == tokenizers[kind](TEXTS)["input_ids"]
    assert all(torch.equal(again.state_dict()[name], weight) for name, weight in model.state_dict().items())
    assert torch.allclose(logits_of(again, tokenizer), logits_of(model, tokenizers[kind]), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_our_loaders_load_what_auto_classes_load_in_float32(saved, kind: str) -> None:
    policy = kind in ("word", "bpe")
    model, tokenizer = (load_policy if policy else load_encoder)(saved[kind])
    auto = AutoModelForCausalLM if policy else AutoModelForSequenceClassification
    expected = auto.from_pretrained(saved[kind])
    assert torch.allclose(logits_of(model, tokenizer), logits_of(expected, tokenizer), rtol=0, atol=TOLERANCE)
    assert model.dtype == torch.float32
    assert tokenizer.padding_side == ("left" if policy else "right")
    assert tokenizer.pad_token_id == model.config.pad_token_id is not None


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_written_as_safetensors_and_nothing_as_a_pickle(saved, kind: str) -> None:
    assert {path.suffix for path in saved[kind].iterdir()} == {".safetensors", ".json"}


def test_a_new_policy_has_no_dropout(tokenizers) -> None:
    model = new_policy(tokenizers["word"], **SIZES).train()
    assert set(dropout_rates(model)) == {0.0}
    first, again = (logits_of(model, tokenizers["word"]) for _ in range(2))
    assert torch.allclose(first, again, rtol=0, atol=TOLERANCE)


def test_a_new_encoder_has_the_dropout_asked_for_and_none_in_attention(tokenizers) -> None:
    for rate in (0.0, 0.3):
        model = new_encoder(tokenizers["wordpiece"], **SIZES, sinusoidal=False, dropout=rate).train()
        assert set(dropout_rates(model)) == {0.0, rate}
        assert all(set(dropout_rates(layer.attention)) <= {0.0} for layer in model.distilbert.transformer.layer)
        first, again = (logits_of(model, tokenizers["wordpiece"]) for _ in range(2))
        assert torch.allclose(first, again, rtol=0, atol=TOLERANCE) == (rate == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_models_do_not_drop_out(saved, kind: str) -> None:
    model, tokenizer = (load_policy if kind in ("word", "bpe") else load_encoder)(saved[kind])
    assert not model.training
    first, again = (logits_of(model, tokenizer) for _ in range(2))
    assert torch.allclose(first, again, rtol=0, atol=TOLERANCE)


def test_the_dropout_of_a_loaded_encoder_can_be_changed(saved) -> None:
    model, _ = load_encoder(saved["wordpiece"], dropout=0.2)
    assert set(dropout_rates(model)) == {0.0, 0.2}


@pytest.mark.parametrize("sinusoidal", [True, False])
def test_an_encoder_has_one_output_and_the_positions_asked_for(tokenizers, sinusoidal: bool) -> None:
    model = new_encoder(tokenizers["wordpiece"], **SIZES, sinusoidal=sinusoidal, dropout=0.0)
    assert logits_of(model, tokenizers["wordpiece"]).shape == (1, 1)
    table = model.distilbert.embeddings.position_embeddings.weight
    place = torch.arange(SIZES["positions"]).float()
    waves = torch.stack([place.sin(), place.cos()], dim=1)
    assert torch.allclose(table[:, :2], waves, atol=1e-5) == sinusoidal


def save_bert(folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), num_labels=1, **size)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_the_dropout_of_a_bert_can_be_changed_as_well(tokenizers, tmp_path: Path) -> None:
    save_bert(tmp_path, tokenizers["wordpiece"])
    model, _ = load_encoder(tmp_path, dropout=0.2)
    assert set(dropout_rates(model)) == {0.0, 0.2}
    assert set(dropout_rates(model.bert.encoder.layer[0].attention.self)) <= {0.0}


def one_line_fault(folder: Path, load: Callable[[Path], Any] = load_policy) -> str:
    with pytest.raises(UserFault) as raised:
        load(folder)
    (line,) = str(raised.value).splitlines()
    assert repr(str(folder)) in line
    assert "allowed: 'scratch', a folder, or a Hub id" in line
    return line


def test_a_policy_that_does_not_exist_is_a_fault_in_one_line(tmp_path: Path) -> None:
    one_line_fault(tmp_path / "missing")


def test_an_empty_folder_is_no_policy(tmp_path: Path) -> None:
    one_line_fault(tmp_path)


def copied(folder: Path, to: Path, *left_out: str) -> Path:
    for path in folder.iterdir():
        if path.name not in left_out:
            (to / path.name).write_bytes(path.read_bytes())
    return to


@pytest.mark.parametrize("size", [0, 40, 5000])
def test_broken_weights_are_a_fault_in_one_line(saved, tmp_path: Path, size: int) -> None:
    weights = copied(saved["word"], tmp_path) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:size])
    one_line_fault(tmp_path)


def test_a_broken_tokenizer_is_a_fault_in_one_line(saved, tmp_path: Path) -> None:
    (copied(saved["word"], tmp_path) / "tokenizer.json").write_text("{}")
    one_line_fault(tmp_path)


def test_a_model_without_a_tokenizer_is_a_fault_in_one_line(saved, tmp_path: Path) -> None:
    copied(saved["word"], tmp_path, "tokenizer.json", "tokenizer_config.json")
    assert "no tokenizer" in one_line_fault(tmp_path)


def test_a_head_with_two_outputs_is_no_reward_model(tokenizers, tmp_path: Path) -> None:
    config = model_for("wordpiece", tokenizers["wordpiece"]).config
    config.num_labels = 2
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizers["wordpiece"].save_pretrained(tmp_path)
    assert "head has one output" in one_line_fault(tmp_path, load_encoder)


def test_an_encoder_without_a_head_gets_a_fresh_one(tokenizers, tmp_path: Path) -> None:
    model_for("wordpiece", tokenizers["wordpiece"]).distilbert.save_pretrained(tmp_path)
    tokenizers["wordpiece"].save_pretrained(tmp_path)
    model, tokenizer = load_encoder(tmp_path)
    assert logits_of(model, tokenizer).shape == (1, 1)


def test_an_encoder_is_no_policy(saved) -> None:
    assert "DistilBert" in one_line_fault(saved["wordpiece"])


def test_weights_in_a_pickle_are_refused(saved, tmp_path: Path) -> None:
    for path in saved["word"].glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save(load_policy(saved["word"])[0].state_dict(), tmp_path / "pytorch_model.bin")
    assert "safetensors" in one_line_fault(tmp_path)


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        (None, {"use_cpu": True, "bf16": False, "fp16": False}),
        ((7, 5), {"use_cpu": False, "bf16": False, "fp16": True}),
        ((8, 0), {"use_cpu": False, "bf16": True, "fp16": False}),
    ],
)
def test_precision_is_float32_on_cpu_and_suits_the_gpu(monkeypatch, capability, expected: dict[str, bool]) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: capability is not None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    assert precision() == expected
