"""A vf-vllm server that the trainer starts itself, on its own device, and always stops."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from grpo_gym.inference.server import PARENT_VARIABLE
from grpo_gym.inference.server_api import ServerApi

_STOP_SECONDS = 20.0
_LOG_TAIL = 2000


class ColocatedServer:
    """Runs `vf-vllm` as a child process.

    Args:
        model: name or path.
        gpu_memory_utilization: share of the GPU for the server; ignored on CPU.
        max_model_len: longest sequence; None lets vLLM read it from the model.
        port: 0 takes a free one.
        extra_args: more vf-vllm flags.
        log_path: the server's output is appended to it. None: a temporary file, removed with its folder when a server
            that had come up is stopped.
    """

    def __init__(
        self,
        model: str,
        gpu_memory_utilization: float = 0.3,
        max_model_len: int | None = None,
        port: int = 0,
        extra_args: Sequence[str] = (),
        log_path: str | Path | None = None,
    ) -> None:
        self.port = port or free_port()
        self.base_url = f"http://127.0.0.1:{self.port}"
        self._command = [
            sys.executable,
            "-m",
            "grpo_gym.inference.server",
            "--model",
            model,
            "--port",
            str(self.port),
        ]
        if max_model_len is not None:
            self._command += ["--max-model-len", str(max_model_len)]
        if _has_gpu():
            self._command += ["--gpu-memory-utilization", str(gpu_memory_utilization)]
            # NCCL refuses two processes on one GPU: weights go by way of the CPU.
            self._command += ["--weight-transfer-config", '{"backend": "gloo"}']
        self._command += extra_args
        self._temporary_folder: str | None = None
        if log_path is None:
            self._temporary_folder = tempfile.mkdtemp(prefix="vf-vllm-log-")
            log_path = Path(self._temporary_folder, "server.log")
        self.log_path = Path(log_path)
        self._came_up = False
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, timeout: float = 240.0) -> None:
        """Start the server and wait until it is healthy.

        Raises:
            RuntimeError: it died (the end of its log is in the message), or another server has its port.
            TimeoutError: it was not healthy within `timeout` seconds.
        """
        if ServerApi(self.base_url).is_healthy():
            raise RuntimeError(
                f"another server already answers at {self.base_url}: stop it, or use another port."
            )
        environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        # accelerate's variables would make vLLM join the trainer's own process group.
        for name in (
            "RANK",
            "WORLD_SIZE",
            "LOCAL_RANK",
            "LOCAL_WORLD_SIZE",
            "MASTER_ADDR",
            "MASTER_PORT",
            "GROUP_RANK",
        ):
            environment.pop(name, None)
        self.log_path.parent.mkdir(parents=True, exist_ok=True)
        with self.log_path.open("ab") as log:  # a run may start its server more than once
            self._process = subprocess.Popen(
                self._command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        atexit.register(self.stop)
        self._wait(timeout)
        self._came_up = True

    def stop(self) -> None:
        """Stop the server and every process it started."""
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.stop)
        was_well = self._came_up and process.poll() is None
        _signal_group(process, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        # Also when it ended by itself: its workers may have outlived it.
        _signal_group(process, signal.SIGKILL)
        process.wait()
        self._came_up = False
        if was_well and self._temporary_folder is not None:  # else the log says what went wrong
            shutil.rmtree(self._temporary_folder, ignore_errors=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait(self, timeout: float) -> None:
        assert self._process is not None
        api = ServerApi(self.base_url)
        deadline = time.monotonic() + timeout
        while not api.is_healthy():
            if self._process.poll() is not None:
                code = self._process.returncode
                self.stop()
                raise RuntimeError(
                    f"vf-vllm ended with exit code {code} while starting; its log ends with:\n{self._tail()}"
                )
            if time.monotonic() > deadline:
                self.stop()
                raise TimeoutError(
                    f"vf-vllm was not ready within {timeout:.0f} s (raise vllm_server_timeout); "
                    f"its log is {self.log_path}"
                )
            time.sleep(0.5)

    def _tail(self) -> str:
        return self.log_path.read_text(errors="replace")[-_LOG_TAIL:]


def source_flags(model_init_kwargs: Mapping[str, Any]) -> list[str]:
    """VLLM's flags for the revision and the model code that the trainer loads."""
    flags = ["--trust-remote-code"] if model_init_kwargs.get("trust_remote_code") else []
    for name in ("revision", "code_revision"):
        value = model_init_kwargs.get(name)
        flags += [f"--{name.replace('_', '-')}", str(value)] if value else []
    return flags


def free_port() -> int:
    """A port that is free on this machine now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    try:
        os.killpg(process.pid, number)
    except ProcessLookupError:
        return  # it has ended by itself


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()
