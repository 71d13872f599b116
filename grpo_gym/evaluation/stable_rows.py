"""Held-out rows that are the same in every process.

A handful of Reasoning Gym tasks iterate over sets of strings while they generate, so their problems depend
on PYTHONHASHSEED, which Python draws anew for every process. Problems that are to be compared between two
evaluations must not: where such a task takes part, its entries are made in a child process with a fixed one.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import verifiers as vf

from grpo_gym.rollouts.prompts import EnvironmentRows, Row, select_eval_rows

HASH_DEPENDENT_TASKS = frozenset(
    {"isomorphic_strings", "knight_swap", "polynomial_multiplication", "ransom_note", "word_ladder"}
)
_HASH_SEED = "0"
_TIMEOUT_SECONDS = 1800


def held_out_rows(env: vf.Environment, count: int) -> list[Row]:
    """The first `count` rows of the environment's eval split.

    Of this project's Reasoning Gym environment they depend on its settings alone. Other environments make
    their rows themselves, in this process.

    Raises:
        ValueError: the split is empty.
        RuntimeError: the child process failed.
    """
    mixture: Any = getattr(env, "rg_eval_dataset", None)
    indices = hash_dependent_indices(mixture, count) if hasattr(mixture, "spec_at") else []
    if indices and os.environ.get("PYTHONHASHSEED") != _HASH_SEED:
        for index, entry in zip(indices, _entries_of_child(mixture, indices), strict=True):
            mixture.put(index, entry)
    return select_eval_rows(EnvironmentRows(env, "eval"), count)


def hash_dependent_indices(mixture: Any, count: int) -> list[int]:
    """Which of the first `count` entries of a `TaskMixture` other processes would make differently."""
    if not HASH_DEPENDENT_TASKS & {spec.name for spec in mixture.specs}:
        return []
    return [i for i in range(min(count, len(mixture))) if mixture.spec_at(i).name in HASH_DEPENDENT_TASKS]


def _entries_of_child(mixture: Any, indices: Sequence[int]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, "-m", __name__],
        input=pickle.dumps((mixture.specs, mixture.seed, len(mixture), list(indices))),
        env={**os.environ, "PYTHONHASHSEED": _HASH_SEED},
        capture_output=True,
        timeout=_TIMEOUT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise RuntimeError(f"held-out problems could not be made in a child process: {' '.join(last)}")
    return pickle.loads(done.stdout)


def main() -> None:
    """The child: a pickled mixture's settings on stdin, the pickled entries on stdout."""
    from reasoning_gym_tasks.mixture import TaskMixture

    # Whatever a task prints while it generates must not mix with the answer.
    output, sys.stdout = sys.stdout.buffer, sys.stderr
    specs, seed, num_rows, indices = pickle.load(sys.stdin.buffer)
    mixture = TaskMixture(specs, seed, num_rows)
    output.write(pickle.dumps([mixture[index] for index in indices]))
    output.flush()


if __name__ == "__main__":
    main()
