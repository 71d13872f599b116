"""Two evaluations of the same problems, compared problem by problem."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grpo_gym.evaluation.results import Problem, ResultsFile
from grpo_gym.evaluation.statistics import Difference, paired_difference

Key = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Comparison:
    """A and B on some shared problems; every problem has the same weight, whatever its number of samples."""

    name: str
    num_problems: int
    accuracy_a: float
    accuracy_b: float
    accuracy: Difference
    reward_a: float
    reward_b: float
    reward: Difference


@dataclass(frozen=True, slots=True)
class ComparedResults:
    """The comparison in all and by task, and how many problems could not be paired."""

    total: Comparison
    by_task: list[Comparison]
    only_in_a: int
    only_in_b: int
    unscored: int


def compare_results(a: ResultsFile, b: ResultsFile) -> ComparedResults:
    """Compare two results files.

    Raises:
        ValueError: their problems do not match.
    """
    return compare_problems(a.problems, b.problems, str(a.path), str(b.path))


def compare_problems(
    a: Sequence[Problem], b: Sequence[Problem], name_a: str = "A", name_b: str = "B"
) -> ComparedResults:
    """Paired differences over the problems that both have.

    Raises:
        ValueError: no problem is shared, or one of them reads differently in A and B.
    """
    in_a, in_b = _by_key(a), _by_key(b)
    shared = [key for key in in_a if key in in_b]
    _check_shared(in_a, in_b, shared, name_a, name_b)
    pairs = [(in_a[key], in_b[key]) for key in shared]
    scored = [(p, q) for p, q in pairs if p.valid_samples and q.valid_samples]
    if not scored:
        raise ValueError(f"no problem was scored in both {name_a} and {name_b}: there is nothing to compare.")
    tasks = {p.task: None for p, _ in scored}
    return ComparedResults(
        total=_compare("all", scored),
        by_task=[_compare(task, [pair for pair in scored if pair[0].task == task]) for task in tasks],
        only_in_a=len(in_a) - len(shared),
        only_in_b=len(in_b) - len(shared),
        unscored=len(pairs) - len(scored),
    )


def _by_key(problems: Sequence[Problem]) -> dict[Key, Problem]:
    return {(problem.task, problem.example_id): problem for problem in problems}


def _check_shared(
    a: dict[Key, Problem], b: dict[Key, Problem], shared: Sequence[Key], name_a: str, name_b: str
) -> None:
    if not shared:
        raise ValueError(
            f"the problems do not match: {name_a} has {_tasks(a)}, {name_b} has {_tasks(b)}; "
            "compare evaluations of the same datasets."
        )
    different = [key for key in shared if a[key].id != b[key].id]
    if different:
        task, number = different[0]
        raise ValueError(
            f"the problems do not match: {len(different)} of {len(shared)} differ, the first is number {number} "
            f"of {task}; evaluate both with the same seed, params and system prompt."
        )


def _tasks(problems: dict[Key, Problem]) -> str:
    names = sorted({task for task, _ in problems})
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _compare(name: str, pairs: Sequence[tuple[Problem, Problem]]) -> Comparison:
    accuracy = [(_accuracy(p), _accuracy(q)) for p, q in pairs]
    reward = [(_reward(p), _reward(q)) for p, q in pairs]
    return Comparison(
        name=name,
        num_problems=len(pairs),
        accuracy_a=_mean([x for x, _ in accuracy]),
        accuracy_b=_mean([y for _, y in accuracy]),
        accuracy=paired_difference([y - x for x, y in accuracy]),
        reward_a=_mean([x for x, _ in reward]),
        reward_b=_mean([y for _, y in reward]),
        reward=paired_difference([y - x for x, y in reward]),
    )


def _accuracy(problem: Problem) -> float:
    return problem.num_correct / len(problem.valid_samples)


def _reward(problem: Problem) -> float:
    return _mean([float(sample.reward or 0.0) for sample in problem.valid_samples])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
