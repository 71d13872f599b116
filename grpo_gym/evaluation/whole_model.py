"""A LoRA checkpoint as a model that can be loaded and served: merged for as long as an evaluation takes."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from grpo_gym.evaluation.checkpoint import local_checkpoint
from grpo_gym.evaluation.config import EvalConfig
from grpo_gym.export.export import ADAPTER_CONFIG, export_checkpoint


@contextlib.contextmanager
def whole_model(config: EvalConfig) -> Iterator[str]:
    """The folder or Hub name of the model; of a LoRA checkpoint, a temporary folder with its base model added.

    That folder has the size of the base model, lies where TMPDIR says, and is removed at the end.

    Raises:
        ValueError: the base model or the tokenizer of a LoRA checkpoint is not there.
    """
    checkpoint = local_checkpoint(config)
    if not (Path(checkpoint) / ADAPTER_CONFIG).is_file():
        yield checkpoint
        return
    with tempfile.TemporaryDirectory(prefix="grpo-gym-eval-") as folder:
        merged = Path(folder, "model")
        export_checkpoint(Path(checkpoint), merged, dtype=weights_dtype(config), merge_lora=True)
        yield str(merged)


def weights_dtype(config: EvalConfig) -> str:
    """`dtype` with its default."""
    return config.dtype or ("bfloat16" if torch.cuda.is_available() else "float32")
