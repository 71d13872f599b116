"""Scoring an answer: 0 for none, else Reasoning Gym's score; an error only when the scorer is at fault."""

from __future__ import annotations

import math

from reasoning_gym.dataset import ProceduralDataset

from reasoning_gym_tasks.entries import Entry
from reasoning_gym_tasks.guards import is_safe_answer


class UnscorableError(RuntimeError):
    """The scorer is at fault, not the answer: such a rollout must not count as wrong."""


def score_answer(dataset: ProceduralDataset, task: str, answer: str | None, entry: Entry) -> float:
    """Score a parsed answer.

    An answer that makes the scorer raise is wrong if the scorer copes with the task's own answer
    (prime_factorization raises on anything that is not an integer), and unscorable if it does not.

    Args:
        dataset: a Reasoning Gym dataset with the settings the entry was made with.
        task: the task's name.
        answer: what the parser found; None when it found nothing. None scores 0, and so does a blank
            answer, except where the task's own answer is blank (in `ab` everything can cancel out).
        entry: the entry the question came from.

    Returns:
        The score, usually in [0, 1].

    Raises:
        UnscorableError: the scorer fails on the task's own answer too, or returns no finite number.
    """
    if answer is None or _is_blank_mistake(answer, entry) or not is_safe_answer(task, answer):
        return 0.0
    try:
        score = _raw_score(dataset, task, answer, entry)
    except Exception as error:
        _check_scorer_works(dataset, task, entry, error)
        return 0.0
    if not math.isfinite(score):
        raise UnscorableError(f"the scorer of Reasoning Gym task '{task}' returned {score}.")
    return score


def _is_blank_mistake(answer: str, entry: Entry) -> bool:
    return not answer.strip() and bool(str(entry["answer"]).strip())


def _check_scorer_works(dataset: ProceduralDataset, task: str, entry: Entry, cause: Exception) -> None:
    try:
        _raw_score(dataset, task, entry["answer"], entry)
    except Exception as error:
        raise UnscorableError(
            f"the scorer of Reasoning Gym task '{task}' fails even on the task's own answer: "
            f"{type(error).__name__}: {error}"
        ) from cause


def _raw_score(dataset: ProceduralDataset, task: str, answer: str | None, entry: Entry) -> float:
    if task == "game_of_life_halting" and answer is not None:
        # Reasoning Gym 0.1.25 compares bool(text) with bool(text): "False" counts as True, any text scores 1.
        return float(answer.strip().lower() == str(entry["answer"]).lower())
    return float(dataset.score_answer(answer=answer, entry=entry))
