"""A buffer is filled again only when its bucket was taken, however many are under way."""

import threading
import time

import pytest
import torch

from grpo_gym.inference.weight_sync_pipeline import PhaseClock, half_of_the_threads, send_buckets
from grpo_gym.inference.weight_transfer_buckets import iter_buckets


class SlowServer:
    """Reads a bucket late, as one that is busy does."""

    def __init__(self):
        self.received = {}
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def take(self, spec, flat):
        with self._lock:
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        time.sleep(0.02)
        self.received |= {name: tensor.clone() for name, tensor in spec.unpack(flat)}
        with self._lock:
            self._at_once -= 1


@pytest.mark.parametrize(("buffers", "at_once"), [(1, 1), (2, 1), (2, 2)])
def test_every_bucket_arrives_whole(buffers, at_once):
    weights = {f"w{i}": torch.full((64,), float(i)) for i in range(12)}
    server = SlowServer()
    buckets = iter_buckets(weights.items(), bucket_bytes=512, num_buffers=buffers)
    send_buckets(buckets, server.take, PhaseClock(), buffers, at_once)
    assert server.received.keys() == weights.keys()
    assert all(torch.equal(server.received[name], weight) for name, weight in weights.items())
    assert server.most_at_once == at_once


def test_a_failure_ends_the_update():
    def fail(spec, flat):
        raise ConnectionError("gone")

    buckets = iter_buckets({f"w{i}": torch.zeros(64) for i in range(4)}.items(), 256, num_buffers=2)
    threads = torch.get_num_threads()
    with pytest.raises(ConnectionError, match="gone"):
        send_buckets(buckets, fail, PhaseClock(), num_buffers=2, at_once=2)
    assert torch.get_num_threads() == threads


def test_half_of_the_threads_is_at_least_one():
    threads = torch.get_num_threads()
    with half_of_the_threads():
        assert torch.get_num_threads() == max(1, threads // 2)
    assert torch.get_num_threads() == threads
