"""The trainer's side of weight sync: bucket after bucket to every worker of every server.

A push is: pause (requests in flight are kept) - start - buckets - finish - forget cached prefixes - resume.
If it breaks off in between, layers are half-loaded: that server stays paused, so that nobody samples from
it, and has to be started again. Where there are several servers the push goes on with the others, and
`refresh` takes a server back that runs again; it has the current weights after the next push.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from grpo_gym.inference.server_api import ServerApi
from grpo_gym.inference.weight_sync_link import ServerLink
from grpo_gym.inference.weight_sync_phase import (
    RESTART_ADVICE,
    Task,
    WeightSyncError,
    bind,
    outcomes,
    run_together,
)
from grpo_gym.inference.weight_sync_pipeline import PhaseClock, num_buffers, send_buckets
from grpo_gym.inference.weight_transfer_buckets import (
    DEFAULT_BUCKET_BYTES,
    Bucket,
    BucketSpec,
    iter_buckets,
)
from grpo_gym.inference.weight_transfer_guard import ADAPTER_PATH, trainer_name
from grpo_gym.inference.weight_transfer_shared import SharedBufferPool

__all__ = ["ServerWeightSync", "WeightSyncError", "check_canary"]

_POLL_SECONDS = 1.0
_log = logging.getLogger(__name__)


class ServerWeightSync:
    """Sends weights to vf-vllm servers.

    Args:
        base_urls: one server, or several independent ones; each gets a group of its own.
        token: the servers' token; the variable VF_VLLM_TOKEN when None.
        timeout: seconds any one phase may take.
        bucket_bytes: size of one message. A push needs two of them on the trainer: one is filled while one is sent
            (one on a GPU).

    Attributes:
        clock: where the seconds of the last push went.
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
        self._links = [ServerLink(ServerApi(url, token, trainer), timeout) for url in urls]
        self._timeout = timeout
        self._bucket_bytes = bucket_bytes
        self._device = torch.device("cpu")
        self._pool = SharedBufferPool()
        self.clock = PhaseClock()

    @property
    def instances(self) -> dict[str, str | None]:
        """URL and instance (see `vf_info`) of every server that takes part."""
        return {link.url: link.instance for link in self._live()}

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

    def refresh(self, timeout: float = 0.0) -> list[str]:
        """Leave out servers that are gone, take back those that run again; before a push.

        Args:
            timeout: seconds to wait for one to come back when none is left.

        Returns:
            URLs of servers that came back. They have old weights until the next push.

        Raises:
            WeightSyncError: no server is left.
        """
        deadline = time.monotonic() + timeout
        while True:
            back = [link.url for link in self._links if self._refresh(link)]
            if self._live():
                return back
            if time.monotonic() > deadline:
                raise self._nobody_left(f", and none came back within {timeout:.0f} s")
            time.sleep(_POLL_SECONDS)

    def push(self, weights: Iterable[tuple[str, torch.Tensor]], version: int) -> None:
        """Replace the weights of every server.

        A server that fails is left out from then on, as long as another one does not.

        Args:
            weights: every parameter of the checkpoint, whole; consumed one at a time.
            version: policy version the servers will report from then on.

        Raises:
            WeightSyncError: names the servers, the phase and the side that failed or did not answer.
        """
        if not self._live():
            raise self._nobody_left(", since an earlier weight sync broke off")
        self.clock = PhaseClock()
        buckets = self._buckets(weights)
        with self.clock.phase("first fill"):
            first = next(buckets)  # trouble with gathering shows before a server is touched
        self._pause()
        with self._lost_on_error():
            self._on_all("start", "/start_weight_update")
            send_buckets(
                itertools.chain([first], buckets), self._send, self.clock,
                num_buffers(self._bucket_device()), at_once=2 if self._all_share_memory() else 1,
            )  # fmt: skip
            self._on_all("finish", "/finish_weight_update", {"weight_version": str(version)})
            self._on_all("clear the prefix cache", "/reset_prefix_cache?reset_running_requests=true")
            self._on_all("resume", "/resume")

    def check_adapter(self, rank: int, modules: Iterable[str]) -> None:
        """Raise a ValueError when a server does not serve LoRA adapters of this rank on these modules."""
        for link in self._live():
            link.check_adapter(rank, set(modules))

    def push_adapter(self, adapter: bytes, version: int) -> None:
        """Replace the LoRA adapter of every server, and nothing else.

        Args:
            adapter: a safetensors file as `AdapterEndpoint` reads it.
            version: policy version the servers will report from then on.

        Raises:
            WeightSyncError: names the servers and the phase that failed.
        """
        if not self._live():
            raise self._nobody_left(", since an earlier weight sync broke off")
        self.clock = PhaseClock()
        self._pause()
        with self._lost_on_error():
            with self.clock.phase("send"):
                self._on_each("load the adapter", lambda link: [link.send_task(ADAPTER_PATH, adapter)])
            self._on_all("set the version", "/update_weight_version", {"new_version": str(version)})
            self._on_all("clear the prefix cache", "/reset_prefix_cache?reset_running_requests=true")
            self._on_all("resume", "/resume")

    def drop(self, url: str, reason: str) -> None:
        """Leave a server out until it is found well by `refresh`.

        Raises:
            WeightSyncError: no server is left.
        """
        (link,) = [link for link in self._links if link.url == url]
        self._lose(link, reason, half_loaded=False)
        if not self._live():
            raise self._nobody_left()

    def close(self) -> None:
        """Leave the groups and release the servers for another trainer; a server that is gone is no error."""
        with contextlib.ExitStack() as stack:  # one that fails keeps no other one held
            stack.callback(self._pool.clear)
            for link in self._links:
                stack.callback(link.close)

    def _live(self) -> list[ServerLink]:
        return [link for link in self._links if not link.lost]

    def _bucket_device(self) -> torch.device:
        """NCCL sends from the GPU; gloo, and a mix of both, from the CPU."""
        all_nccl = all(link.backend == "vf_nccl" for link in self._live())
        return self._device if all_nccl else torch.device("cpu")

    def _all_share_memory(self) -> bool:
        return all(link.shares_memory for link in self._live())

    def _buckets(self, weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[Bucket]:
        """The weights in memory from which the servers are reached."""
        device = self._bucket_device()
        shared = any(link.shares_memory for link in self._live())
        return iter_buckets(
            weights,
            self._bucket_bytes,
            device,
            allocate=self._pool.allocator() if shared else None,
            num_buffers=num_buffers(device),
        )

    def _send(self, spec: BucketSpec, flat: torch.Tensor) -> None:
        """Announce a bucket over HTTP, to all servers at once; broadcast it to those who cannot read it themselves."""

        def both_sides(link: ServerLink) -> list[Task]:
            if link.shares_memory:
                return [link.task("/update_weights", {"update_info": spec.to_json()})]
            body = {"update_info": replace(spec, shared_path="").to_json()}
            return [link.task("/update_weights", body), Task(link.url, "trainer", bind(link.broadcast, flat))]

        self._on_each(f"update weights ({spec.names[0]} ... {spec.names[-1]})", both_sides)

    @contextlib.contextmanager
    def _lost_on_error(self) -> Iterator[None]:
        """Leave out every server when the trainer fails between pause and resume, or is interrupted (Ctrl-C).

        Raises:
            WeightSyncError: for a failure; an interrupt goes on as what it is.
        """
        try:
            yield
        except WeightSyncError:
            raise
        except BaseException as error:
            is_failure = isinstance(error, Exception)
            reason = f"could not gather its weights: {error}" if is_failure else "was interrupted"
            message = f"the trainer {reason}.{RESTART_ADVICE}"
            for link in self._live():
                link.lose(message, half_loaded=True)
            if is_failure:
                raise WeightSyncError(message) from error
            _log.warning("weight sync: %s", message)
            raise

    def _pause(self) -> None:
        """Pause every server; an interrupted pause is undone, since no weight has changed yet."""
        try:
            self._on_all("pause", "/pause?mode=keep")
        except WeightSyncError:
            raise
        except BaseException:
            for link in self._live():
                link.resume_if_up()
            raise

    def _on_all(self, phase: str, path: str, body: dict[str, Any] | None = None) -> None:
        with self.clock.phase(phase):
            self._on_each(phase, lambda link: [link.task(path, body)])

    def _on_each(self, phase: str, tasks: Callable[[ServerLink], list[Task]]) -> None:
        """Run a phase on all servers at once; those that fail are left out.

        Raises:
            WeightSyncError: none is left.
        """
        links = self._live()
        calls = [partial(run_together, phase, tasks(link), self._timeout) for link in links]
        errors = outcomes(calls)
        for link, error in zip(links, errors, strict=True):
            if error is None:
                continue
            self._lose(link, str(error), half_loaded=phase != "pause")
            if phase == "pause":  # nothing has changed yet: should the server have paused, it may go on
                link.resume_if_up()
        if self._live():
            return
        if len(links) == 1 and errors[0] is not None:
            raise errors[0]
        raise self._nobody_left()

    def _refresh(self, link: ServerLink) -> bool:
        was = link.lost
        if link.refresh(self._device):
            _log.warning("vf-vllm server %s is back and gets the current weights.", link.url)
            return True
        if link.lost and not was:
            self._report(link)
        return False

    def _lose(self, link: ServerLink, reason: str, half_loaded: bool) -> None:
        link.lose(reason, half_loaded)
        self._report(link)

    def _report(self, link: ServerLink) -> None:
        if others := len(self._live()):
            _log.warning("vf-vllm server %s is lost; training goes on with %d other(s): %s",
                         link.url, others, link.lost)  # fmt: skip

    def _nobody_left(self, addition: str = "") -> WeightSyncError:
        reasons = "; ".join(f"{link.url}: {link.lost}" for link in self._links)
        return WeightSyncError(
            f"no vf-vllm server is left{addition}. Start them again and go on from the last checkpoint "
            f"(--resume_from_checkpoint true). {reasons}"
        )


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
