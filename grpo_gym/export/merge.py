"""LoRA: the adapters of any checkpoint as PEFT's files, or added to their base model."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from grpo_gym.export.names import adapter_names
from grpo_gym.export.sources import ADAPTER_WEIGHTS, WeightSource
from grpo_gym.vision.loading import sees_images


def write_adapter(source: WeightSource, checkpoint: Path, folder: Path, dtype: torch.dtype | None) -> int:
    """Write `adapter_model.safetensors` and `adapter_config.json`; returns the number of parameters."""
    names = adapter_names(source.sizes)
    read = source.read(names.values())
    tensors = {name: read[origin].to(dtype or read[origin].dtype) for name, origin in names.items()}
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    shutil.copy(checkpoint / "adapter_config.json", folder)
    return sum(tensor.numel() for tensor in tensors.values())


def merge_adapter(
    source: WeightSource, checkpoint: Path, folder: Path, dtype: torch.dtype | None, max_shard_bytes: int
) -> int:
    """Write the base model with the adapters added to it, in float32 until the end.

    Returns:
        The number of parameters.

    Raises:
        ValueError: the base model is not where adapter_config.json says.
    """
    from peft import PeftModel, get_peft_model_state_dict

    adapter_config = json.loads((checkpoint / "adapter_config.json").read_text())
    base_name = adapter_config["base_model_name_or_path"]
    revision = adapter_config.get("revision") or "main"
    try:
        config = AutoConfig.from_pretrained(base_name, revision=revision)
        auto_class = AutoModelForImageTextToText if sees_images(config) else AutoModelForCausalLM
        base = auto_class.from_pretrained(base_name, revision=revision, dtype=torch.float32)
    except OSError as error:
        raise ValueError(
            f"the base model {base_name} cannot be loaded; put its place into base_model_name_or_path "
            f"of {checkpoint / 'adapter_config.json'}."
        ) from error
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}.adapter") as adapter:
        write_adapter(source, checkpoint, Path(adapter), None)
        adapted = PeftModel.from_pretrained(base, adapter)
        _check_adapters(set(get_peft_model_state_dict(adapted)), set(adapter_names(source.sizes)))
        model = adapted.merge_and_unload()
    count = sum(parameter.numel() for parameter in model.parameters())
    model.to(dtype or torch.float32).save_pretrained(folder, max_shard_size=max_shard_bytes)
    return count


def _check_adapters(needed: set[str], found: set[str]) -> None:
    """PEFT only warns about adapters it finds no weights for, and leaves them at zero."""
    if different := sorted(needed ^ found):
        raise ValueError(
            f"adapter_config.json and the adapters' weights do not belong together: {different[0]} is only "
            f"in {'the configuration' if different[0] in needed else 'the weights'}."
        )
