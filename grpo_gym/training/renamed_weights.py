"""Checkpoints whose tensors have other names than in the model.

transformers writes some models (Qwen2.5-VL, mixtures of experts) under the names of their first release and
renames on `from_pretrained`. Its Trainer resumes with `load_state_dict(strict=False)`, which finds none of them
and goes on with the starting weights, with no more than a warning.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME


class RenamedWeights(Trainer):
    """A `Trainer` that resumes, and goes back to its best model, whatever the names in the checkpoint."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if sharded or not load_renamed_weights(model or self.model, resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        sharded = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if sharded or not load_renamed_weights(self.model, str(self.state.best_model_checkpoint)):
            super()._load_best_model()


def load_renamed_weights(model: Any, folder: str | Path) -> bool:
    """Load a checkpoint as `from_pretrained` does, where its names are not the model's.

    Args:
        model: the unwrapped, unsharded model; changed in place.
        folder: the checkpoint.

    Returns:
        Whether it was loaded; False for adapters and for checkpoints with the model's own names.
    """
    found = checkpoint_tensor_names(Path(folder))
    if not isinstance(model, PreTrainedModel) or not found or found <= model.state_dict().keys():
        return False
    loaded = type(model).from_pretrained(folder, dtype=model.dtype)
    model.load_state_dict(loaded.state_dict())
    return True


def checkpoint_tensor_names(folder: Path) -> set[str]:
    """Names in the safetensors files of a folder; empty when there are none."""
    if (folder / SAFE_WEIGHTS_INDEX_NAME).is_file():
        return set(json.loads((folder / SAFE_WEIGHTS_INDEX_NAME).read_text())["weight_map"])
    if not (folder / SAFE_WEIGHTS_NAME).is_file():
        return set()
    with safe_open(folder / SAFE_WEIGHTS_NAME, framework="pt") as file:
        return set(file.keys())
