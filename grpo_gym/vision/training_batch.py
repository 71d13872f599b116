"""Pictures for the micro-batches of a training step."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from grpo_gym.rollouts.types import Rollout
from grpo_gym.training.packing import GroupLayout, PackedBatch, PackLayout
from grpo_gym.vision.model_inputs import VisionInputs, concatenate_pixels, image_positions, vision_inputs
from grpo_gym.vision.renderer import ImageChatRenderer


def with_images(pack: PackedBatch, rollouts: Sequence[Rollout], renderer: ImageChatRenderer) -> PackedBatch:
    """A micro-batch of whole sequences with the pictures of its rollouts.

    With several ranks, a micro-batch without pictures gets one more sequence, the prompt of a rollout with
    pictures, which is not scored: every rank's gradients must reach the vision tower in every pass.

    Args:
        pack: made with `shared_prefix=False`.
        rollouts: all rollouts of the step.
        renderer: turns pictures into pixels.
    """
    chosen = [rollouts[i] for i in pack.rollout_ids]
    vision = vision_inputs(chosen, renderer.image_token_id, renderer.pixels)
    if not chosen:
        vision.is_image.append(torch.zeros(pack.input_ids.shape[1], dtype=torch.bool))
    pack = dataclasses.replace(pack, vision=vision)
    if vision.pixels or not torch.distributed.is_initialized():
        return pack
    with_pictures = next((r for r in rollouts if r.images), None)
    return pack if with_pictures is None else _filled(pack, vision, with_pictures, renderer)


def _filled(
    pack: PackedBatch, vision: VisionInputs, rollout: Rollout, renderer: ImageChatRenderer
) -> PackedBatch:
    whole = [*rollout.prompt_ids, *rollout.completion_ids]
    start, end = pack.input_ids.shape[1], pack.input_ids.shape[1] + len(whole)
    mask = image_positions(rollout, renderer.image_token_id)
    return dataclasses.replace(
        pack,
        input_ids=torch.cat([pack.input_ids, torch.tensor([whole])], dim=1),
        position_ids=torch.cat([pack.position_ids, torch.arange(len(whole))[None]], dim=1),
        layout=PackLayout((*pack.layout.groups, GroupLayout(trunk=(start, end)))),
        vision=VisionInputs(
            concatenate_pixels([vision.pixels, renderer.pixels(rollout.images)]), [*vision.is_image, mask]
        ),
    )
