"""The program a scoring process runs: `python -m grpo_gym.rewards.worker FD SYS_PATH...`."""

from __future__ import annotations

import functools
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

from grpo_gym.rewards.base import BaseReward
from grpo_gym.rewards.registry import load_rewards_module


def main() -> None:
    """Answer calls until the other side closes."""
    connection = Connection(int(sys.argv[1]))
    sys.path[:] = sys.argv[2:]
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    while True:
        try:
            payload = connection.recv_bytes()
        except EOFError:
            return
        _answer(connection, payload)


def _answer(connection: Connection, payload: bytes) -> None:
    """Say that the call is ready, then its result: (True, score) or (False, what went wrong)."""
    try:
        call = _load(payload)
    except Exception as error:
        # Whatever the user's code raises is reported, and the process goes on with the next score.
        call = functools.partial(_fail, error)
    connection.send((True, None))
    try:
        result: tuple[bool, object] = (True, float(call()))
    except Exception as error:
        result = (False, f"{type(error).__name__}: {error}")
    connection.send(result)


def _load(payload: bytes) -> Callable[[], Any]:
    """The call, once the user's modules that it may refer to are imported."""
    modules, pickled = pickle.loads(payload)
    for module in modules:
        load_rewards_module(module)
    function, arguments = pickle.loads(pickled)
    reward = getattr(function, "__self__", None)
    if isinstance(reward, BaseReward):
        reward.prepare()
    return functools.partial(function, *arguments)


def _fail(error: Exception) -> None:
    raise error


def _end_with_parent(parent: int) -> None:
    """A scorer that never ends must not outlive a trainer that was killed."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
