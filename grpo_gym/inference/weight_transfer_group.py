"""The process group that weights travel in: trainer is rank 0, every vLLM worker one more rank.

Gloo needs PyTorch only. Sockets are bound to the address that leads to the other side, so a group between
processes of one machine listens on 127.0.0.1 and nowhere else. Nothing is pickled: the store carries
addresses as bytes, the group carries tensors' bytes.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
from torch.distributed import BroadcastOptions, PrefixStore, Store, TCPStore
from torch.distributed.distributed_c10d import ProcessGroupGloo

_PREFIX = "vf-weights"


class TransferGroup(Protocol):
    """A group that can broadcast a flat buffer from rank 0."""

    def broadcast(self, flat: torch.Tensor) -> None:
        """Send (rank 0) or receive (others) a uint8 tensor [num_bytes]; returns when it has arrived."""
        ...

    def close(self) -> None:
        """Leave the group."""
        ...


@dataclass(slots=True)
class Rendezvous:
    """Where a group meets. Field names are those of vLLM's `/init_weight_transfer_engine` request.

    Attributes:
        master_address: address of the trainer, as the workers see it.
        master_port: port of the trainer's store.
        rank_offset: rank of the first worker.
        world_size: workers plus one trainer.
        timeout_s: seconds after which a rank that waits for the others gives up.
    """

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    timeout_s: float = 300.0


class GlooGroup:
    """A gloo group outside of torch's default group, so that it disturbs no other."""

    def __init__(self, store: Store, rank: int, meeting: Rendezvous) -> None:
        options = _gloo_options()  # type: ignore[attr-defined]
        options._timeout = timedelta(seconds=meeting.timeout_s)
        options._devices = [ProcessGroupGloo.create_device(hostname=address_towards(meeting.master_address))]
        self._store = store  # rank 0 serves it: it must live as long as the group
        self._group: Any = ProcessGroupGloo(PrefixStore(_PREFIX, store), rank, meeting.world_size, options)
        self._options = BroadcastOptions()
        self._options.rootRank, self._options.rootTensor = 0, 0

    def broadcast(self, flat: torch.Tensor) -> None:
        """Send or receive; see `TransferGroup`."""
        self._group.broadcast([flat], self._options).wait()

    def close(self) -> None:
        """Leave the group and stop serving its store."""
        self._group, self._store = None, None  # type: ignore[assignment]


def _gloo_options() -> Any:
    return ProcessGroupGloo._Options()  # type: ignore[attr-defined]


def address_towards(host: str) -> str:
    """The local address from which `host` is reached (no packet is sent).

    Raises:
        OSError: the host's name cannot be resolved or there is no route.
    """
    family, kind, _, _, peer = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(peer)
        return str(probe.getsockname()[0])


def listen(address: str) -> socket.socket:
    """A listening socket on a free port of one address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind((address, 0))
    listener.listen()
    return listener


def serve_store(listener: socket.socket, meeting: Rendezvous) -> TCPStore:
    """Rank 0's store, on a socket that is already bound (torch's own would listen everywhere)."""
    return TCPStore(
        meeting.master_address,
        meeting.master_port,
        meeting.world_size,
        is_master=True,
        timeout=timedelta(seconds=meeting.timeout_s),
        wait_for_workers=False,
        master_listen_fd=listener.detach(),
    )


def join_store(meeting: Rendezvous) -> TCPStore:
    """A worker's connection to rank 0's store."""
    return TCPStore(
        meeting.master_address,
        meeting.master_port,
        meeting.world_size,
        is_master=False,
        timeout=timedelta(seconds=meeting.timeout_s),
        wait_for_workers=False,
    )
