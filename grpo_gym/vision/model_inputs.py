"""The vision part of a training batch: pixels of its sequences, and which of their tokens stand for pixels."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from grpo_gym.rollouts.types import Rollout

Pixels = dict[str, Tensor]

# What models call the input that tells image tokens (1) from text (0).
_TOKEN_TYPE_INPUTS = {
    "qwen2_vl": "mm_token_type_ids",
    "qwen2_5_vl": "mm_token_type_ids",
    "qwen3_vl": "mm_token_type_ids",
    "gemma3": "token_type_ids",
}
_SEVERAL_IMAGES_DIM = 5


@dataclasses.dataclass(frozen=True, slots=True)
class VisionInputs:
    """What a micro-batch has beside its tokens.

    Attributes:
        pixels: model inputs of all pictures, in the order of the sequences.
        is_image: one bool tensor per sequence, over prompt and completion: True where a token stands for pixels.
    """

    pixels: Pixels
    is_image: list[Tensor]

    def to(self, device: torch.device | str) -> VisionInputs:
        """A copy on `device`."""
        pixels = {name: tensor.to(device) for name, tensor in self.pixels.items()}
        return VisionInputs(pixels, [mask.to(device) for mask in self.is_image])


def vision_inputs(
    rollouts: Sequence[Rollout], image_token_id: int, pixels_of: Callable[[Sequence[str]], Pixels]
) -> VisionInputs:
    """The vision part of sequences that are trained on.

    Args:
        rollouts: in the order of the batch.
        image_token_id: the id image placeholders expand to.
        pixels_of: data URIs to model inputs.
    """
    pixels = concatenate_pixels([pixels_of(r.images) for r in rollouts])
    return VisionInputs(pixels, [image_positions(r, image_token_id) for r in rollouts])


def image_positions(rollout: Rollout, image_token_id: int) -> Tensor:
    """Bool over prompt + completion: image tokens that the environment wrote. A sampled one is text."""
    ids = torch.tensor([*rollout.prompt_ids, *rollout.completion_ids])
    sampled = torch.tensor([0] * len(rollout.prompt_ids) + list(rollout.loss_mask), dtype=torch.bool)
    return (ids == image_token_id) & ~sampled


def concatenate_pixels(parts: Sequence[Mapping[str, Tensor]]) -> Pixels:
    """Pixels of several sequences as those of one batch."""
    used = [part for part in parts if part]
    if not used:
        return {}
    # Idefics3 has [sequences, images, 3, H, W] with as many images for every sequence: put all of them into one
    # row, so that sequences may differ. Others have a row per patch or picture.
    dim = 1 if used[0]["pixel_values"].ndim == _SEVERAL_IMAGES_DIM else 0
    return {name: torch.cat([part[name] for part in used], dim=dim) for name in used[0]}


def token_types(config: PretrainedConfig, is_image: Tensor) -> dict[str, Tensor]:
    """The model input that marks image tokens, where a model has one; `is_image` is bool [B, L]."""
    name = _TOKEN_TYPE_INPUTS.get(config.model_type)
    return {} if name is None else {name: is_image.long()}


@contextlib.contextmanager
def sampled_image_tokens_as_text(
    model: PreTrainedModel, input_ids: Tensor, is_image: Tensor, image_token_id: int
) -> Iterator[Tensor]:
    """Ids for the model's forward, in which image tokens that the policy sampled are not placeholders.

    Models take every image token for a placeholder of a picture. In generation a sampled one is embedded as any
    other token; so it is here: the model is given another id, and its embedding layer the true one.

    Args:
        model: the model whose forward runs inside.
        input_ids: [B, L] long.
        is_image: [B, L] bool, the real placeholders.
        image_token_id: their id.
    """
    as_text = (input_ids == image_token_id) & ~is_image
    if not as_text.any():
        yield input_ids
        return
    other_id = 0 if image_token_id else 1
    embedding: nn.Module = model.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(
        lambda _, args: (input_ids, *args[1:]) if args and args[0].shape == input_ids.shape else None
    )
    try:
        yield input_ids.masked_fill(as_text, other_id)
    finally:
        handle.remove()


def padded_masks(masks: Sequence[Tensor], lengths: Sequence[int]) -> Tensor:
    """Masks of sequences, cut to the lengths that run through the model and right-padded: bool [B, L]."""
    rows: list[Any] = [mask[:length] for mask, length in zip(masks, lengths, strict=True)]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=False)
