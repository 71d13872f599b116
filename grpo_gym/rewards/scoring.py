"""Scoring one completion: in place, or in a process that is killed when its time is up."""

from __future__ import annotations

import asyncio
import functools
import math
import os
from collections.abc import Callable
from typing import Any

from grpo_gym.rewards.base import BaseReward, RewardError
from grpo_gym.rewards.worker_pool import WorkerPool

_MIN_WORKERS, _MAX_WORKERS = 4, 8
"""Half of the cores, within these bounds: with few workers a few scores that hang would hold up all others."""

Arguments = tuple[str, str, str, dict[str, Any]]


async def score(reward: BaseReward, arguments: Arguments) -> float:
    """The reward's score of (prompt, completion, answer, info).

    Raises:
        RewardError: it raised, took too long, or gave no finite number.
    """
    return await call_within(reward.compute, arguments, reward.deadline, reward.__name__)


async def call_within(
    function: Callable[..., Any], arguments: tuple[Any, ...], deadline: float | None, name: str
) -> float:
    """Call a scoring function: here when `deadline` is None, else in a worker process.

    Raises:
        RewardError: it raised, took too long, or gave no finite number; the message starts with `name`.
    """
    if deadline is None:
        try:
            value = function(*arguments)
        except Exception as error:
            raise RewardError(f"{name}: {type(error).__name__}: {error}") from error
    else:
        pool = shared_pool()
        loop = asyncio.get_running_loop()
        call = functools.partial(pool.call, function, arguments, deadline, name)
        value = await loop.run_in_executor(pool.threads, call)
    return _finite(value, name)


@functools.cache
def shared_pool() -> WorkerPool:
    """The scoring processes of this process; they start when they are first needed."""
    return WorkerPool(min(_MAX_WORKERS, max(_MIN_WORKERS, (os.cpu_count() or 2) // 2)))


def _finite(value: Any, name: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise RewardError(f"{name}: returned {value!r}, which is not a number") from error
    if not math.isfinite(number):
        raise RewardError(f"{name}: returned {number}")
    return number
