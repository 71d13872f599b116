"""Tiny random models of the architectures the trainer supports."""

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 61
ARCHITECTURES = {
    "llama": (LlamaForCausalLM, LlamaConfig, {}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {}),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config, {"head_dim": 8}),
    "mistral_sliding_window": (MistralForCausalLM, MistralConfig, {"sliding_window": 7}),
}


def make_model(architecture: str = "llama", dtype: torch.dtype = torch.float32, **overrides):
    model_class, config_class, extra = ARCHITECTURES[architecture]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.3,
        **(extra | overrides),
    )
    return model_class(config).to(dtype).eval()


@pytest.fixture(scope="module")
def model():
    return make_model()


def plain_logprobs(model, prompt_ids, completion_ids, temperature=1.0):
    """Log-probs of the completion from one ordinary forward pass without cache, [len(completion)]."""
    ids = torch.tensor([prompt_ids + completion_ids])
    with torch.no_grad():
        logits = model(ids).logits[0]
    logprobs = (logits / temperature).log_softmax(-1)[len(prompt_ids) - 1 : -1]
    return logprobs.gather(1, torch.tensor(completion_ids)[:, None])[:, 0]
