"""Tokens drawn by the written-out forward pass: those that the model itself would give."""

from collections.abc import Callable

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedModel,
    Qwen2Config,
)

from alignkit.decoding import NotFinite, decode_gpt2, decode_tokens, draw_token, is_known
from alignkit.sampling import distinct, sample, sequence_log_probs
from alignkit.training.deviations import logits_of
from alignkit.world.models import train_tokenizer

END, NEW = 0, 20
PROMPTS = [[3, 4], [5, 6, 7, 8, 9], [3, 4], [7]]
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 30}


def gpt2(**changed: object) -> GPT2LMHeadModel:
    """A GPT-2 with random weights, large enough that what it says differs from place to place."""
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "vocab_size": 30}
    return GPT2LMHeadModel(GPT2Config(**shape | {"initializer_range": 0.6, **changed})).eval()


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return gpt2()


def decoded(model: GPT2LMHeadModel, prompts: list[list[int]], **settings: object) -> torch.Tensor:
    usual = {"new": NEW, "end": END, "bias": torch.zeros(30), "choose": draw_token}
    return decode_gpt2(model, *distinct(prompts, model.device), **usual | settings)


def greedy(logits: torch.Tensor) -> torch.Tensor:
    return logits.argmax(dim=-1)


def by_generate(model: GPT2LMHeadModel, prompt: list[int]) -> list[int]:
    ids = torch.tensor([prompt])
    ends = {"pad_token_id": END, "eos_token_id": END}
    whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False, **ends)
    return whole[0, len(prompt) :].tolist()


def test_generate_draws_from_all_tokens_and_adds_the_bias() -> None:
    torch.manual_seed(0)
    llama = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE | {"vocab_size": 200})).eval()  # near uniform
    bias, usual = torch.zeros(200), {"new": 1, "end": END}
    drawn = decode_tokens(llama, *distinct([[3]] * 4000, llama.device), **usual, bias=bias)
    assert len(drawn.unique()) > 150  # with the usual top-k of 50 there would be as many
    bias[11] = 1000.0
    assert (decode_tokens(llama, *distinct(PROMPTS, llama.device), **usual, bias=bias) == 11).all()


@pytest.mark.parametrize("seed", range(5))
def test_greedy_decoding_gives_what_generate_gives_for_the_prompt_alone(model: GPT2LMHeadModel, seed: int) -> None:
    torch.manual_seed(seed)
    prompts = torch.randint(1, 30, (24, 6)).tolist() + PROMPTS
    found = decoded(model, prompts, choose=greedy)
    lengths = set()
    for prompt, row in zip(prompts, found.tolist(), strict=True):
        expected = by_generate(model, prompt)
        assert row[: len(expected)] == expected
        assert set(row[len(expected) :]) <= {END}
        lengths.add(len(expected))
    assert len(lengths) > 2  # some rows ended on the way


def test_each_token_is_chosen_by_the_logits_of_the_whole_text(model: GPT2LMHeadModel) -> None:
    seen: list[torch.Tensor] = []

    def noted(logits: torch.Tensor) -> torch.Tensor:
        seen.append(logits)
        return draw_token(logits).clamp(min=1)  # no row ends, so all rows stay

    torch.manual_seed(0)
    found = decoded(model, PROMPTS, choose=noted)
    for i, prompt in enumerate(PROMPTS):
        text = torch.tensor([prompt + found[i].tolist()])
        expected = logits_of(model, text, torch.ones_like(text))[0, len(prompt) - 1 : -1]
        torch.testing.assert_close(torch.stack(seen)[:, i], expected, rtol=0, atol=1e-4)


def test_a_bias_is_added_to_the_logits(model: GPT2LMHeadModel) -> None:
    bias = torch.zeros(30)
    bias[11] = 1000.0
    assert (decoded(model, PROMPTS, bias=bias) == 11).all()


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_greedy_samples_are_the_likeliest_tokens(name: str) -> None:
    torch.manual_seed(0)
    model = CONFIGURATIONS[name]().eval()
    usual = {"new": NEW, "end": END, "bias": torch.zeros(30)}
    first, again = (decode_tokens(model, *distinct(PROMPTS, model.device), **usual, greedy=True) for _ in range(2))
    assert torch.equal(first, again)
    for prompt, row in zip(PROMPTS, first.tolist(), strict=True):
        expected = by_generate(model, prompt)
        assert row[: len(expected)] == expected


def test_tokens_without_probability_are_never_drawn() -> None:
    logits = torch.full((2000, 5), -torch.inf)
    logits[:, 2] = 0.0
    assert (draw_token(logits) == 2).all()
    logits[:, 4] = 0.0
    assert set(draw_token(logits).tolist()) == {2, 4}


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_a_policy_whose_logits_are_not_finite_is_not_drawn_from(name: str) -> None:
    model = CONFIGURATIONS[name]().eval()
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(NotFinite):
        decode_tokens(model, *distinct(PROMPTS, model.device), new=NEW, end=END, bias=torch.zeros(30))


def test_a_gpt2_in_bfloat16_is_drawn_from() -> None:
    found = decoded(gpt2().to(torch.bfloat16), PROMPTS)
    assert found.shape[0] == len(PROMPTS)
    assert ((found >= 0) & (found < 30)).all()


CONFIGURATIONS: dict[str, Callable[[], PreTrainedModel]] = {
    "GPT-2": gpt2,
    "GPT-2, other activation": lambda: gpt2(activation_function="relu"),
    "GPT-2, scores unscaled": lambda: gpt2(scale_attn_weights=False),
    "GPT-2, scores by layer": lambda: gpt2(scale_attn_by_inverse_layer_idx=True),
    "GPT-2 with adapters": lambda: get_peft_model(gpt2(), LoraConfig(task_type="CAUSAL_LM", r=2)).base_model.model,
    "Llama": lambda: AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE)),
    "Qwen2": lambda: AutoModelForCausalLM.from_config(Qwen2Config(**SHAPE, num_key_value_heads=2)),
    "GPT-NeoX": lambda: AutoModelForCausalLM.from_config(GPTNeoXConfig(**SHAPE)),
}


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_only_gpt2_as_published_is_decoded_by_hand(name: str) -> None:
    assert is_known(CONFIGURATIONS[name]().eval()) == (name == "GPT-2")


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_what_is_drawn_is_scored_as_the_text_alone(name: str) -> None:
    torch.manual_seed(0)
    model = CONFIGURATIONS[name]().eval()
    tokenizer = train_tokenizer("word", [" ".join(map(str, range(26)))], 30)
    drawn = sample(model, tokenizer, PROMPTS, k=5, max_new_tokens=6, seed=0)
    scored = sequence_log_probs(model, drawn.prompt_ids, drawn.completion_ids)
    for prompt, completion, found in zip(drawn.prompt_ids, drawn.completion_ids, scored, strict=True):
        with torch.no_grad():
            log_probs = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert found == pytest.approx(log_probs.gather(1, torch.tensor(completion)[:, None]).sum().item(), abs=1e-4)
