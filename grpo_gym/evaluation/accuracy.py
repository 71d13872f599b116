"""Accuracy of a policy on fixed held-out problems."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from grpo_gym.rollouts.types import Rollout, RolloutGroup


def is_correct(rollout: Rollout, threshold: float) -> bool:
    """Whether the environment's first reward function (its correctness by convention) reaches `threshold`.

    A rollout without metrics is judged by its reward.
    """
    score = next(iter(rollout.metrics.values()), rollout.reward)
    return score is not None and score >= threshold


def summarize(groups: Sequence[RolloutGroup], threshold: float) -> dict[str, float]:
    """Mean reward, accuracy, and accuracy per task of evaluated groups; failed rollouts are left out."""
    by_task: dict[str, list[Rollout]] = defaultdict(list)
    for group in groups:
        by_task[group.task].extend(group.valid_rollouts)
    rollouts = [rollout for members in by_task.values() for rollout in members]
    if not rollouts:
        raise RuntimeError("the evaluation failed: not one rollout could be generated and scored.")
    summary = {
        "reward": _mean([float(r.reward or 0.0) for r in rollouts]),
        "accuracy": _mean([float(is_correct(r, threshold)) for r in rollouts]),
        "mean_length": _mean([float(len(r.completion_ids)) for r in rollouts]),
    }
    if len(by_task) > 1:
        for task, members in by_task.items():
            if members:
                summary[f"accuracy/{task}"] = _mean([float(is_correct(r, threshold)) for r in members])
    return summary


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
