"""One grading process: JSON lines in, JSON lines out. Started by `math_reasoning.pool`."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
from typing import TextIO

from math_reasoning.grading import grade

_MEMORY_LIMIT = 4 * 2**30
_RECURSION_LIMIT = 3000


def main() -> None:
    """Answer `{"gold", "answer", "question", "deadline"}` with `{"correct"}` until the input ends."""
    # A reply must never be mixed with what a library prints: replies get a descriptor of their own.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT, _MEMORY_LIMIT))
    sys.setrecursionlimit(_RECURSION_LIMIT)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    # The default action ends the process even inside C code, should the parent be gone by then.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    grade("1", "2/2")  # the first comparison loads the grammar
    _send(replies, {"ready": True})
    for line in sys.stdin:
        job = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, 2 * job["deadline"])
        correct = grade(job["gold"], job["answer"], job["question"])
        signal.setitimer(signal.ITIMER_REAL, 0)
        _send(replies, {"correct": correct})


def _send(replies: TextIO, message: dict[str, bool]) -> None:
    replies.write(json.dumps(message) + "\n")
    replies.flush()


if __name__ == "__main__":
    main()
