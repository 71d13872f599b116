"""Groups between threads of this process: bytes arrive, only on this machine, never as pickles."""

import ctypes
import threading

import pytest
import torch

from grpo_gym.inference.weight_transfer_group import (
    GlooGroup,
    Rendezvous,
    address_towards,
    join_store,
    listen,
    serve_store,
)


def meet(world_size, address="127.0.0.1"):
    """All stores of a meeting, rank 0's first."""
    listener = listen(address)
    meeting = Rendezvous(address, listener.getsockname()[1], 1, world_size, timeout_s=20.0)
    assert listener.getsockname()[0] == address
    return meeting, [serve_store(listener, meeting), *(join_store(meeting) for _ in range(world_size - 1))]


def in_threads(*functions):
    results = [None] * len(functions)

    def run(index):
        results[index] = functions[index]()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return results


def test_every_rank_receives_what_rank_0_sends():
    meeting, stores = meet(3)
    groups = in_threads(*(lambda rank=rank: GlooGroup(stores[rank], rank, meeting) for rank in range(3)))
    buffers = [
        torch.arange(1000, dtype=torch.uint8),
        *(torch.zeros(1000, dtype=torch.uint8) for _ in range(2)),
    ]
    in_threads(*(lambda rank=rank: groups[rank].broadcast(buffers[rank]) for rank in range(3)))
    assert all(torch.equal(buffer, buffers[0]) for buffer in buffers)
    for group in groups:
        group.close()


def test_a_local_server_is_reached_from_the_loopback_address():
    assert address_towards("127.0.0.1") == "127.0.0.1"
    assert address_towards("localhost") in ("127.0.0.1", "::1")


class Identifier(ctypes.Structure):
    _fields_ = [("internal", ctypes.c_byte * 128)]


def test_nccls_identifier_travels_as_bytes():
    nccl = pytest.importorskip("grpo_gym.inference.weight_transfer_nccl", reason="vLLM is not installed")
    _, stores = meet(2)
    sender, receiver = (nccl.BytesGroup(rank=rank, world_size=2, store=stores[rank]) for rank in range(2))
    for first in (1, -7):
        identifier = Identifier((ctypes.c_byte * 128)(first, *range(127)))
        sender.broadcast_obj(identifier, src=0)
        assert bytes(receiver.broadcast_obj(Identifier(), src=0)) == bytes(identifier)
    with pytest.raises(TypeError, match="Only C structures"):
        sender.broadcast_obj({"any": "object"}, src=0)
