"""Random-initialised models of known shapes: speed and memory do not depend on the weights' values."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PretrainedConfig, PreTrainedModel, Qwen2Config

_SHAPES: dict[str, tuple[Any, dict[str, int]]] = {
    "smollm2-135m": (
        LlamaConfig,
        {
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "vocab_size": 49152,
        },
    ),
    "qwen2.5-0.5b": (
        Qwen2Config,
        {
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
        },
    ),
    "qwen2.5-1.5b": (
        Qwen2Config,
        {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
        },
    ),
    "tiny": (
        LlamaConfig,
        {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "vocab_size": 1024,
        },
    ),
}
MODEL_NAMES = tuple(_SHAPES)


def num_layers(name: str) -> int:
    """Layers of the full shape."""
    return _SHAPES[name][1]["num_hidden_layers"]


def model_config(name: str, layers: int | None = None) -> PretrainedConfig:
    """The configuration of a shape, tied embeddings, sdpa attention.

    With fewer `layers` the vocabulary shrinks in the same proportion, so that trunk and LM head keep their
    shares of the work and a ratio of two programs stays comparable with the full size.
    """
    config_class, sizes = _SHAPES[name]
    full = sizes["num_hidden_layers"]
    layers = layers or full
    vocab_size = max(64, round(sizes["vocab_size"] * layers / full / 64) * 64)
    config: PretrainedConfig = config_class(
        **{**sizes, "num_hidden_layers": layers, "vocab_size": vocab_size},
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return config


def random_model(name: str, layers: int | None = None, device: str = "cpu") -> PreTrainedModel:
    """A float32 model with seeded random weights, in training mode, gradients allocated and zero."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        model_config(name, layers), attn_implementation="sdpa", dtype=torch.float32
    )
    model.to(device).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    return model


def num_matmul_parameters(model: PreTrainedModel) -> tuple[int, int]:
    """Weights of the trunk, which multiply every token, and of the (tied) LM head."""
    head = model.config.vocab_size * model.config.hidden_size
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    return matrices - head, head
