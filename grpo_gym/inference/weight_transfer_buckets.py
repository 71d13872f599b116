"""Buckets: many parameters in one flat buffer, laid out the same way by sender and receiver.

One bucket is one message. A transfer of many small messages is bound by latency (a 135M model has 272
parameters, most of them under 2 MB); a bucket of tens of megabytes is bound by bandwidth.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

DEFAULT_BUCKET_BYTES = 32 * 2**20
_ALIGNMENT = 16  # bytes; a view as any dtype needs an offset divisible by its item size


@dataclass(frozen=True, slots=True)
class BucketSpec:
    """What a bucket holds. The field names are those of vLLM's `/update_weights` request.

    Attributes:
        names: parameter names, as in the checkpoint.
        dtype_names: `torch` attribute names, such as "float32".
        shapes: full shapes.
        shared_path: where a worker on the trainer's machine reads the bytes; "" when they are broadcast.
    """

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    shared_path: str = ""

    def __post_init__(self) -> None:
        if not len(self.names) == len(self.dtype_names) == len(self.shapes):
            raise ValueError(
                f"A bucket needs as many dtypes and shapes as names: got {len(self.names)} names, "
                f"{len(self.dtype_names)} dtypes, {len(self.shapes)} shapes."
            )

    def offsets(self) -> list[int]:
        """Start of every parameter in bytes, then the length of the buffer."""
        offsets = [0]
        for dtype_name, shape in zip(self.dtype_names, self.shapes, strict=True):
            size = math.prod(shape) * parse_dtype(dtype_name).itemsize
            offsets.append(align(offsets[-1] + size))
        return offsets

    def unpack(self, flat: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """Views of the parameters in a flat uint8 buffer [num_bytes]."""
        tensors = []
        fields = zip(self.names, self.dtype_names, self.shapes, self.offsets()[:-1], strict=True)
        for name, dtype_name, shape, start in fields:
            tensors.append((name, view_at(flat, start, parse_dtype(dtype_name), shape)))
        return tensors

    def to_json(self) -> dict[str, Any]:
        """The body of an `/update_weights` request."""
        return asdict(self)


def align(num_bytes: int) -> int:
    """Round up to the alignment of parameters in a bucket."""
    return -(-num_bytes // _ALIGNMENT) * _ALIGNMENT


def parse_dtype(name: str) -> torch.dtype:
    """A dtype from its name.

    Raises:
        ValueError: no such dtype.
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"Unknown weight dtype {name!r}.")
    return dtype


def dtype_name(dtype: torch.dtype) -> str:
    """The name that `parse_dtype` reads."""
    return str(dtype).removeprefix("torch.")


def view_at(flat: torch.Tensor, start: int, dtype: torch.dtype, shape: Iterable[int]) -> torch.Tensor:
    """The parameter that starts at byte `start` of a uint8 buffer, as a view."""
    shape = tuple(shape)
    num_bytes = math.prod(shape) * dtype.itemsize
    return flat[start : start + num_bytes].view(dtype).view(shape)


Bucket = tuple[BucketSpec, torch.Tensor]
Allocate = Callable[[int], tuple[torch.Tensor, str]]
"""A new uint8 buffer [num_bytes] and its `shared_path`."""


class _Filler:
    """Copies parameters into reused buffers, one after the other."""

    def __init__(self, buffers: Sequence[tuple[torch.Tensor, str]]) -> None:
        self._buffers = itertools.cycle(buffers)
        self._next()

    def _next(self) -> None:
        self.buffer, path = next(self._buffers)
        self.spec = BucketSpec([], [], [], path)
        self.used = 0

    def has_room(self, num_bytes: int) -> bool:
        return self.used + num_bytes <= self.buffer.numel()

    def add(self, name: str, tensor: torch.Tensor, dtype: torch.dtype) -> None:
        self.spec.names.append(name)
        self.spec.dtype_names.append(dtype_name(dtype))
        self.spec.shapes.append(list(tensor.shape))
        view_at(self.buffer, self.used, dtype, tensor.shape).copy_(tensor)
        self.used = align(self.used + tensor.numel() * dtype.itemsize)

    def take(self) -> Bucket:
        taken = self.spec, self.buffer[: self.used]
        self._next()
        return taken


@torch.no_grad()
def iter_buckets(
    weights: Iterable[tuple[str, torch.Tensor]],
    bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    allocate: Allocate | None = None,
    num_buffers: int = 1,
) -> Iterator[Bucket]:
    """Pack weights into buckets.

    The buckets take turns in `num_buffers` buffers: asking for the next bucket overwrites the one `num_buffers`
    before it. A parameter larger than a buffer gets one of its own.

    Args:
        weights: names and full tensors, on any device; consumed one at a time.
        bucket_bytes: size of a buffer.
        device: where the buffers lie.
        dtype: convert floating-point weights to this; None keeps theirs.
        allocate: makes the buffers; memory of this process on `device` when None.
        num_buffers: 2 lets one bucket be filled while another is sent.

    Yields:
        What the bucket holds, and its uint8 buffer [num_bytes].

    Raises:
        ValueError: a name comes twice, or there are no weights.
    """
    new_buffer = allocate or (lambda size: (torch.empty(size, dtype=torch.uint8, device=device), ""))
    filler = _Filler([new_buffer(align(bucket_bytes)) for _ in range(num_buffers)])
    seen: set[str] = set()
    for name, tensor in weights:
        if name in seen:
            raise ValueError(f"Weight {name!r} was given twice in one update.")
        seen.add(name)
        wire_dtype = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        num_bytes = align(tensor.numel() * wire_dtype.itemsize)
        if not filler.has_room(num_bytes) and filler.used:
            yield filler.take()
        if num_bytes > filler.buffer.numel():
            large = _Filler([new_buffer(num_bytes)])
            large.add(name, tensor, wire_dtype)
            yield large.take()
            continue
        filler.add(name, tensor, wire_dtype)
    if not seen:
        raise ValueError("No weights to send: the iterator of weights was empty.")
    if filler.spec.names:
        yield filler.take()
