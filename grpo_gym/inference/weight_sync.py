"""The trainer's side of weight sync: bucket after bucket to every worker of every server.

A push is: pause (requests in flight are kept) - start - buckets - finish - forget cached prefixes - resume.
If it breaks off in between, layers are half-loaded: the server stays paused, so that nobody samples from
it, and has to be started again.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any
from urllib.parse import urlparse

import torch

from grpo_gym import __version__
from grpo_gym.inference.server_api import ServerApi, ServerError
from grpo_gym.inference.weight_sync_phase import RESTART_ADVICE, Task, WeightSyncError, bind, run_together
from grpo_gym.inference.weight_transfer_buckets import DEFAULT_BUCKET_BYTES, BucketSpec, iter_buckets
from grpo_gym.inference.weight_transfer_group import (
    GlooGroup,
    Rendezvous,
    TransferGroup,
    address_towards,
    listen,
    serve_store,
)
from grpo_gym.inference.weight_transfer_guard import (
    FORCE_HEADER,
    HOLD_PATH,
    INIT_PATH,
    RELEASE_PATH,
    trainer_name,
)

__all__ = ["ServerWeightSync", "WeightSyncError", "check_canary"]


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
        trainer = trainer_name(uuid.uuid4().hex[:8])
        self._links = [_Link(ServerApi(url, token, trainer), timeout) for url in urls]
        self._timeout = timeout
        self._bucket_bytes = bucket_bytes
        self._device = torch.device("cpu")
        self._is_broken = False

    def connect(self, device: torch.device | str, force: bool = False) -> None:
        """Form a group with the workers of every server.

        Args:
            device: where the weights are: this rank's GPU, or the CPU.
            force: take over a server that another trainer holds.

        Raises:
            WeightSyncError: a server is held by another trainer, cannot update weights, or does not join.
        """
        self._device = torch.device(device)
        for link in self._links:
            link.connect(self._device, force)

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Replace the weights of every server.

        Args:
            weights: every parameter of the checkpoint, whole; consumed one at a time.
            version: policy version the servers will report from then on.

        Raises:
            WeightSyncError: names the server, the phase and the side that failed or did not answer.
        """
        if self._is_broken:
            raise WeightSyncError("an earlier weight sync broke off: restart the servers and the trainer.")
        buckets = iter_buckets(weights, self._bucket_bytes, self._bucket_device())
        first = next(buckets)  # trouble with gathering shows before a server is touched
        self._pause()
        try:
            self._on_all("start", "/start_weight_update")
            for spec, flat in itertools.chain([first], buckets):
                self._send(spec, flat)
            self._on_all("finish", "/finish_weight_update", {"weight_version": str(version)})
            self._on_all("clear the prefix cache", "/reset_prefix_cache?reset_running_requests=true")
            self._on_all("resume", "/resume")
        except Exception as error:
            self._is_broken = True
            if isinstance(error, WeightSyncError):
                raise
            raise WeightSyncError(
                f"the trainer could not gather its weights: {error}.{RESTART_ADVICE}"
            ) from error

    def close(self) -> None:
        """Leave the groups and release the servers for another trainer; a server that is gone is no error."""
        for link in self._links:
            link.close()

    def _bucket_device(self) -> torch.device:
        """NCCL sends from the GPU; gloo, and a mix of both, from the CPU."""
        return self._device if all(link.backend == "vf_nccl" for link in self._links) else torch.device("cpu")

    def _pause(self) -> None:
        try:
            self._on_all("pause", "/pause?mode=keep")
        except WeightSyncError:  # nothing has changed yet: let those that did pause go on
            for link in self._links:
                link.resume_if_up()
            raise

    def _send(self, spec: BucketSpec, flat: torch.Tensor) -> None:
        """Announce a bucket over HTTP and broadcast it at the same time, to all servers at once."""
        body = {"update_info": spec.to_json()}
        tasks = [link.task("/update_weights", body) for link in self._links]
        tasks += [Task(link.api.base_url, "trainer", bind(link.broadcast, flat)) for link in self._links]
        run_together(f"update weights ({spec.names[0]} ... {spec.names[-1]})", tasks, self._timeout)

    def _on_all(self, phase: str, path: str, body: dict[str, Any] | None = None) -> None:
        run_together(phase, [link.task(path, body) for link in self._links], self._timeout)


class _Link:
    """One server and the group that leads to its workers."""

    def __init__(self, api: ServerApi, timeout: float) -> None:
        self.api = api
        self.backend = ""
        self._timeout = timeout
        self._group: TransferGroup | None = None
        self._holds_server = False

    def task(
        self, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Task:
        def call() -> dict[str, Any]:
            return self.api.post(path, body, timeout=self._timeout, headers=headers)

        return Task(self.api.base_url, "server", call)

    def connect(self, device: torch.device, force: bool) -> None:
        workers = self._check_server(device)
        # A refusal comes at once, before anybody waits in a group for the others.
        run_together(
            "connect", [self.task(HOLD_PATH, None, {FORCE_HEADER: "1"} if force else None)], self._timeout
        )
        self._holds_server = True
        address = address_towards(urlparse(self.api.base_url).hostname or "127.0.0.1")
        listener = listen(address)
        meeting = Rendezvous(address, listener.getsockname()[1], 1, workers + 1, self._timeout)
        store = serve_store(listener, meeting)
        # The workers join while the server answers this call, so it runs beside our own joining.
        joining = self.task(INIT_PATH, {"init_info": asdict(meeting)})
        meet = Task(self.api.base_url, "trainer", lambda: self._join(store, meeting, device))
        self._group = run_together("connect", [joining, meet], self._timeout)[1]

    def _check_server(self, device: torch.device) -> int:
        """How many workers the server has, once it is sure that they can be reached.

        Raises:
            WeightSyncError: not a vf-vllm server, another version, or no way between the two devices.
        """
        url = self.api.base_url
        try:
            info = self.api.get("/vf_info")
            workers = int(self.api.get("/get_world_size")["world_size"])
        except ServerError as error:
            raise WeightSyncError(
                f"{url} cannot update weights; was it started with vf-vllm? ({error})"
            ) from error
        self.backend = info["backend"]
        if info["version"] != __version__:
            raise WeightSyncError(
                f"{url} runs grpo-gym {info['version']}, the trainer {__version__}: install the same."
            )
        if self.backend not in ("gloo", "vf_nccl"):
            raise WeightSyncError(
                f"{url} uses weight transfer {self.backend!r}: leave out --weight-transfer-config."
            )
        if self.backend == "vf_nccl" and device.type != "cuda":
            raise WeightSyncError(
                f"{url} receives weights over NCCL but the trainer computes on {device.type}: start the server with "
                """--weight-transfer-config '{"backend": "gloo"}'."""
            )
        return workers

    def _join(self, store: Any, meeting: Rendezvous, device: torch.device) -> TransferGroup:
        if self.backend == "gloo":
            return GlooGroup(store, 0, meeting)
        from grpo_gym.inference.weight_transfer_nccl import NcclGroup

        return NcclGroup(store, 0, meeting, device)

    def broadcast(self, flat: torch.Tensor) -> None:
        if self._group is None:
            raise RuntimeError("not connected: connect() comes before push()")
        self._group.broadcast(flat if self.backend == "vf_nccl" else flat.cpu())

    def resume_if_up(self) -> None:
        if self.api.is_healthy():
            self.api.post("/resume", timeout=self._timeout)

    def close(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None
        held, self._holds_server = self._holds_server, False
        if held and self.api.is_healthy():
            self.api.post(RELEASE_PATH, timeout=self._timeout)


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
