"""The NCCL group between a trainer and vLLM's workers, over vLLM's own NCCL binding.

vLLM's `StatelessProcessGroup` hands the NCCL id to the workers as a pickle; here it travels as 128 bytes.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch.distributed import Store
from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator
from vllm.distributed.utils import StatelessProcessGroup

from grpo_gym.inference.weight_transfer_group import Rendezvous


class BytesGroup(StatelessProcessGroup):
    """Broadcasts C structures as their bytes; refuses every other object."""

    def broadcast_obj(self, obj: Any | None, src: int) -> Any:
        """Give rank `src`'s structure to all ranks.

        Args:
            obj: a `ctypes.Structure`; receivers pass one of the same type to be filled.
            src: rank that sends.

        Raises:
            TypeError: not a C structure.
        """
        if not isinstance(obj, ctypes.Structure):
            raise TypeError(
                f"Only C structures are sent between trainer and server, not {type(obj).__name__}."
            )
        key = f"bytes_from/{src}/{self.broadcast_send_counter}"
        self.broadcast_send_counter += 1
        if self.rank == src:
            self.store.set(key, bytes(obj).hex())
            return obj
        return type(obj).from_buffer_copy(bytes.fromhex(self.store.get(key).decode()))


class NcclGroup:
    """An NCCL communicator of the trainer's device and the workers' devices.

    Raises:
        RuntimeError: no NCCL library, or a world of one rank.
    """

    def __init__(self, store: Store, rank: int, meeting: Rendezvous, device: torch.device) -> None:
        self._device = device
        group = BytesGroup(rank=rank, world_size=meeting.world_size, store=store)
        with torch.cuda.device(device):
            self._communicator = PyNcclCommunicator(group, device=device)
        if self._communicator.disabled:
            raise RuntimeError("NCCL is not available in this process: cannot send weights between GPUs.")

    def broadcast(self, flat: torch.Tensor) -> None:
        """Send or receive; see `TransferGroup`."""
        with torch.cuda.device(self._device):
            stream = torch.cuda.current_stream()
            self._communicator.broadcast(flat, src=0, stream=stream)
            stream.synchronize()

    def close(self) -> None:
        """Leave the communicator."""
        self._communicator.destroy()
