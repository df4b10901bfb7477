"""Models from elsewhere: each architecture passes the check before training, or one line says what it lacks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from helpers import called
from tokenizers import processors

from alignkit.faults import UserFault
from alignkit.pocket import generate_reviews
from alignkit.sampling import sample, sequence_log_probs
from alignkit.training.sft import train_sft
from alignkit.world.foreign import check_encoder, check_policy
from alignkit.world.models import load_policy, save, train_tokenizer
from alignkit.world.reviews import Reviews

TEXTS = generate_reviews(50, seed=0).text.tolist()
WORDS, PIECES = train_tokenizer("bpe", TEXTS, 300), train_tokenizer("wordpiece", TEXTS, 300)
SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
ENDS = {"bos_token_id": WORDS.bos_token_id, "eos_token_id": WORDS.eos_token_id, "pad_token_id": WORDS.pad_token_id}
OF_WORDS = {"vocab_size": len(WORDS), **ENDS}
OF_PIECES = {"vocab_size": len(PIECES), "pad_token_id": PIECES.pad_token_id}

POLICIES: dict[str, Callable[..., hf.PretrainedConfig]] = {
    "GPT-2": lambda **k: hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, **OF_WORDS, **k),
    "Llama": lambda **k: hf.LlamaConfig(**SMALL, **OF_WORDS, **k),
    "Qwen2": lambda **k: hf.Qwen2Config(**SMALL, num_key_value_heads=1, **OF_WORDS, **k),
    "GPT-NeoX": lambda **k: hf.GPTNeoXConfig(**SMALL, **OF_WORDS, **k),
    "OPT": lambda **k: hf.OPTConfig(hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2,
                                    word_embed_proj_dim=16, **OF_WORDS, **k),
    "Bloom": lambda **k: hf.BloomConfig(hidden_size=16, n_layer=2, n_head=2, **OF_WORDS, **k),
    "Mixtral": lambda **k: hf.MixtralConfig(**SMALL, num_key_value_heads=1, num_local_experts=2, **OF_WORDS, **k),
    "Mamba": lambda **k: hf.MambaConfig(hidden_size=16, num_hidden_layers=2, state_size=4, **OF_WORDS, **k),
}  # fmt: skip
ENCODERS: dict[str, Callable[..., hf.PretrainedConfig]] = {
    "BERT": lambda **k: hf.BertConfig(**SMALL, **OF_PIECES, **k),
    "RoBERTa": lambda **k: hf.RobertaConfig(**SMALL, **OF_PIECES, **k),
    "ELECTRA": lambda **k: hf.ElectraConfig(embedding_size=16, **SMALL, **OF_PIECES, **k),
    "DeBERTa": lambda **k: hf.DebertaV2Config(**SMALL, **OF_PIECES, **k),
    "XLNet": lambda **k: hf.XLNetConfig(d_model=16, n_layer=2, n_head=2, d_inner=32, **OF_PIECES, **k),
    "GPT-2": lambda **k: hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, **OF_PIECES, **k),
}


def policy(folder: Path, kind: str, tokenizer: Any = WORDS, **changed: Any) -> str:
    torch.manual_seed(0)
    save(folder, hf.AutoModelForCausalLM.from_config(POLICIES[kind](**changed)), tokenizer)
    return str(folder)


def encoder(folder: Path, kind: str, tokenizer: Any = PIECES, **changed: Any) -> str:
    torch.manual_seed(0)
    config = ENCODERS[kind](num_labels=1, **changed)
    save(folder, hf.AutoModelForSequenceClassification.from_config(config), tokenizer)
    return str(folder)


def edit(folder: str, name: str, **changed: Any) -> None:
    file = Path(folder) / name
    values = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps({**values, **changed}))


def check(name: str, **changed: Any) -> None:
    check_policy(name, **{"sft_tokens": 64, "new_tokens": 32, "prefix": "", "lora": True, **changed})


def fault(check: Callable[..., None], name: str, **given: Any) -> str:
    with pytest.raises(UserFault) as raised:
        check(name, **given)
    (line,) = str(raised.value).splitlines()
    assert repr(name) in line
    return line


@pytest.mark.parametrize("kind", ["GPT-2", "Llama", "Qwen2", "GPT-NeoX", "OPT", "Bloom"])
def test_a_causal_transformer_passes(kind: str, tmp_path: Path):
    check(policy(tmp_path, kind))


def test_a_mixture_of_experts_passes_once_its_router_adds_no_loss(tmp_path: Path):
    name = policy(tmp_path, "Mixtral")
    assert "set router_aux_loss_coef to 0.0 and output_router_logits to false in its config.json" in fault(check, name)
    edit(name, "config.json", router_aux_loss_coef=0.0, output_router_logits=False)
    check(name)


def test_a_state_space_model_is_refused_in_one_line(tmp_path: Path):
    assert "cannot do what training asks of it (" in fault(check, policy(tmp_path, "Mamba"))


OWN_SETTINGS = [
    *({"repetition_penalty": 1.5}, {"no_repeat_ngram_size": 1}, {"min_new_tokens": 5}, {"suppress_tokens": [5, 6, 7]}),
    *({"num_beams": 3}, {"top_k": 2, "do_sample": True}, {"temperature": 0.3, "do_sample": False}),
]


@pytest.mark.parametrize("own", OWN_SETTINGS, ids=lambda own: next(iter(own)))
@pytest.mark.parametrize("kind", ["GPT-2", "Llama"])
def test_a_checkpoints_own_generation_settings_play_no_part(kind: str, own: dict[str, Any], tmp_path: Path):
    name = policy(tmp_path, kind)
    plain = sample(*load_policy(name), TEXTS[:2], k=8, max_new_tokens=8, seed=0).completion_ids.tolist()
    edit(name, "generation_config.json", **own)
    check(name)
    assert sample(*load_policy(name), TEXTS[:2], k=8, max_new_tokens=8, seed=0).completion_ids.tolist() == plain


def test_settings_that_cannot_be_saved_after_training_are_refused(tmp_path: Path):
    name = policy(tmp_path, "Llama")
    edit(name, "generation_config.json", temperature=0.3, do_sample=False, pad_token_id=None)
    assert "has a generation_config.json that cannot be saved after training" in fault(check, name)


def test_what_is_fine_tuned_from_a_mixture_of_experts_can_be_drawn_from(tmp_path: Path):
    name = policy(tmp_path / "experts", "Mixtral")
    edit(name, "config.json", router_aux_loss_coef=0.0, output_router_logits=False)
    (tmp_path / "sft").mkdir()
    shape = {"tokenizer": "bpe", "vocab": 300, "width": 8, "layers": 1, "heads": 1}
    training = {"tokens": 32, "epochs": 1, "batch": 16, "lr": 1e-3, "held_out": 10}
    called(train_sft, tmp_path / "sft", seed=0, data=Reviews("pocket", 40, 20, 0), policy=name, **shape, **training)
    check(str(tmp_path / "sft"))


def test_too_few_positions_are_told_with_both_numbers(tmp_path: Path):
    name = policy(tmp_path, "GPT-2", n_positions=40)
    assert "has 40 positions, and 64 are needed (sft_tokens: 64, or new_tokens: 32 behind 20" in fault(check, name)
    assert "has 40 positions, and 52 are needed" in fault(check, name, sft_tokens=40)
    check(name, sft_tokens=40, new_tokens=20)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path):
    name = policy(tmp_path, "GPT-2")
    edit(name, "tokenizer_config.json", eos_token=None)
    assert "has no end-of-text token" in fault(check, name)


def with_processor(template: str) -> Any:
    tokenizer = train_tokenizer("bpe", TEXTS, 300)
    special = [("<|endoftext|>", tokenizer.eos_token_id)]
    processor = processors.TemplateProcessing(single=template, special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = processor
    return tokenizer


def test_a_tokenizer_that_ends_each_text_is_refused(tmp_path: Path):
    name = policy(tmp_path, "Llama", with_processor("$A <|endoftext|>"))
    assert "puts '<|endoftext|>' behind each text" in fault(check, name)


def test_a_tokenizer_that_begins_each_text_passes(tmp_path: Path):
    check(policy(tmp_path, "Llama", with_processor("<|endoftext|> $A")))


def test_another_models_tokenizer_is_refused(tmp_path: Path):
    name = policy(tmp_path, "GPT-2", train_tokenizer("bpe", TEXTS, 400))
    assert "has weights for 300 tokens and a tokenizer of 400" in fault(check, name)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    name = policy(tmp_path, "Llama")
    model, tokenizer = load_policy(name)
    model.model.norm.weight.data.fill_(float("nan"))
    save(tmp_path, model, tokenizer)
    assert "not finite" in fault(check, name)


def test_a_policy_that_ends_at_once_passes(tmp_path: Path):
    name = policy(tmp_path, "GPT-2")
    model, tokenizer = load_policy(name)
    with torch.no_grad():  # whatever it reads, its last layer says the end
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.copy_(3000 * model.transformer.wte.weight[tokenizer.eos_token_id])
    save(tmp_path, model, tokenizer)
    drawn = sample(model, tokenizer, TEXTS[:2], k=1, max_new_tokens=4, seed=0)
    assert drawn.completion.tolist() == ["", ""]
    ended = sequence_log_probs(model, drawn.prompt_ids.tolist(), [[tokenizer.eos_token_id]] * 2)
    assert ended.tolist() == pytest.approx([0, 0], abs=1e-4)
    for new_tokens in (1, 8):
        check(name, new_tokens=new_tokens)


# Encoders


@pytest.mark.parametrize("kind", ["BERT", "RoBERTa", "ELECTRA", "DeBERTa", "GPT-2"])
def test_an_encoder_that_padding_does_not_move_passes(kind: str, tmp_path: Path):
    check_encoder(encoder(tmp_path, kind), tokens=64, dropout=0.0)


def test_an_encoder_that_padding_moves_is_refused(tmp_path: Path):
    line = fault(check_encoder, encoder(tmp_path, "XLNet"), tokens=64, dropout=0.0)
    assert "scores a text otherwise with padding behind it than alone" in line


def test_an_encoder_of_too_few_positions_is_told_with_both_numbers(tmp_path: Path):
    name = encoder(tmp_path, "BERT", max_position_embeddings=40)
    line = fault(check_encoder, name, tokens=64, dropout=0.0)
    assert "has 40 positions, and 64 are needed (reward_tokens: 64)" in line
    check_encoder(name, tokens=40, dropout=0.0)
    # RoBERTa counts from its padding's id on.
    name = encoder(tmp_path / "roberta", "RoBERTa", max_position_embeddings=64)
    assert "cannot read texts of reward_tokens: 64 (" in fault(check_encoder, name, tokens=64, dropout=0.0)


def test_an_encoder_without_a_padding_token_is_refused(tmp_path: Path):
    name = encoder(tmp_path, "BERT")
    edit(name, "tokenizer_config.json", pad_token=None)
    assert "has no padding token" in fault(check_encoder, name, tokens=64, dropout=0.0)


@pytest.mark.parametrize("make", [policy, encoder])
def test_a_checkpoint_that_lacks_a_layer_is_refused(make: Callable[..., str], tmp_path: Path):
    name = make(tmp_path, "GPT-2")
    edit(name, "config.json", n_layer=3)
    line = fault(check, name) if make is policy else fault(check_encoder, name, tokens=8, dropout=0.0)
    assert "lacks 12 weights that its config.json asks for, such as transformer.h.2." in line


def test_a_policy_of_other_shapes_is_told_without_a_word_about_heads(tmp_path: Path):
    name = policy(tmp_path, "GPT-2")
    edit(name, "config.json", n_embd=32)
    line = fault(check, name)
    assert "other shapes than the model asked for" in line
    assert "head" not in line


def test_an_encoder_without_a_head_passes(tmp_path: Path):
    torch.manual_seed(0)
    save(tmp_path, hf.AutoModel.from_config(ENCODERS["BERT"]()), PIECES)
    check_encoder(str(tmp_path), tokens=8, dropout=0.0)
