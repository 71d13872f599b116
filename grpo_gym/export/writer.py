"""Writing safetensors files: never more than one of them in memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from grpo_gym.export.sources import WeightSource

MAX_SHARD_BYTES = 4 * 10**9
Convert = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def write_weights(
    source: WeightSource,
    names: dict[str, str],
    folder: Path,
    dtype: torch.dtype | None = None,
    convert: Convert = dict,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> int:
    """Write `model.safetensors`, or several files and their index.

    Args:
        source: where tensors come from.
        names: name in the model -> name in the source.
        folder: where the files are written.
        dtype: of floating-point tensors; None leaves each as it is.
        convert: from the model's names (and fused tensors) to those of its checkpoints.
        max_shard_bytes: size of a file; a tensor that is larger gets one of its own.

    Returns:
        The number of parameters.
    """
    shards = plan_shards(source, names, dtype, max_shard_bytes)
    weight_map: dict[str, str] = {}
    total_bytes = total_elements = 0
    for index, shard in enumerate(shards, 1):
        file = (
            "model.safetensors" if len(shards) == 1 else f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        )
        sizes = _write_file(source, {name: names[name] for name in shard}, folder / file, dtype, convert)
        weight_map.update(dict.fromkeys(sizes, file))
        total_bytes += sum(nbytes for nbytes, _ in sizes.values())
        total_elements += sum(numel for _, numel in sizes.values())
    if len(shards) > 1:
        metadata = {"total_size": total_bytes, "total_parameters": total_elements}
        index_text = json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2, sort_keys=True)
        (folder / "model.safetensors.index.json").write_text(index_text + "\n")
    return total_elements


def _write_file(
    source: WeightSource, names: dict[str, str], path: Path, dtype: torch.dtype | None, convert: Convert
) -> dict[str, tuple[int, int]]:
    """Write one file; returns bytes and elements of each of its tensors. What was read is forgotten on return."""
    read = source.read(names.values())
    tensors = convert({name: _cast(read.pop(origin), dtype) for name, origin in names.items()})
    # safetensors wants the elements of a tensor in one piece.
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    return {name: (tensor.nbytes, tensor.numel()) for name, tensor in tensors.items()}


def plan_shards(
    source: WeightSource, names: dict[str, str], dtype: torch.dtype | None, max_shard_bytes: int
) -> list[list[str]]:
    """The names of each file, in the model's order."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, origin in names.items():
        shape, stored = source.sizes[origin]
        nbytes = shape.numel() * (dtype if dtype and stored.is_floating_point else stored).itemsize
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += nbytes
    return shards


def _cast(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.to(dtype) if dtype and tensor.is_floating_point() else tensor
