"""Grading in worker processes: with a deadline, and without stalling the event loop.

math-verify's own time limit is an alarm signal, which works in a main thread only and cannot stop C code.
Here a process that is late is killed. Workers are plain subprocesses, neither forked (the parent may hold
a GPU and threads) nor spawned by `multiprocessing` (which would run the user's script again).
"""

from __future__ import annotations

import asyncio
import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

_START_UP_SECONDS = 120.0


class UnscorableError(RuntimeError):
    """Grading failed; nothing is known about the answer, which must not count as wrong."""


class GraderPool:
    """Up to `num_workers` grading processes, started when they are needed.

    Args:
        num_workers: how many answers are graded at the same time.
        deadline: seconds for one answer; start-up and waiting for a free worker do not count.
    """

    def __init__(self, num_workers: int = 4, deadline: float = 5.0) -> None:
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, not {num_workers}.")
        if not 0 < deadline < float("inf"):
            raise ValueError(f"the grading deadline must be a number of seconds above 0, not {deadline}.")
        self.num_workers, self.deadline = num_workers, deadline
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._workers: set[_Worker] = set()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(num_workers, thread_name_prefix="math-grader")
        self._finalizer = weakref.finalize(self, _stop_all, self._workers, self._threads)

    async def grade(self, gold: str, answer: str, question: str = "") -> bool:
        """Whether `answer` is `gold`; see `math_reasoning.grading.grade`. Works in any event loop.

        Raises:
            UnscorableError: the deadline passed, or the worker died.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self.grade_now, gold, answer, question)

    def grade_now(self, gold: str, answer: str, question: str = "") -> bool:
        """`grade`, for callers without an event loop; waits."""
        worker = self._take()
        try:
            correct = worker.grade({"gold": gold, "answer": answer, "question": question}, self.deadline)
        except BaseException:
            self._discard(worker)
            raise
        self._idle.put(worker)
        return correct

    def close(self) -> None:
        """Stop every worker. The pool is of no use afterwards."""
        self._finalizer()

    def _take(self) -> _Worker:
        """An idle worker, or a new one. There are as many threads as workers, so none has to wait."""
        try:
            return self._idle.get_nowait()
        except queue.Empty:
            worker = _Worker()
            with self._lock:
                self._workers.add(worker)
            return worker

    def _discard(self, worker: _Worker) -> None:
        worker.stop()
        with self._lock:
            self._workers.discard(worker)


class _Worker:
    """One process; a reply that does not come in time leaves it useless."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "math_reasoning.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._is_ready = False

    def grade(self, job: dict[str, str], deadline: float) -> bool:
        if not self._is_ready:
            self._reply(_START_UP_SECONDS, "starting up")
            self._is_ready = True
        line = json.dumps({**job, "deadline": deadline}) + "\n"
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise UnscorableError("the grading process ended between two answers.") from error
        return bool(self._reply(deadline, f"the answer {job['answer'][:80]!r}")["correct"])

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _reply(self, seconds: float, what: str) -> dict[str, bool]:
        """The next line of the worker's output."""
        assert self._process.stdout is not None
        descriptor, end, line = self._process.stdout.fileno(), time.monotonic() + seconds, b""
        while not line.endswith(b"\n"):
            readable, _, _ = select.select([descriptor], [], [], max(0.0, end - time.monotonic()))
            if not readable:
                raise UnscorableError(
                    f"grading took longer than {seconds:g} s on {what}; the process was ended."
                )
            chunk = os.read(descriptor, 4096)
            if not chunk:
                raise UnscorableError(
                    f"the grading process died (exit status {self._process.wait()}) on {what}."
                )
            line += chunk
        return json.loads(line)


def _stop_all(workers: set[_Worker], threads: ThreadPoolExecutor) -> None:
    for worker in list(workers):
        worker.stop()
    workers.clear()
    threads.shutdown(wait=False, cancel_futures=True)
