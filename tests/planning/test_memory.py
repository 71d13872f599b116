"""Memory formulas against tensors that were really allocated."""

import dataclasses

import pytest
import torch
from transformers import AutoModelForCausalLM, DynamicCache

from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.planning import memory
from grpo_gym.planning.shapes import KNOWN, find_shape
from grpo_gym.planning.workload import Workload


def tiny_load(**changes):
    settings = {
        "shape": find_shape("tiny"), "completions": 64, "group_size": 8, "prompt_tokens": 50,
        "completion_tokens": 64, "longest_completion": 64, "max_completion_length": 64,
        "compute_width": 4, "serve_width": 4, "uses_server": False,
    }  # fmt: skip
    return Workload(**settings | changes)


def nbytes(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def test_weights_gradients_and_moments_are_exact():
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.arange(8)[None]).logits.sum().backward()
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    parts = memory.trainer_memory(tiny_load(), "none", 1).parts
    assert parts["weights"] == nbytes(model.parameters())
    assert parts["gradients"] == nbytes(parameter.grad for parameter in model.parameters())
    assert parts["optimizer"] == nbytes(moments)


def test_the_kv_cache_is_exact():
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    cache = DynamicCache()
    with torch.no_grad():
        model(torch.arange(30)[None], past_key_values=cache)
    held = nbytes(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))
    assert find_shape("tiny").kv_bytes_per_token(4) * 30 == held


def saved_bytes(model, num_tokens):
    """Bytes that the decoder layers keep for backward, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.model(torch.randint(3, 1000, (1, num_tokens))).last_hidden_state.sum().backward()
    return sum(size for size, _ in kept.values())


def test_activations_are_what_autograd_keeps():
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH, attn_implementation="sdpa")
    kept = (saved_bytes(model, 400) - saved_bytes(model, 200)) / 200
    shape = find_shape("tiny")
    assert 4 * shape.num_layers * memory.layer_activations(shape) == pytest.approx(kept, rel=0.15)


@pytest.mark.parametrize(("sharding", "per_parameter"), [("none", 16), ("zero2", 4 + 12 / 4)])
def test_zero_spreads_what_it_says(sharding, per_parameter):
    parts = memory.trainer_memory(tiny_load(), sharding, 4).parts
    state = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert state == per_parameter * find_shape("tiny").num_parameters


def test_zero3_keeps_a_share_of_everything_and_one_layer_whole():
    shape = find_shape("tiny")
    parts = memory.trainer_memory(tiny_load(), "zero3", 4).parts
    state = parts["weights"] + parts["gradients"] + parts["optimizer"]
    assert state == 16 * shape.num_parameters / 4 + 4 * shape.layer_matrices


def test_lora_keeps_optimizer_state_of_the_adapters_only():
    shape = KNOWN["qwen2.5-7b"]
    load = tiny_load(
        shape=shape,
        adapter_parameters=shape.lora_parameters(16),
        weight_width=2,
        gradient_width=2,
        compute_width=2,
    )
    parts = memory.trainer_memory(load, "none", 1).parts
    assert parts["optimizer"] == 8 * load.adapter_parameters
    assert parts["weights"] < 1.02 * 2 * shape.num_parameters


def test_checkpointing_keeps_the_layers_inputs_and_one_layer():
    load = tiny_load()
    whole = memory.activation_bytes(load)
    kept = memory.activation_bytes(dataclasses.replace(load, gradient_checkpointing=True))
    assert kept < whole / 2


def test_a_micro_batch_bounds_the_activations():
    load = tiny_load(micro_batch_tokens=1000)
    twice = tiny_load(micro_batch_tokens=2000)
    assert memory.activation_bytes(twice) == 2 * memory.activation_bytes(load)
