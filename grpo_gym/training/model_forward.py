"""Hidden states that predict completion tokens, by the cheapest path that is exact for a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from grpo_gym.training.attention import install_packed_attention, no_mask
from grpo_gym.training.packing import PackedBatch
from grpo_gym.vision.loading import sees_images
from grpo_gym.vision.model_inputs import padded_masks, sampled_image_tokens_as_text, token_types

PackingSupport = Literal["shared_prefix", "separate", "padded"]

# Model types whose layers mix tokens in attention only, through transformers' attention interface, with
# rotary positions taken from `position_ids`: each is compared with the padded reference in the tests.
PACKABLE_MODEL_TYPES = frozenset(
    {
        "cohere",
        "gemma",
        "glm4",
        "granite",
        "llama",
        "ministral3",
        "mistral",
        "mixtral",
        "olmo",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen2_moe",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "starcoder2",
    }
)
# Frequencies of these depend on the longest sequence of the batch, not on a token's position alone.
_BATCH_DEPENDENT_ROPE = frozenset({"dynamic", "longrope"})
_ATTENTION_LAYERS = frozenset({"full_attention", "sliding_attention"})


def packing_support(model_or_config: PreTrainedModel | PretrainedConfig) -> tuple[PackingSupport, str]:
    """How rows of this model can be packed, and why not better.

    Returns:
        "shared_prefix": completions behind one copy of their prompt. "separate": padding-free rows of whole
        sequences. "padded": neither; rows become a right-padded batch inside the forward. And a reason,
        empty for "shared_prefix".
    """
    config: Any = getattr(model_or_config, "config", model_or_config)
    if sees_images(config):
        return "padded", f"{config.model_type} prompts have images"
    if config.model_type not in PACKABLE_MODEL_TYPES:
        return "padded", f"packing is not tested for {config.model_type} models"
    other_layers = sorted(set(getattr(config, "layer_types", None) or ()) - _ATTENTION_LAYERS)
    if other_layers:
        return "padded", f"{config.model_type} has {other_layers[0]} layers, which mix the sequences of a row"
    rope = _rope_parameters(config)
    if any("mrope_section" in each for each in rope):
        return "padded", f"{config.model_type} has multimodal rotary positions (mRoPE)"
    if any(each.get("rope_type") in _BATCH_DEPENDENT_ROPE for each in rope):
        return "separate", f"{config.model_type} has rotary frequencies that depend on the longest sequence"
    if _has_sliding_window(config):
        return "separate", f"{config.model_type} attends through a sliding window"
    return "shared_prefix", ""


def supports_shared_prefix(model_or_config: PreTrainedModel | PretrainedConfig) -> tuple[bool, str]:
    """Whether `pack_groups(shared_prefix=True)` is exact for this model, and why not."""
    support, reason = packing_support(model_or_config)
    return support == "shared_prefix", reason


def prepare_for_packing(model: PreTrainedModel) -> None:
    """Install packed attention where the model can use it."""
    if packing_support(model)[0] != "padded":
        install_packed_attention(model)


def completion_hidden_states(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    """Last hidden states that predict the completion tokens of `batch`, [N, hidden], in the model's dtype."""
    if packing_support(model)[0] == "padded":
        return _padded_hidden_states(model, batch)
    hidden = _decode(
        model,
        batch.input_ids,
        attention_mask=no_mask(batch.input_ids.device),
        position_ids=batch.position_ids,
        packed_layout=batch.layout,
    )
    # The first tokens of a group's completions have the same position. Gradients meet there, and only `embedding` adds
    # them in the same order every time: indexing does not on a CPU, `index_select` not on a GPU.
    return nn.functional.embedding(batch.predict_index, hidden[0])


def pad_sequences(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """The sequences of a packed batch, right-padded.

    Returns:
        input ids [B, L] long, attention mask [B, L] long (1 on tokens), and [N] long: the place in B * L
        whose hidden state predicts each completion token.
    """
    indices = list(_sequence_indices(batch))
    longest = max(len(index) for index in indices)
    flat_ids = batch.input_ids[0]
    input_ids = flat_ids.new_zeros((len(indices), longest))
    attention_mask = torch.zeros_like(input_ids)
    places = [torch.zeros(0, dtype=torch.long)]
    # Sequences without a rollout (the filling of an empty micro-batch) come last and score nothing.
    lengths = batch.completion_lengths
    completion_lengths = lengths + [0] * (len(indices) - len(lengths))
    for row, (index, num_scored) in enumerate(zip(indices, completion_lengths, strict=True)):
        input_ids[row, : len(index)] = flat_ids[index.to(flat_ids.device)]
        attention_mask[row, : len(index)] = 1
        places.append(torch.arange(len(index) - num_scored, len(index)) + row * longest)
    return input_ids, attention_mask, torch.cat(places).to(flat_ids.device)


def _padded_hidden_states(model: PreTrainedModel, batch: PackedBatch) -> Tensor:
    input_ids, attention_mask, places = pad_sequences(batch)
    if batch.vision is None:
        return _decode(model, input_ids, attention_mask=attention_mask).flatten(0, 1)[places]
    image_token_id = model.config.image_token_id
    is_image = padded_masks(batch.vision.is_image, attention_mask.sum(dim=1).tolist())
    inputs = {**batch.vision.pixels, **token_types(model.config, is_image)}
    with sampled_image_tokens_as_text(model, input_ids, is_image, image_token_id) as ids:
        return _decode(model, ids, attention_mask=attention_mask, **inputs).flatten(0, 1)[places]


def _decode(model: PreTrainedModel, input_ids: Tensor, **kwargs: Any) -> Tensor:
    decoder: nn.Module = model.base_model
    hidden: Tensor = decoder(input_ids=input_ids, use_cache=False, **kwargs).last_hidden_state
    return hidden


def _sequence_indices(batch: PackedBatch) -> Iterator[Tensor]:
    """The places in T of each sequence's input."""
    for spans in batch.layout.sequences():
        yield torch.cat([torch.arange(start, end) for start, end in spans])


def _rope_parameters(config: PretrainedConfig) -> list[dict[str, Any]]:
    """The rotary settings of a model: one dict, or one per layer type."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [each for each in rope.values() if isinstance(each, dict)]
    return nested or [rope]


def _has_sliding_window(config: PretrainedConfig) -> bool:
    layer_types = getattr(config, "layer_types", None)
    if layer_types:
        return "sliding_attention" in layer_types
    return getattr(config, "sliding_window", None) is not None
