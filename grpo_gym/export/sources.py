"""Where the weights of a checkpoint are, and how to read a few of them at a time, on a machine without GPUs.

A checkpoint of transformers' Trainer holds its weights in one of these forms (or two: the sharded one is then the
trainer's own, in full precision):
- `pytorch_model_fsdp_0/`: FSDP1 and FSDP2 with SHARDED_STATE_DICT, written by torch.distributed.checkpoint;
- `global_step*/*_optim_states.pt`: ZeRO-2 and ZeRO-3, float32 weights beside the optimizer's states;
- `model*.safetensors` or `pytorch_model.bin`: one process, DDP, or gathered while saving;
- `adapter_model.safetensors`: LoRA.
"""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

FSDP_FOLDER = "pytorch_model_fsdp_0"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
_FSDP_PREFIX = "model."


class WeightSource(Protocol):
    """Named tensors that are read when asked for."""

    kind: str

    @property
    def sizes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """Shape and dtype of every tensor, without reading one."""
        ...

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The tensors of these names, on the CPU, in memory of their own or mapped from a file."""
        ...


class SafetensorsSource:
    """One or several safetensors files."""

    def __init__(self, files: list[Path], kind: str = "plain") -> None:
        self.kind = kind
        self._files = files

    @cached_property
    def _file_of(self) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for file in self._files:
            with safe_open(file, framework="pt") as tensors:
                found.update(dict.fromkeys(tensors.keys(), file))
        return found

    @cached_property
    def sizes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """See `WeightSource`."""
        found = {}
        for file in self._files:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                    part = tensors.get_slice(name)
                    found[name] = (torch.Size(part.get_shape()), _safetensors_dtype(part.get_dtype()))
        return found

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """See `WeightSource`."""
        wanted: dict[Path, list[str]] = {}
        for name in names:
            wanted.setdefault(self._file_of[name], []).append(name)
        found = {}
        for file, group in wanted.items():
            with safe_open(file, framework="pt") as tensors:
                found.update({name: tensors.get_tensor(name) for name in group})
        return found


class TensorsSource:
    """Tensors of a mapping: real ones, or DeepSpeed's that are put together from all ranks' files when asked for."""

    def __init__(self, tensors: dict[str, Any], kind: str) -> None:
        self.kind = kind
        self._tensors = tensors

    @property
    def sizes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """See `WeightSource`."""
        return {name: (torch.Size(each.shape), each.dtype) for name, each in self._tensors.items()}

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """See `WeightSource`."""
        return {name: self._tensors[name].contiguous() for name in names}


class DistributedCheckpointSource:
    """A folder of torch.distributed.checkpoint, read by a single process whatever number wrote it."""

    kind = "FSDP"

    def __init__(self, folder: Path) -> None:
        from torch.distributed.checkpoint import FileSystemReader

        self._folder = folder
        self._metadata = FileSystemReader(folder).read_metadata().state_dict_metadata

    @cached_property
    def sizes(self) -> dict[str, tuple[torch.Size, torch.dtype]]:
        """See `WeightSource`."""
        return {
            key.removeprefix(_FSDP_PREFIX): (entry.size, entry.properties.dtype)
            for key, entry in self._metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }

    def read(self, names: Iterable[str]) -> dict[str, Tensor]:
        """See `WeightSource`."""
        from torch.distributed.checkpoint import FileSystemReader, load

        buffers: dict[str, Any] = {
            f"{_FSDP_PREFIX}{name}": torch.empty(self.sizes[name][0], dtype=self.sizes[name][1])
            for name in names
        }
        with warnings.catch_warnings():  # that no process group exists is what is wanted
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            load(buffers, storage_reader=FileSystemReader(self._folder), no_dist=True)
        return {key.removeprefix(_FSDP_PREFIX): tensor for key, tensor in buffers.items()}


def open_weights(checkpoint: Path) -> WeightSource:
    """The weights of a checkpoint, of the adapters only where it was trained with LoRA.

    Raises:
        ValueError: there are none, or they are in a form that cannot be read; the message says what to do.
    """
    if (checkpoint / FSDP_FOLDER / ".metadata").is_file():
        return DistributedCheckpointSource(checkpoint / FSDP_FOLDER)
    if any(checkpoint.glob("global_step*/*_optim_states.pt")):
        return _open_zero(checkpoint)
    if (checkpoint / ADAPTER_WEIGHTS).is_file():
        return SafetensorsSource([checkpoint / ADAPTER_WEIGHTS], "LoRA")
    if files := _plain_files(checkpoint):
        return SafetensorsSource(files)
    if (checkpoint / "pytorch_model.bin").is_file():
        tensors = torch.load(
            checkpoint / "pytorch_model.bin", map_location="cpu", mmap=True, weights_only=True
        )
        return TensorsSource(_without_shared(tensors), "plain")
    raise ValueError(_nothing_found(checkpoint))


def _without_shared(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tied weights once, under their first name: safetensors holds no tensor twice."""
    firsts: dict[tuple[int, torch.Size], str] = {}
    for name, tensor in tensors.items():
        firsts.setdefault((tensor.data_ptr(), tensor.shape), name)
    return {name: tensors[name] for name in firsts.values()}


def _plain_files(checkpoint: Path) -> list[Path]:
    index = checkpoint / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        missing = [name for name in names if not (checkpoint / name).is_file()]
        if missing:
            raise ValueError(f"{checkpoint} lacks {missing[0]}, which {index.name} names; copy it there.")
        return [checkpoint / name for name in names]
    single = checkpoint / "model.safetensors"
    return [single] if single.is_file() else []


def _open_zero(checkpoint: Path) -> TensorsSource:
    try:
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
    except ImportError as error:
        raise ValueError(
            f"{checkpoint} is a DeepSpeed checkpoint; reading it needs deepspeed: uv pip install deepspeed"
        ) from error
    # DeepSpeed tells its progress on stdout.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        tensors = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), lazy_mode=True)
    return TensorsSource(tensors, "ZeRO")


def _nothing_found(checkpoint: Path) -> str:
    inside = sorted(checkpoint.glob("checkpoint-*"), key=lambda path: (len(path.name), path.name))
    if inside:
        return f"{checkpoint} holds no weights itself; export one of its checkpoints, such as {inside[-1]}."
    if any(checkpoint.glob("pytorch_model_fsdp*_rank*.bin")):
        return (
            f"{checkpoint} holds one file per rank, which only that number of ranks can read; "
            "train with fsdp_state_dict_type: SHARDED_STATE_DICT."
        )
    return f"{checkpoint} holds no weights: no model.safetensors, adapter, FSDP or DeepSpeed files."


def _safetensors_dtype(name: str) -> torch.dtype:
    names = {
        "F64": "float64",
        "F32": "float32",
        "F16": "float16",
        "BF16": "bfloat16",
        "BOOL": "bool",
        "U8": "uint8",
    }
    return getattr(torch, names.get(name) or name.replace("I", "int").replace("U", "uint"))
