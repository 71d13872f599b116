"""The trainer's side of weight sync: bucket after bucket to every worker of every server.

A push is: pause (requests in flight are kept) - start - buckets - finish - forget cached prefixes - resume.
If it breaks off in between, layers are half-loaded: the server is lost and has to be started again.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from typing import Any, TypeVar
from urllib.parse import urlparse

import torch

from grpo_gym.inference.server_api import ServerApi, ServerError
from grpo_gym.inference.weight_transfer_buckets import DEFAULT_BUCKET_BYTES, BucketSpec, iter_buckets
from grpo_gym.inference.weight_transfer_group import (
    GlooGroup,
    Rendezvous,
    TransferGroup,
    address_towards,
    listen,
    serve_store,
)
from grpo_gym.inference.weight_transfer_guard import INIT_PATH, RELEASE_PATH, trainer_name

T = TypeVar("T")


class WeightSyncError(RuntimeError):
    """New weights did not reach a server whole; it must not be sampled from any more."""


class ServerWeightSync:
    """Sends weights to vf-vllm servers.

    Args:
        base_urls: one server, or several independent ones; each gets a group of its own.
        token: the servers' token; the variable VF_VLLM_TOKEN when None.
        timeout: seconds any one phase may take.
        bucket_bytes: size of one message, and all the memory a push needs on the trainer.
    """

    def __init__(
        self,
        base_urls: str | Sequence[str],
        token: str | None = None,
        timeout: float = 300.0,
        bucket_bytes: int = DEFAULT_BUCKET_BYTES,
    ) -> None:
        urls = [base_urls] if isinstance(base_urls, str) else list(base_urls)
        self._trainer = trainer_name(uuid.uuid4().hex[:8])
        self._links = [_Link(ServerApi(url, token, self._trainer), timeout) for url in urls]
        self._bucket_bytes = bucket_bytes
        self._device: torch.device = torch.device("cpu")
        self._pool = ThreadPoolExecutor(max_workers=2 * len(urls), thread_name_prefix="weight-sync")

    def connect(self, device: torch.device | str) -> None:
        """Form a group with the workers of every server.

        Args:
            device: where buckets are packed: this rank's GPU, or the CPU.

        Raises:
            WeightSyncError: a server is held by another trainer, cannot update weights, or does not join.
        """
        self._device = torch.device(device)
        for link in self._links:
            link.connect(self._device, self._pool)

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Replace the weights of every server.

        Args:
            weights: every parameter of the checkpoint, whole; consumed one at a time.
            version: policy version the servers will report from then on.

        Raises:
            WeightSyncError: names the server and the phase that failed.
        """
        self._on_all("pause", lambda link: link.call("/pause?mode=keep"))
        self._on_all("start", lambda link: link.call("/start_weight_update"))
        for spec, flat in iter_buckets(weights, self._bucket_bytes, self._bucket_device()):
            self._send(spec, flat)
        self._on_all("finish", lambda link: link.call("/finish_weight_update", {"weight_version": str(version)}))
        self._on_all("clear the prefix cache", lambda link: link.call("/reset_prefix_cache"))
        self._on_all("resume", lambda link: link.call("/resume"))

    def close(self) -> None:
        """Leave the groups and release the servers for another trainer; a server that is gone is no error."""
        for link in self._links:
            link.close()
        self._pool.shutdown(wait=False)

    def _bucket_device(self) -> torch.device:
        return self._device if all(link.backend != "gloo" for link in self._links) else torch.device("cpu")

    def _send(self, spec: BucketSpec, flat: torch.Tensor) -> None:
        """Announce a bucket over HTTP and broadcast it at the same time, to all servers at once."""
        announced = [self._pool.submit(link.call, "/update_weights", {"update_info": spec.to_json()}) for link in self._links]
        sent = [self._pool.submit(link.broadcast, flat) for link in self._links]
        for link, future in zip(self._links * 2, announced + sent, strict=True):
            _result(future, link, f"update weights ({spec.names[0]} ... {spec.names[-1]})")

    def _on_all(self, phase: str, call: Callable[[_Link], Any]) -> None:
        futures = [(link, self._pool.submit(call, link)) for link in self._links]
        for link, future in futures:
            _result(future, link, phase)


class _Link:
    """One server and the group that leads to its workers."""

    def __init__(self, api: ServerApi, timeout: float) -> None:
        self.api = api
        self.backend = ""
        self._timeout = timeout
        self._group: TransferGroup | None = None

    def call(self, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return self.api.post(path, body, timeout=self._timeout)

    def connect(self, device: torch.device, pool: ThreadPoolExecutor) -> None:
        try:
            self.backend = self.api.get("/vf_info")["backend"]
            workers = self.api.get("/get_world_size")["world_size"]
        except ServerError as error:
            raise WeightSyncError(
                f"{self.api.base_url} cannot update weights; was it started with vf-vllm? ({error})"
            ) from error
        address = address_towards(urlparse(self.api.base_url).hostname or "127.0.0.1")
        listener = listen(address)
        meeting = Rendezvous(address, listener.getsockname()[1], 1, workers + 1, self._timeout)
        store = serve_store(listener, meeting)
        # The workers join while the server answers this call, so it runs beside our own joining.
        joining = pool.submit(self.call, INIT_PATH, {"init_info": asdict(meeting)})
        group = pool.submit(self._join, store, meeting, device)
        _result(joining, self, "connect")
        self._group = _result(group, self, "connect")

    def _join(self, store: Any, meeting: Rendezvous, device: torch.device) -> TransferGroup:
        if self.backend == "gloo":
            return GlooGroup(store, 0, meeting)
        from grpo_gym.inference.weight_transfer_nccl import NcclGroup

        return NcclGroup(store, 0, meeting, device)

    def broadcast(self, flat: torch.Tensor) -> None:
        assert self._group is not None, "connect() comes first"
        self._group.broadcast(flat)

    def close(self) -> None:
        if self._group is None:
            return
        self._group.close()
        self._group = None
        if self.api.is_healthy():
            self.call(RELEASE_PATH)


def _result(future: Future[T], link: _Link, phase: str) -> T:
    """The outcome of one phase on one server.

    Raises:
        WeightSyncError: it failed.
    """
    try:
        return future.result()
    except (ServerError, RuntimeError) as error:
        raise WeightSyncError(
            f"weight sync with {link.api.base_url} failed in the phase '{phase}': {error}. "
            "Its weights may be half-loaded: restart that server before going on."
        ) from error


def check_canary(server: Sequence[float], trainer: Sequence[float], tolerance: float) -> float:
    """Compare log-probs of the same text.

    Args:
        server: log-probs by the server, in nats.
        trainer: log-probs by the trainer.
        tolerance: largest mean absolute difference.

    Returns:
        The mean absolute difference.

    Raises:
        WeightSyncError: it is above `tolerance`, or not a number.
    """
    difference = sum(abs(a - b) for a, b in zip(server, trainer, strict=True)) / max(1, len(server))
    if not difference <= tolerance:
        raise WeightSyncError(
            f"after the weight sync the server's log-probs differ from the trainer's by {difference:.4f} nats on "
            f"average (tolerance {tolerance}): the server does not serve the trained weights. Check that both run "
            "the same model and dtype, and restart the server; vllm_canary_tolerance sets the limit."
        )
    return difference
