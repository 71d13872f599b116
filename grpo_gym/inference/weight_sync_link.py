"""One vf-vllm server as the trainer's weight sync sees it: its group, and whether it can take weights."""

from __future__ import annotations

import contextlib
from dataclasses import asdict
from typing import Any
from urllib.parse import urlparse

import torch

from grpo_gym.inference.adapter_endpoint import served_rank
from grpo_gym.inference.server_api import ServerApi, ServerError
from grpo_gym.inference.versions import version_mismatch
from grpo_gym.inference.weight_sync_phase import Task, WeightSyncError, run_together
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
    INFO_PATH,
    INIT_PATH,
    RELEASE_PATH,
)
from grpo_gym.inference.weight_transfer_shared import machine_identity


class ServerLink:
    """One server and the group that leads to its workers.

    Attributes:
        backend: how weights travel, "gloo" or "vf_nccl"; known once connected.
        max_lora_rank: largest LoRA adapter it can serve; 0 for none.
        lora_modules: the modules an adapter may change.
        shares_memory: its workers read buckets from the trainer's memory: gloo's sockets are not needed.
        instance: which start of the server it is connected to.
        lost: why it is left out of weight syncs; empty when it takes part.
        is_half_loaded: it was lost in the middle of an update: only another start of it can be used again.
    """

    def __init__(self, api: ServerApi, timeout: float) -> None:
        self.api = api
        self.backend = ""
        self.shares_memory = False
        self.max_lora_rank = 0
        self.lora_modules: set[str] = set()
        self.instance: str | None = None
        self.lost = ""
        self.is_half_loaded = False
        self._timeout = timeout
        self._group: TransferGroup | None = None
        self._holds_server = False

    @property
    def url(self) -> str:
        """The server's base URL."""
        return self.api.base_url

    def task(
        self, path: str, body: dict[str, Any] | None = None, headers: dict[str, str] | None = None
    ) -> Task:
        """A POST, to be made as one side of a phase."""

        def call() -> dict[str, Any]:
            return self.api.post(path, body, timeout=self._timeout, headers=headers)

        return Task(self.url, "server", call)

    def check_adapter(self, rank: int, modules: set[str]) -> None:
        """Raise a ValueError when the server does not serve LoRA adapters of this rank on these modules."""
        if rank <= self.max_lora_rank and modules <= self.lora_modules:
            return
        names = " ".join(sorted(modules))
        raise ValueError(
            f"lora_sync='adapter': {self.url} serves adapters up to rank {self.max_lora_rank} on "
            f"{sorted(self.lora_modules)}; start it on one machine with --enable-lora --max-lora-rank "
            f"{served_rank(rank)} --lora-target-modules {names}, or use lora_sync='merge'."
        )

    def send_task(self, path: str, content: bytes) -> Task:
        """A POST of raw bytes, to be made as one side of a phase."""
        return Task(self.url, "server", lambda: self.api.post_bytes(path, content, timeout=self._timeout))

    def connect(self, device: torch.device, force: bool = False) -> None:
        """Hold the server and form a group with its workers; a group of before is left.

        Raises:
            WeightSyncError: it is held by another trainer, cannot update weights, or does not join.
        """
        self._leave_group()
        info, workers = self._check_server(device)
        # A refusal comes at once, before anybody waits in a group for the others.
        hold = self.task(HOLD_PATH, None, {FORCE_HEADER: "1"} if force else None)
        run_together("connect", [hold], self._timeout)
        self._holds_server = True
        address = address_towards(urlparse(self.url).hostname or "127.0.0.1")
        listener = listen(address)
        meeting = Rendezvous(address, listener.getsockname()[1], 1, workers + 1, self._timeout)
        store = serve_store(listener, meeting)
        # The workers join while the server answers this call, so it runs beside our own joining.
        joining = self.task(INIT_PATH, {"init_info": asdict(meeting)})
        meet = Task(self.url, "trainer", lambda: self._join(store, meeting, device))
        self._group = run_together("connect", [joining, meet], self._timeout)[1]
        self.instance, self.lost, self.is_half_loaded = info.get("instance"), "", False

    def refresh(self, device: torch.device) -> bool:
        """See whether the server still runs, and connect anew to one that was lost and runs again.

        Returns:
            Whether it has come back.
        """
        try:
            instance = self.api.get(INFO_PATH).get("instance")
        except ServerError as error:
            self.lose(str(error))
            return False
        is_same = instance == self.instance
        if is_same and (not self.lost or self.is_half_loaded):
            return False
        try:
            self.connect(device)
        except (WeightSyncError, OSError) as error:
            self.lose(str(error))
            return False
        return True

    def lose(self, reason: str, half_loaded: bool = False) -> None:
        """Leave the server out until `refresh` finds it well."""
        self.lost = reason
        self.is_half_loaded = self.is_half_loaded or half_loaded

    def broadcast(self, flat: torch.Tensor) -> None:
        """Send a bucket, a uint8 tensor [num_bytes], to the workers."""
        if self._group is None:
            raise RuntimeError("not connected: connect() comes before push()")
        self._group.broadcast(flat if self.backend == "vf_nccl" else flat.cpu())

    def resume_if_up(self) -> None:
        """Let a paused server go on, if it still answers; it is left out already, whatever becomes of it."""
        with contextlib.suppress(ServerError):
            self.api.post("/resume")

    def close(self) -> None:
        """Leave the group and release the server; one that is gone is no error."""
        held, self._holds_server = self._holds_server, False
        try:
            self._leave_group()
        finally:
            if held and self.api.is_healthy():
                self.api.post(RELEASE_PATH, timeout=self._timeout)

    def _leave_group(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None

    def _check_server(self, device: torch.device) -> tuple[dict[str, Any], int]:
        """What the server says of itself and how many workers it has, once it is sure that they can be reached.

        Raises:
            WeightSyncError: not a vf-vllm server, another version, or no way between the two devices.
        """
        url = self.url
        try:
            info = self.api.get(INFO_PATH)
            workers = int(self.api.get("/get_world_size")["world_size"])
        except ServerError as error:
            raise WeightSyncError(
                f"{url} cannot update weights; was it started with vf-vllm? ({error})"
            ) from error
        self.backend = info["backend"]
        self.max_lora_rank = int(info.get("max_lora_rank", 0))
        self.lora_modules = set(info.get("lora_modules", []))
        self.shares_memory = self.backend == "gloo" and info.get("machine", "") == machine_identity() != ""
        if mismatch := version_mismatch(info):
            raise WeightSyncError(f"{url} {mismatch}.")
        if self.backend not in ("gloo", "vf_nccl"):
            raise WeightSyncError(
                f"{url} uses weight transfer {self.backend!r}: leave out --weight-transfer-config."
            )
        if self.backend == "vf_nccl" and device.type != "cuda":
            raise WeightSyncError(
                f"{url} receives weights over NCCL but the trainer computes on {device.type}: start the server with "
                """--weight-transfer-config '{"backend": "gloo"}'."""
            )
        return info, workers

    def _join(self, store: Any, meeting: Rendezvous, device: torch.device) -> TransferGroup:
        if self.backend == "gloo":
            return GlooGroup(store, 0, meeting)
        from grpo_gym.inference.weight_transfer_nccl import NcclGroup

        return NcclGroup(store, 0, meeting, device)
