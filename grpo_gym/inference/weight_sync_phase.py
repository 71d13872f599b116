"""One phase of a weight sync: what server and trainer do at the same time, and which side is to blame."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch

RESTART_ADVICE = (
    " Its weights may be half-loaded and it stays paused: restart that server and go on from a checkpoint."
)
_GRACE_SECONDS = 3.0
"""How long the other side gets to give its own reason, once one side has failed."""
_LATE_SECONDS = 15.0
"""HTTP and gloo end by their own time-outs; only what outlasts them by this much is given up on."""


class WeightSyncError(RuntimeError):
    """New weights did not reach a server whole; it must not be sampled from any more."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one side does in a phase."""

    url: str
    side: str
    call: Callable[[], Any]


def bind(function: Callable[[torch.Tensor], None], flat: torch.Tensor) -> Callable[[], None]:
    """A call of `function(flat)` to be made later."""
    return lambda: function(flat)


def run_together(phase: str, tasks: Sequence[Task], timeout: float) -> list[Any]:
    """Run the two sides of a phase, on all servers, at once.

    The threads are daemons: a side that hangs (NCCL has no time-out) does not keep the program from ending.

    Returns:
        What the tasks returned, in their order.

    Raises:
        WeightSyncError: a side failed, or gave no answer; the message names it.
    """
    answers: queue.SimpleQueue[tuple[int, Any, Exception | None]] = queue.SimpleQueue()
    for index, task in enumerate(tasks):
        threading.Thread(
            target=_run, args=(index, task, answers), name=f"sync-{task.side}", daemon=True
        ).start()
    results: dict[int, Any] = {}
    failures: list[tuple[Task, Exception]] = []
    deadline = time.monotonic() + timeout + _LATE_SECONDS
    while len(results) + len(failures) < len(tasks):
        try:
            index, result, error = answers.get(timeout=max(0.0, deadline - time.monotonic()))
        except queue.Empty:
            break
        if error is None:
            results[index] = result
            continue
        failures.append((tasks[index], error))
        # The server's reason is the better one; ours is often only that the connection went away.
        deadline = min(
            deadline, time.monotonic() + (_GRACE_SECONDS if tasks[index].side == "trainer" else 0.0)
        )
    if failures:
        raise _failure(phase, failures) from failures[0][1]
    if len(results) < len(tasks):
        hung = [f"the {task.side} ({task.url})" for index, task in enumerate(tasks) if index not in results]
        raise WeightSyncError(
            f"weight sync, phase '{phase}': no answer from {' and '.join(hung)}.{RESTART_ADVICE}"
        )
    return [results[index] for index in range(len(tasks))]


def _run(index: int, task: Task, answers: queue.SimpleQueue[tuple[int, Any, Exception | None]]) -> None:
    try:
        answers.put((index, task.call(), None))
    except Exception as error:  # handed to the thread that waits, which raises it
        answers.put((index, None, error))


def _failure(phase: str, failures: Sequence[tuple[Task, Exception]]) -> WeightSyncError:
    reasons = sorted((task.side, task.url, str(error)) for task, error in failures)
    text = "; ".join(f"{side} ({url}): {reason}" for side, url, reason in reasons)
    advice = "" if phase in ("connect", "pause") else RESTART_ADVICE
    return WeightSyncError(f"weight sync, phase '{phase}': {text.rstrip('.')}.{advice}")


def outcomes(calls: Sequence[Callable[[], Any]]) -> list[WeightSyncError | None]:
    """Make the calls at once; for each, the WeightSyncError it raised, or None.

    Other exceptions are raised here.
    """
    if len(calls) == 1:
        return [_outcome(calls[0])]
    with ThreadPoolExecutor(len(calls), thread_name_prefix="sync") as pool:
        return list(pool.map(_outcome, calls))


def _outcome(call: Callable[[], Any]) -> WeightSyncError | None:
    try:
        call()
    except WeightSyncError as error:
        return error
    return None
