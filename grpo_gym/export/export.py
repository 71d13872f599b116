"""`export_checkpoint`: weights, configuration, tokenizer and model card of a checkpoint in one new folder."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from transformers import AutoConfig

from grpo_gym import __version__
from grpo_gym.export.merge import merge_adapter, write_adapter
from grpo_gym.export.names import checkpoint_names, skeleton
from grpo_gym.export.sources import WeightSource, open_weights
from grpo_gym.export.writer import MAX_SHARD_BYTES, write_weights

ADAPTER_CONFIG = "adapter_config.json"
TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
    *("chat_template.jinja", "chat_template.json", "additional_chat_templates"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
MODEL_FILES = ("config.json", "generation_config.json")


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        kind: the form of the checkpoint: plain, LoRA, ZeRO or FSDP.
        is_adapter: only adapters were written, which need their base model.
        num_parameters: of what was written.
    """

    folder: Path
    kind: str
    is_adapter: bool
    num_parameters: int


def export_checkpoint(
    checkpoint: Path,
    out: Path,
    name: str | None = None,
    dtype: str | None = None,
    merge_lora: bool = False,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Exported:
    """Turn a checkpoint into a folder for `from_pretrained` and vLLM.

    `out` appears at once when everything is in it. Weights are read and written piece by piece; only merging
    LoRA holds the base model in memory, in float32.

    Args:
        checkpoint: `checkpoint-N` of a run, or the run's folder for its final model.
        out: the new folder.
        name: the model's name in its card; `out`'s when None.
        dtype: float32, bfloat16 or float16; None for the trainer's own (float32 unless `torch_dtype` was set).
        merge_lora: add the adapters to their base model.
        max_shard_bytes: size of one weight file.

    Raises:
        ValueError: `out` exists, or the checkpoint lacks something.
    """
    if out.exists():
        raise ValueError(f"{out} exists; export into a new folder.")
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint} is not a folder; give a checkpoint-N of a run, or the run's folder.")
    is_lora = (checkpoint / ADAPTER_CONFIG).is_file()
    if merge_lora and not is_lora:
        raise ValueError(f"--merge-lora, but {checkpoint} has no {ADAPTER_CONFIG}: nothing to merge.")
    source = open_weights(checkpoint)
    wanted = getattr(torch, dtype) if dtype else None
    with _new_folder(out) as folder:
        _copy(checkpoint, folder, TOKENIZER_FILES, required="tokenizer_config.json")
        if is_lora and merge_lora:
            count = merge_adapter(source, checkpoint, folder, wanted, max_shard_bytes)
        elif is_lora:
            count = write_adapter(source, checkpoint, folder, wanted)
        else:
            _copy(checkpoint, folder, MODEL_FILES, required="config.json")
            count = _write_model(source, folder, wanted, max_shard_bytes)
        (folder / "README.md").write_text(model_card(name or out.name, checkpoint, source.kind))
    return Exported(out, source.kind, is_lora and not merge_lora, count)


def model_card(name: str, checkpoint: Path, kind: str) -> str:
    """The README of the folder."""
    return (
        "---\nlibrary_name: transformers\ntags: [grpo, grpo-gym, reinforcement-learning]\n---\n\n"
        f"# {name}\n\nTrained with GRPO by GRPO-Gym {__version__}; exported from {checkpoint.resolve().name} "
        f"({kind}).\n"
    )


def _write_model(source: WeightSource, folder: Path, dtype: torch.dtype | None, max_shard_bytes: int) -> int:
    """The weights of a whole model, and their dtype in config.json."""
    if source.kind == "plain":  # saved by `save_pretrained`: names are those of a checkpoint already
        names = {name: name for name in source.sizes}
        count = write_weights(source, names, folder, dtype, max_shard_bytes=max_shard_bytes)
    else:
        from transformers.core_model_loading import revert_weight_conversion

        model = skeleton(AutoConfig.from_pretrained(folder))
        names = checkpoint_names(source.sizes, model)
        convert = partial(revert_weight_conversion, model)
        count = write_weights(source, names, folder, dtype, convert, max_shard_bytes)
    stored = {kind for _, kind in source.sizes.values() if kind.is_floating_point}
    _name_dtype(folder / "config.json", dtype or max(stored, key=lambda kind: kind.itemsize))
    return count


def _name_dtype(path: Path, dtype: torch.dtype) -> None:
    """`from_pretrained(dtype="auto")` and vLLM load weights in the dtype that config.json names."""
    config = json.loads(path.read_text())
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        part.pop("torch_dtype", None)
        if part is config or "dtype" in part:
            part["dtype"] = str(dtype).removeprefix("torch.")
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _copy(checkpoint: Path, folder: Path, names: tuple[str, ...], required: str) -> None:
    """Copy the files that are there; a run's final model lies beside its checkpoints and has the same ones."""
    places = [place for place in (checkpoint, checkpoint.parent) if (place / required).is_file()]
    if not places:
        raise ValueError(f"{checkpoint} has no {required}; copy that of the model you trained into it.")
    for path in (places[0] / name for name in names):
        if path.is_dir():
            shutil.copytree(path, folder / path.name)
        elif path.is_file():
            shutil.copy(path, folder / path.name)


@contextlib.contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` that becomes `out` at the end, or vanishes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
        folder.chmod(0o755)
        folder.rename(out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
