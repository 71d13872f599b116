"""The program a scoring process runs: `python -m grpo_gym.rewards.worker FD SYS_PATH...`."""

from __future__ import annotations

import os
import pickle
import sys
import threading
import time
from multiprocessing.connection import Connection


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
    try:
        function, arguments = _load(payload)
        begun = True
        connection.send((True, None))
        result: tuple[bool, object] = (True, float(function(*arguments)))
    except Exception as error:
        # Whatever a reward raises is reported, and the process goes on with the next score.
        if "begun" not in locals():
            connection.send((True, None))
        result = (False, f"{type(error).__name__}: {error}")
    connection.send(result)


def _load(payload: bytes) -> tuple:
    """The call, once the user's modules it may refer to are imported."""
    from grpo_gym.rewards.registry import load_rewards_module

    modules, rest = _Unpickled(payload).parts()
    for module in modules:
        load_rewards_module(module)
    return pickle.loads(rest)


if __name__ == "__main__":
    main()
