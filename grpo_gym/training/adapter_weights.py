"""The LoRA adapter alone, as the file that PEFT would save: what `lora_sync="adapter"` sends to the servers."""

from __future__ import annotations

import json
from typing import Any

import torch
from safetensors.torch import save
from torch import nn

from grpo_gym.inference.adapter_endpoint import CONFIG_KEY
from grpo_gym.training.weights import _gathered, _whole, plain_name

_PEFT_PREFIX = "base_model.model."


def check_adapter(peft_config: Any, modules: set[str]) -> None:
    """Find out before training what vLLM cannot serve as an adapter.

    Raises:
        ValueError: not plain LoRA; the message names the setting.
    """
    unsupported = {
        "use_dora": bool(getattr(peft_config, "use_dora", False)),
        "modules_to_save": bool(getattr(peft_config, "modules_to_save", None)),
        "rank_pattern": bool(getattr(peft_config, "rank_pattern", None)),
        "alpha_pattern": bool(getattr(peft_config, "alpha_pattern", None)),
        "bias": getattr(peft_config, "bias", "none") != "none",
        "lm_head or embed_tokens among its modules": bool(modules & {"lm_head", "embed_tokens"}),
    }
    found = [name for name, is_set in unsupported.items() if is_set]
    if getattr(peft_config, "r", None) is None:
        raise ValueError("lora_sync='adapter' needs a LoraConfig as peft_config; use lora_sync='merge'.")
    if found:
        raise ValueError(
            f"lora_sync='adapter': vLLM does not serve adapters with {', '.join(found)}; use lora_sync='merge'."
        )


def serialize_adapter(model: Any, peft_config: Any) -> bytes:
    """The active adapter as a safetensors file with its configuration in the metadata.

    Called by every rank: under ZeRO-3 and FSDP gathering is a collective.

    Args:
        model: the policy, possibly wrapped by DDP, DeepSpeed or FSDP.
        peft_config: the adapter's `LoraConfig`.
    """
    parameters = {name: p for name, p in model.named_parameters() if ".lora_" in name}
    with torch.no_grad(), _gathered(list(parameters.values())):
        tensors = {adapter_name(name): _whole(p).to("cpu", copy=True) for name, p in parameters.items()}
    config = {name: _plain(value) for name, value in peft_config.to_dict().items()}
    return bytes(save(tensors, metadata={CONFIG_KEY: json.dumps(config)}))


def adapter_name(name: str) -> str:
    """PEFT's name in a saved adapter: without the wrappers and without the adapter's own name."""
    owner, part, rest = plain_name(name).rpartition(".lora_")
    kind, *tail = rest.split(".")  # A.default.weight, or embedding_A.default
    return ".".join([f"{_PEFT_PREFIX}{owner}{part}{kind}", *tail[1:]])


def adapted_modules(model: nn.Module) -> set[str]:
    """Names, without their path, of the modules that the adapter changes."""
    return {
        plain_name(name).rpartition(".lora_")[0].rpartition(".")[2]
        for name, _ in model.named_parameters()
        if ".lora_" in name
    }


def adapter_config_of(model: nn.Module) -> Any:
    """The `LoraConfig` of a PEFT model's active adapter; None for a model without one."""
    configs = getattr(model, "peft_config", None)
    if not configs:
        return None
    return configs[model.active_adapter]  # type: ignore[index]


def _plain(value: Any) -> Any:
    """A configuration's value as JSON knows it."""
    if isinstance(value, set | frozenset):
        return sorted(value)
    return value if isinstance(value, str | int | float | bool | list | dict | None) else str(value)
