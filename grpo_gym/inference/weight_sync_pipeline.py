"""Filling one bucket while another is sent, and where the seconds of a weight sync go."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

from grpo_gym.inference.weight_transfer_buckets import Bucket, BucketSpec


class PhaseClock:
    """Seconds by phase of one weight sync.

    "fill" is gathering and packing, most of it while a bucket is sent; "send" is what the trainer waited for the
    servers beyond that.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def num_buffers(device: torch.device) -> int:
    """Two on a CPU. One on a GPU: NCCL's broadcast must not overlap with collectives that gather weights."""
    return 1 if device.type == "cuda" else 2


@contextmanager
def half_of_the_threads() -> Iterator[None]:
    """Compute with half of torch's threads: servers on this machine load with as many threads at the same time.

    More threads than cores would spin at every barrier for one that is not running.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(max(1, threads // 2))
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def send_buckets(
    buckets: Iterator[Bucket],
    send: Callable[[BucketSpec, torch.Tensor], None],
    clock: PhaseClock,
    num_buffers: int,
    at_once: int = 1,
) -> None:
    """Send bucket after bucket; with two buffers the next one is filled meanwhile.

    Args:
        buckets: in `num_buffers` alternating buffers.
        send: returns when the servers have taken the bucket; called in threads.
        clock: counts "fill" and "send".
        num_buffers: a buffer is filled again when its bucket was taken.
        at_once: calls of `send` at the same time. 2 has the next bucket wait at the server, not here; 1 keeps
            the order, which a broadcast needs.
    """
    sending: deque[Future[None]] = deque()
    with half_of_the_threads(), ThreadPoolExecutor(at_once, thread_name_prefix="weight-sync") as senders:
        while True:
            with clock.phase("send"):
                _wait_for_all_but(num_buffers - 1, sending)
            with clock.phase("fill"):
                bucket = next(buckets, None)
            with clock.phase("send"):
                _wait_for_all_but(at_once - 1 if bucket else 0, sending)
            if bucket is None:
                return
            sending.append(senders.submit(send, *bucket))


def _wait_for_all_but(most: int, sending: deque[Future[None]]) -> None:
    while len(sending) > most:
        sending.popleft().result()
