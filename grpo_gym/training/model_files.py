"""What every checkpoint holds beside weights, so that it can be exported: configuration, tokenizer, adapters' settings.

transformers writes these with whole weights only; a sharded checkpoint (FSDP with SHARDED_STATE_DICT) has none.
"""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer_utils import SaveStrategy


def save_model_files(trainer: Trainer, folder: Path) -> None:
    """Write those that are not in the folder yet; called by every rank, written by rank 0."""
    if not trainer.is_world_process_zero():
        return
    model: Any = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    for adapter in getattr(model, "peft_config", {}).values():
        if not (folder / "adapter_config.json").exists():
            _saved_adapter(adapter).save_pretrained(folder)
    if not hasattr(model, "peft_config"):
        _save_model_config(model, folder)
    if trainer.processing_class is not None and not (folder / "tokenizer_config.json").exists():
        trainer.processing_class.save_pretrained(folder)


def check_adapters_can_be_saved(trainer: Trainer) -> None:
    """Refuse what would train adapters and then write empty ones.

    PEFT 0.21 looks for adapters under the names of FSDP1's wrappers and finds none, both in `save_pretrained` and
    in a checkpoint.

    Raises:
        ValueError: LoRA under FSDP1, and something is to be saved on the way.
    """
    plugin = trainer.accelerator.state.fsdp_plugin if trainer.is_fsdp_enabled else None
    if plugin is None or plugin.fsdp_version != 1 or not hasattr(trainer.model, "peft_config"):
        return
    problem = "under FSDP1 PEFT saves empty LoRA adapters; use FSDP2 (fsdp_version: 2)"
    if trainer.args.save_strategy != SaveStrategy.NO:
        raise ValueError(f"{problem}.")
    warnings.warn(f"{problem}. save_strategy=no: this run trains, but leaves no adapters.", stacklevel=3)


def _save_model_config(model: Any, folder: Path) -> None:
    if not (folder / "config.json").exists():
        config = copy.deepcopy(model.config)
        # FSDP2 renames the class of the model it shards.
        config.architectures = [type(model).__name__.removeprefix("FSDP")]
        config.save_pretrained(folder)
    if model.generation_config is not None and not (folder / "generation_config.json").exists():
        model.generation_config.save_pretrained(folder)


def _saved_adapter(adapter: Any) -> Any:
    # As PEFT saves it: an adapter that is loaded is there to be used.
    saved = copy.deepcopy(adapter)
    saved.inference_mode = True
    return saved
