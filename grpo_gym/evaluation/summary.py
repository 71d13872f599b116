"""From scored problems to rates with 95% intervals: for all, by category and by task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from grpo_gym.evaluation.results import Problem, Sample
from grpo_gym.evaluation.statistics import (
    mean_interval,
    pass_at_k,
    powers_of_two,
    share_interval,
)

Summary = dict[str, Any]


def summarize_all(problems: Sequence[Problem]) -> Summary:
    """`all`, `by_category` and `by_task`: see `summarize`. Groups without a scored sample have no rates."""
    return {
        "all": summarize(problems),
        "by_category": _grouped(problems, lambda problem: problem.category),
        "by_task": _grouped(problems, lambda problem: problem.task),
    }


def summarize(problems: Sequence[Problem]) -> Summary:
    """The rates of some problems, each sample of equal weight.

    `accuracy`, `reward`, `format_rate` and each of `pass_at_k` are `{mean, low, high}` or None. Intervals of
    accuracy and format are Wilson's with the effective number of samples, those of reward and pass@k are
    bootstrapped over problems (`grpo_gym.evaluation.statistics`). `spread` is the share of problems whose
    samples differ in reward, `truncated` the share of samples cut off by `max_tokens`.
    """
    samples = [sample for problem in problems for sample in problem.valid_samples]
    counts: Summary = {
        "num_problems": len(problems),
        "num_samples": len(samples),
        "num_failed": sum(len(problem.samples) for problem in problems) - len(samples),
    }
    if not samples:
        return {**counts, "accuracy": None, "reward": None, "format_rate": None, "pass_at_k": {}}
    lengths = [sample.num_tokens for sample in samples if sample.num_tokens is not None]
    return {
        **counts,
        "accuracy": _share(problems, lambda sample: sample.correct),
        "reward": _reward(problems),
        "format_rate": _format_rate(problems, samples),
        "pass_at_k": _pass_at_k(problems),
        "spread": _spread(problems),
        "mean_length": sum(lengths) / len(lengths) if lengths else None,
        "truncated": sum(sample.truncated for sample in samples) / len(samples),
    }


def _grouped(problems: Sequence[Problem], key: Callable[[Problem], str | None]) -> dict[str, Summary]:
    groups: dict[str, list[Problem]] = {}
    for problem in problems:
        if (name := key(problem)) is not None:
            groups.setdefault(name, []).append(problem)
    return {name: summarize(members) for name, members in groups.items()}


def _share(problems: Sequence[Problem], counts: Callable[[Sample], bool]) -> dict[str, float]:
    hits = [sum(counts(sample) for sample in problem.valid_samples) for problem in problems]
    trials = [len(problem.valid_samples) for problem in problems]
    return dataclasses.asdict(share_interval(hits, trials))


def _format_rate(problems: Sequence[Problem], samples: Sequence[Sample]) -> dict[str, float] | None:
    """A format reward may give partial marks: only full marks are in format. None where there is none."""
    if any(sample.format is None for sample in samples):
        return None
    return _share(problems, lambda sample: (sample.format or 0.0) >= 1.0 - 1e-6)


def _reward(problems: Sequence[Problem]) -> dict[str, float]:
    totals = [sum(float(sample.reward or 0.0) for sample in p.valid_samples) for p in problems]
    return dataclasses.asdict(mean_interval(totals, [len(p.valid_samples) for p in problems]))


def _pass_at_k(problems: Sequence[Problem]) -> dict[str, dict[str, float]]:
    """By k, for all powers of two up to the number of samples; problems with fewer samples are left out."""
    outcomes = [(len(p.valid_samples), p.num_correct) for p in problems]
    estimates = {}
    for k in powers_of_two(max(n for n, _ in outcomes)):
        values = [pass_at_k(n, c, k) for n, c in outcomes if n >= k]
        estimates[str(k)] = dataclasses.asdict(mean_interval(values, [1] * len(values)))
    return estimates


def _spread(problems: Sequence[Problem]) -> float:
    sampled = [p for p in problems if p.valid_samples]
    return sum(len({s.reward for s in p.valid_samples}) > 1 for p in sampled) / len(sampled)
