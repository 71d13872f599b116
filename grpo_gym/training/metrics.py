"""Collecting metrics over micro-batches, ranks and optimizer steps, under TRL's names."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor

from grpo_gym.rollouts.types import Rollout, RolloutGroup

_NOT_IN_NAMES = re.compile(r"[^\w.-]+")
"""What is replaced in names of metrics; a slash would open a level of its own."""


class MetricsBuffer:
    """Means over the optimizer steps between two logs."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = defaultdict(list)

    def add(self, values: Mapping[str, float]) -> None:
        """Add one step's values; NaN says "not measured" and is left out."""
        for name, value in values.items():
            if value == value:
                self._values[name].append(float(value))

    def drain(self) -> dict[str, float]:
        """The mean of each metric since the last call."""
        means = {name: sum(values) / len(values) for name, values in self._values.items() if values}
        self._values.clear()
        return means


class Reduction:
    """Sums, counts, minima and maxima of one optimizer step, reduced exactly over micro-batches and ranks."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}
        self._minima: dict[str, float] = {}
        self._maxima: dict[str, float] = {}

    def add_mean(self, name: str, total: float | Tensor, count: float | Tensor) -> None:
        """A mean given as its sum and count."""
        entry = self._sums.setdefault(name, [0.0, 0.0])
        entry[0] += float(total)
        entry[1] += float(count)

    def add_min(self, name: str, value: float | Tensor) -> None:
        """A minimum."""
        self._minima[name] = min(self._minima.get(name, float("inf")), float(value))

    def add_max(self, name: str, value: float | Tensor) -> None:
        """A maximum."""
        self._maxima[name] = max(self._maxima.get(name, float("-inf")), float(value))

    def reduce(self, accelerator: Accelerator) -> dict[str, float]:
        """The step's metrics over all ranks; every rank must call it.

        Ranks may have seen different metrics (one may have had nothing to train), so the names are
        exchanged with the values.
        """
        states = [(self._sums, self._minima, self._maxima)]
        if accelerator.num_processes > 1:
            states = _gather_objects(states[0])
        return _merge(states)


def _gather_objects(state: object) -> list:
    gathered: list = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, state)
    return gathered


def _merge(states: Sequence[tuple[dict, dict, dict]]) -> dict[str, float]:
    totals: dict[str, list[float]] = {}
    result: dict[str, float] = {}
    for sums, minima, maxima in states:
        for name, (total, count) in sums.items():
            entry = totals.setdefault(name, [0.0, 0.0])
            entry[0] += total
            entry[1] += count
        for name, value in minima.items():
            result[name] = min(result.get(name, float("inf")), value)
        for name, value in maxima.items():
            result[name] = max(result.get(name, float("-inf")), value)
    result |= {name: total / count for name, (total, count) in totals.items() if count}
    return {name: value for name, value in result.items() if abs(value) != float("inf")}


def rollout_metrics(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Rewards and completion lengths of one step's rollouts, under TRL's names."""
    rollouts = [r for group in groups for r in group.rollouts]
    valid = [r for r in rollouts if r.is_valid]
    metrics = _error_metrics(rollouts)
    if not valid:
        return metrics
    metrics |= _reward_metrics(valid, groups)
    metrics |= _length_metrics(valid)
    for name in valid[0].metrics:
        values = torch.tensor([r.metrics[name] for r in valid if name in r.metrics], dtype=torch.float64)
        metrics[f"rewards/{name}/mean"] = float(values.mean())
        metrics[f"rewards/{name}/std"] = float(values.std()) if len(values) > 1 else 0.0
    return metrics


def _reward_metrics(rollouts: Sequence[Rollout], groups: Sequence[RolloutGroup]) -> dict[str, float]:
    rewards = torch.tensor([r.reward for r in rollouts], dtype=torch.float64)
    no_spread = sum(not group.has_spread for group in groups) / len(groups)
    return {
        "reward": float(rewards.mean()),
        "reward_std": float(rewards.std()) if len(rewards) > 1 else 0.0,
        "frac_reward_zero_std": no_spread,
    }


def _length_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    lengths = torch.tensor([r.num_sampled for r in rollouts], dtype=torch.float64)
    ended = lengths[torch.tensor([not r.is_truncated for r in rollouts])]
    metrics = {
        "completions/mean_length": float(lengths.mean()),
        "completions/min_length": float(lengths.min()),
        "completions/max_length": float(lengths.max()),
        "completions/clipped_ratio": 1.0 - len(ended) / len(lengths),
    }
    if len(ended):
        metrics["completions/mean_terminated_length"] = float(ended.mean())
    return metrics


def _error_metrics(rollouts: Sequence[Rollout]) -> dict[str, float]:
    """How many rollouts were left out: all, by kind of failure, and by the reward that could not score them.

    A completion that two rewards could not score counts once in its kind, and once for each of the two.
    """
    failed = [rollout for rollout in rollouts if rollout.error]
    counts = Counter(_failure_kind(rollout) for rollout in failed)
    counts.update(
        f"{_failure_kind(rollout)}/{_NOT_IN_NAMES.sub('_', name)}"
        for rollout in failed
        for name in rollout.failed_rewards
    )
    metrics = {f"rollouts/failed/{name}": float(count) for name, count in counts.items()}
    return {"rollouts/failed": float(len(failed)), **metrics}


def _failure_kind(rollout: Rollout) -> str:
    """The error up to its details: "scoring_failed" of "scoring failed: correct: KeyError: 'x'"."""
    kind = re.split(r"\s*[:(]", rollout.error or "", maxsplit=1)[0]
    return _NOT_IN_NAMES.sub("_", kind)
