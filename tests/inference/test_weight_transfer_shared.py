"""Weights through shared memory: another process reads them, strangers' paths are refused, nothing is left behind."""

import gc
import os
import subprocess
import sys
import time

import pytest
import torch

from grpo_gym.inference.weight_sync import ServerWeightSync
from grpo_gym.inference.weight_transfer_buckets import BucketSpec
from grpo_gym.inference.weight_transfer_shared import (
    SharedBufferPool,
    machine_identity,
    map_shared,
    shared_buffer,
)
from tests.inference.test_weight_sync import BUCKET_BYTES, WEIGHTS, StandIn

READER = """
import sys, torch
from grpo_gym.inference.weight_transfer_shared import machine_identity, map_shared
flat = map_shared(sys.argv[1], int(sys.argv[2]))
print(int(flat.sum(dtype=torch.int64)), machine_identity())
"""


def test_another_process_reads_what_was_written():
    flat, path = shared_buffer(100_000)
    flat.copy_(torch.arange(100_000) % 251)
    done = subprocess.run(
        [sys.executable, "-c", READER, path, "99999"], capture_output=True, text=True, check=True
    )
    total, identity = done.stdout.split()
    assert int(total) == int((torch.arange(99_999) % 251).sum())
    assert identity == machine_identity()


def test_the_memory_goes_with_the_tensor():
    flat, path = shared_buffer(4096)
    view = flat[:10]
    del flat
    gc.collect()
    assert os.path.exists(path)
    del view
    gc.collect()
    assert not os.path.exists(path)


def test_only_shared_weights_are_read(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    with open(secret, "r+") as file:
        for path in (str(secret), f"/proc/{os.getpid()}/fd/{file.fileno()}", "/proc/1/fd/../environ"):
            with pytest.raises(RuntimeError, match="shared weights"):
                map_shared(path, 6)


def test_a_buffer_that_ends_too_early_and_one_that_is_gone_are_named():
    flat, path = shared_buffer(100)
    with pytest.raises(RuntimeError, match="end after 100 of 200 bytes"):
        map_shared(path, 200)
    del flat
    gc.collect()
    with pytest.raises(RuntimeError, match="cannot open the trainer's shared weights"):
        map_shared(path, 1)


class SharingStandIn(StandIn):
    """A worker on the trainer's machine; slow, so that a bucket overwritten too early would show."""

    def __init__(self):
        super().__init__()
        self.info["machine"] = machine_identity()

    def answer(self, path, body):
        if path != "/update_weights":
            return super().answer(path, body)
        self.calls.append(path)
        spec = BucketSpec(**body["update_info"])
        assert spec.shared_path
        time.sleep(0.02)
        flat = map_shared(spec.shared_path, spec.offsets()[-1])
        self.weights |= {name: tensor.clone() for name, tensor in spec.unpack(flat)}
        return {}


def test_servers_here_read_and_servers_elsewhere_are_sent_the_same_buckets():
    large = {**WEIGHTS, "large": torch.randn(60, 30), "last": torch.randn(7)}
    with SharingStandIn() as here, StandIn() as elsewhere:
        sync = ServerWeightSync([here.url, elsewhere.url], timeout=20.0, bucket_bytes=BUCKET_BYTES)
        sync.connect("cpu")
        for version in (1, 2):
            sync.push([(name, weight + version) for name, weight in large.items()], version)
            for server in (here, elsewhere):
                assert list(server.weights) == list(large)
                assert all(torch.equal(server.weights[name], w + version) for name, w in large.items())
        assert sync.clock.seconds["send"] > 0
        sync.close()


def test_every_weight_sync_uses_the_same_memory():
    pool = SharedBufferPool()
    allocate = pool.allocator()
    first, second, large = allocate(4096), allocate(4096), allocate(8192)
    assert len({path for _, path in (first, second, large)}) == 3
    assert pool.num_bytes == 16384
    again = pool.allocator()
    assert {again(4096)[1], again(4096)[1], again(8192)[1]} == {path for _, path in (first, second, large)}
    assert again(4096)[1] not in (first[1], second[1])
    pool.clear()
    assert pool.num_bytes == 0
