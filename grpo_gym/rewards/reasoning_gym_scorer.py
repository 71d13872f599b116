"""Reasoning Gym's scorers as a function that can be called in another process."""

from __future__ import annotations

import functools

from reasoning_gym_tasks.entries import decode_entry
from reasoning_gym_tasks.mixture import TaskMixture
from reasoning_gym_tasks.scoring import score_answer
from reasoning_gym_tasks.tasks import TaskSpec


def score_reasoning_gym(
    specs: tuple[TaskSpec, ...],
    seed: int,
    num_rows: int,
    index: int,
    task: str,
    answer: str | None,
    entry: str,
    question: str,
) -> float:
    """Reasoning Gym's score of a parsed answer; 0 when nothing was parsed.

    Args:
        specs: the tasks of the split; they, `seed` and `num_rows` make its `TaskMixture`.
        seed: see `specs`.
        num_rows: see `specs`.
        index: the row.
        task: its task.
        answer: what the parser found.
        entry: the row's encoded entry.
        question: its question.

    Raises:
        UnscorableError: the scorer is at fault.
    """
    if answer is None:
        return 0.0
    dataset = _mixture(_Key(specs, seed, num_rows)).scorer_at(index)
    return score_answer(dataset, task, answer, decode_entry(entry, question))


class _Key:
    """What makes a mixture, hashable although the tasks' settings are dicts."""

    def __init__(self, specs: tuple[TaskSpec, ...], seed: int, num_rows: int) -> None:
        self.arguments = (specs, seed, num_rows)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.arguments == other.arguments

    def __hash__(self) -> int:
        return hash(repr(self.arguments))


@functools.lru_cache(maxsize=16)
def _mixture(key: _Key) -> TaskMixture:
    return TaskMixture(*key.arguments)
