"""Weights between processes of one machine: written once into shared memory, read once by every worker.

The memory is anonymous (`memfd`): it has no name that others could open or that could be left behind. A worker
reaches it as `/proc/PID/fd/N`, which the kernel allows to the same user only. It takes the place of gloo's sockets
where `machine_identity` of both sides agrees.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import weakref
from collections.abc import Callable
from pathlib import Path

import torch

_LABEL = "vf-weights"
_PATH = re.compile(r"/proc/\d+/fd/\d+")


def shared_buffer(num_bytes: int) -> tuple[torch.Tensor, str]:
    """A uint8 buffer [num_bytes] that workers on this machine can read, and the path by which they name it.

    The memory lives exactly as long as the tensor and its views.
    """
    descriptor = os.memfd_create(_LABEL)
    os.ftruncate(descriptor, num_bytes)
    # Populated at once: a page fault for every 4 KiB would take longer than filling them.
    memory = mmap.mmap(descriptor, num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    weakref.finalize(memory, os.close, descriptor)
    return torch.frombuffer(memory, dtype=torch.uint8), f"/proc/{os.getpid()}/fd/{descriptor}"


class SharedBufferPool:
    """Shared buffers that every weight sync uses again: fresh memory costs more than what is written to it.

    (The kernel clears fresh pages and maps them one by one, 4 KiB at a time.)
    """

    def __init__(self) -> None:
        self._buffers: dict[int, list[tuple[torch.Tensor, str]]] = {}

    def allocator(self) -> Callable[[int], tuple[torch.Tensor, str]]:
        """`shared_buffer` for one weight sync; the buffers of the one before have to be out of use."""
        free = {num_bytes: list(buffers) for num_bytes, buffers in self._buffers.items()}

        def allocate(num_bytes: int) -> tuple[torch.Tensor, str]:
            if unused := free.get(num_bytes):
                return unused.pop()
            buffer = shared_buffer(num_bytes)
            self._buffers.setdefault(num_bytes, []).append(buffer)
            return buffer

        return allocate

    @property
    def num_bytes(self) -> int:
        """What it holds, in use or not."""
        return sum(num_bytes * len(buffers) for num_bytes, buffers in self._buffers.items())

    def clear(self) -> None:
        """Free the memory, as soon as nobody uses it."""
        self._buffers.clear()


def map_shared(path: str, num_bytes: int) -> torch.Tensor:
    """The first bytes of a trainer's `shared_buffer` as a uint8 tensor [num_bytes], without copying them.

    The trainer writes the next bucket but one into the same memory: what is needed for longer has to be copied.

    Raises:
        RuntimeError: the path is not that of shared weights, cannot be opened from here, or ends too early.
    """
    if not _PATH.fullmatch(path):
        raise RuntimeError(f"{path!r} is not the path of shared weights.")
    try:
        descriptor = os.open(path, os.O_RDWR)
    except OSError as error:
        raise RuntimeError(
            f"cannot open the trainer's shared weights ({error.strerror}): run server and trainer as the same user."
        ) from error
    try:
        if not os.readlink(f"/proc/self/fd/{descriptor}").startswith(f"/memfd:{_LABEL}"):
            raise RuntimeError(f"{path!r} does not hold shared weights.")
        if (size := os.fstat(descriptor).st_size) < num_bytes:
            raise RuntimeError(f"the trainer's shared weights end after {size} of {num_bytes} bytes.")
        # Shared and writable, though it is only read: populating a private mapping copies all of it, and torch
        # warns of memory that cannot be written.
        memory = mmap.mmap(descriptor, num_bytes, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    finally:
        os.close(descriptor)
    return torch.frombuffer(memory, dtype=torch.uint8)


def machine_identity() -> str:
    """Equal in two processes exactly when one can open the other's shared weights; "" where there is no such way.

    The boot's id tells machines apart, the PID namespace containers, and the user is who may look. It is hashed:
    strangers may ask a server for it.
    """
    boot = Path("/proc/sys/kernel/random/boot_id")
    if not hasattr(os, "memfd_create") or not boot.is_file():
        return ""
    identity = f"{boot.read_text().strip()} {os.readlink('/proc/self/ns/pid')} {os.getuid()}"
    return hashlib.sha256(identity.encode()).hexdigest()
