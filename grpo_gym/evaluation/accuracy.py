"""When a sample counts as correct."""

from __future__ import annotations

from grpo_gym.rollouts.types import Rollout


def is_correct(rollout: Rollout, threshold: float) -> bool:
    """Whether the environment's first reward function (its correctness by convention) reaches `threshold`.

    A rollout without metrics is judged by its reward.
    """
    score = next(iter(rollout.metrics.values()), rollout.reward)
    return score is not None and score >= threshold
