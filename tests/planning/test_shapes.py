"""Parameters are counted exactly: a plan that is off by a tied head is off by gigabytes."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    Qwen2Config,
    Qwen3Config,
)

from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.planning.shapes import KNOWN, ModelShape, find_shape, known_shape

CONFIGS = {"llama": LlamaConfig, "smollm2": LlamaConfig, "qwen2.5": Qwen2Config, "qwen3": Qwen3Config}


def config_of(name, shape):
    kind = Gemma3TextConfig if name.startswith("gemma") else CONFIGS[name.split("-")[0]]
    return kind(
        hidden_size=shape.hidden_size, intermediate_size=shape.intermediate_size, head_dim=shape.head_dim,
        num_hidden_layers=shape.num_layers, num_attention_heads=shape.num_heads,
        num_key_value_heads=shape.num_kv_heads, vocab_size=shape.vocab_size, tie_word_embeddings=shape.tied,
    )  # fmt: skip


def count(config):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("name", KNOWN)
def test_every_known_shape_has_the_parameters_of_the_real_model(name):
    config = config_of(name, KNOWN[name])
    assert KNOWN[name].num_parameters == count(config)
    assert ModelShape.from_config(config) == KNOWN[name]


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("qwen2.5-7b", 7.6),
        ("llama-3.2-1b", 1.24),
        ("qwen3-8b", 8.2),
        ("gemma-3-1b", 1.0),
        ("qwen2.5-32b", 32.8),
    ],
)
def test_the_sums_are_those_the_makers_give(name, billions):
    assert KNOWN[name].num_parameters / 1e9 == pytest.approx(billions, rel=0.02)


def test_a_local_configuration_is_read():
    shape = find_shape("tiny")
    assert shape == ModelShape.from_config(AutoConfig.from_pretrained(TINY_MODEL_PATH))
    assert shape.num_parameters == count(AutoConfig.from_pretrained(TINY_MODEL_PATH))


def test_hub_names_find_their_entry():
    assert known_shape("Qwen/Qwen2.5-7B-Instruct") == KNOWN["qwen2.5-7b"]
    assert known_shape("Qwen/Qwen3-8B") == KNOWN["qwen3-8b"]
    assert known_shape("someone/qwen2.5-70b") is None


def test_an_unknown_model_is_refused_with_the_known_ones(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"someone/model is not known.*qwen2\.5-7b"):
        find_shape("someone/model")
    with pytest.raises(ValueError, match="'gpt2' cannot be planned"):
        ModelShape.from_config(GPT2Config())


def test_lora_parameters_are_those_peft_makes():
    from peft import LoraConfig, get_peft_model

    config = AutoConfig.from_pretrained(TINY_MODEL_PATH)
    model = get_peft_model(
        AutoModelForCausalLM.from_config(config), LoraConfig(r=4, target_modules="all-linear")
    )
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert ModelShape.from_config(config).lora_parameters(4) == trained
