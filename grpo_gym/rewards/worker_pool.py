"""Processes that score, each of which can be killed without anything else stopping.

They are started as programs of their own (not forked from a process with threads and CUDA, and without
running the user's script again), and talk over a pair of sockets. What the script or notebook defines itself
therefore travels by value, with the globals it uses; what stands in modules is imported there. A worker says
when it begins to score, so that starting up and importing do not count towards the deadline.
"""

from __future__ import annotations

import atexit
import os
import pickle
import queue
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from grpo_gym.rewards.base import RewardError
from grpo_gym.rewards.registry import loaded_modules

_START_LIMIT = 120.0
"""Seconds for a process to start and to import what it needs."""


class Worker:
    """One scoring process."""

    def __init__(self) -> None:
        self.connection, theirs = Pipe()
        # Numerical libraries with a thread per core would take them from the trainer.
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "grpo_gym.rewards.worker", str(theirs.fileno()), *sys.path],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env=environment,
        )
        theirs.close()

    def call(self, payload: bytes, deadline: float, name: str) -> Any:
        """The result of the pickled call.

        Raises:
            RewardError: the call raised.
            TimeoutError: it took longer than `deadline` seconds; kill the worker.
            EOFError: the process died.
        """
        self.connection.send_bytes(payload)
        self._receive(self.connection, _START_LIMIT)
        ok, result = self._receive(self.connection, deadline)
        if not ok:
            raise RewardError(f"{name}: {result}")
        return result

    def kill(self) -> None:
        """End the process now."""
        self.process.kill()
        self.process.wait()
        self.connection.close()

    @staticmethod
    def _receive(connection: Connection, seconds: float) -> tuple[bool, Any]:
        if not connection.poll(seconds):
            raise TimeoutError
        ok, result = connection.recv()
        return ok, result


class WorkerPool:
    """At most `size` scoring processes, made when needed and replaced when killed.

    Attributes:
        threads: an executor with one thread per process, for calls from an event loop.
    """

    def __init__(self, size: int) -> None:
        self.threads = ThreadPoolExecutor(size, thread_name_prefix="scoring")
        self._idle: queue.LifoQueue[Worker] = queue.LifoQueue()
        self._workers: set[Worker] = set()
        atexit.register(self.close)

    def call(
        self, function: Callable[..., Any], arguments: tuple[Any, ...], deadline: float, name: str
    ) -> Any:
        """`function(*arguments)` in a worker; blocks, so call it from one of `threads`.

        Raises:
            RewardError: it raised, took longer than `deadline` seconds, or the process died; or the function
                cannot travel to another process.
        """
        payload = _payload(function, arguments, name)
        worker = self._take()
        try:
            result = worker.call(payload, deadline, name)
        except RewardError:
            self._idle.put(worker)
            raise
        except TimeoutError:
            self._discard(worker)
            raise RewardError(f"{name}: took longer than its deadline of {deadline:g} s") from None
        except (EOFError, OSError) as error:
            self._discard(worker)
            raise RewardError(
                f"{name}: the scoring process ended with code {worker.process.returncode}"
            ) from error
        self._idle.put(worker)
        return result

    def close(self) -> None:
        """End all processes; a later call starts new ones."""
        while self._workers:
            self._discard(self._workers.pop())
        self._idle = queue.LifoQueue()

    @property
    def pids(self) -> list[int]:
        """The running processes."""
        return [worker.process.pid for worker in self._workers]

    def _take(self) -> Worker:
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            worker = Worker()
            self._workers.add(worker)
            return worker

    def _discard(self, worker: Worker) -> None:
        self._workers.discard(worker)
        worker.kill()


def _payload(function: Callable[..., Any], arguments: tuple[Any, ...], name: str) -> bytes:
    """What a worker loads: the user's modules first, then the call that may refer to them."""
    try:
        call = cloudpickle.dumps((function, arguments))
    except Exception as error:
        # Whatever the user's objects raise when they are pickled.
        raise RewardError(
            f"{name}: cannot be sent to a scoring process ({type(error).__name__}: {error}); keep what cannot be "
            "pickled in a module, or set deadline = None to score in place"
        ) from error
    return pickle.dumps((loaded_modules(), call))
