"""The frozen reference model of the KL term, divided among the processes like the policy."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled


def make_reference(
    model: PreTrainedModel, beta: float, uses_peft: bool, model_init_kwargs: Mapping[str, Any] | None = None
) -> PreTrainedModel | None:
    """A frozen copy of the starting policy; None when no KL is asked for or LoRA can switch its adapter off.

    Args:
        model: the policy.
        beta: weight of the KL term.
        uses_peft: adapters will be put on the policy.
        model_init_kwargs: what the policy was loaded with.

    Raises:
        ValueError: under ZeRO-3, a policy that was not loaded from files.
    """
    if beta == 0.0 or uses_peft:
        return None
    reference = _copy(model, model_init_kwargs or {}).eval()
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    return reference


def _copy(model: PreTrainedModel, model_init_kwargs: Mapping[str, Any]) -> PreTrainedModel:
    """A second model with the same weights; under ZeRO-3 loaded again, because its parts cannot be copied."""
    if not is_deepspeed_zero3_enabled() or not any(hasattr(p, "ds_id") for p in model.parameters()):
        return copy.deepcopy(model)
    name = model.config._name_or_path
    if not name:
        raise ValueError(
            "under ZeRO-3 beta > 0 needs a model that was loaded from files: save_pretrained it and pass the folder, "
            "or set beta=0."
        )
    attention = model.config._attn_implementation
    how = {**model_init_kwargs, "dtype": model.dtype, "attn_implementation": attention}
    reference: PreTrainedModel = type(model).from_pretrained(name, **how)
    _copy_weights(model, reference)
    return reference


def _copy_weights(source: PreTrainedModel, target: PreTrainedModel) -> None:
    """Gathered one by one: a ready model may have other weights than the files it was loaded from."""
    import deepspeed

    pairs = zip(source.parameters(), target.parameters(), strict=True)
    for ours, theirs in pairs:
        with deepspeed.zero.GatheredParameters([ours, theirs], modifier_rank=0):
            theirs.data.copy_(ours.data)
    for buffer, other in zip(source.buffers(), target.buffers(), strict=True):
        other.data.copy_(buffer.data)


def place_reference(reference: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Move the reference to this rank's device; under ZeRO-3 and FSDP every rank keeps its part only."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None and plugin.zero_stage == 3:
        return _under_zero3(reference, plugin.deepspeed_config)
    if accelerator.is_fsdp2:
        from accelerate.utils.fsdp_utils import fsdp2_prepare_model

        sharded: nn.Module = fsdp2_prepare_model(accelerator, reference).eval()
        return sharded
    if accelerator.distributed_type.value == "FSDP":
        wrapped: nn.Module = accelerator.prepare_model(reference, evaluation_mode=True).eval()
        return wrapped
    return reference.to(accelerator.device)


def _under_zero3(reference: nn.Module, settings: dict[str, Any]) -> nn.Module:
    """DeepSpeed without an optimizer: what gathers the weights of each layer when its turn comes."""
    import deepspeed

    config = copy.deepcopy(settings)
    for name in ("optimizer", "scheduler"):
        config.pop(name, None)
    config["zero_optimization"].pop("offload_optimizer", None)
    engine: nn.Module = deepspeed.initialize(model=reference, config=config)[0]
    engine.eval()  # returns nothing
    return engine
