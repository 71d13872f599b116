"""Sums, counts and extremes of one micro-batch, to be aggregated exactly over micro-batches and ranks."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor


class MetricSink(Protocol):
    """What collects statistics over micro-batches (`grpo_gym.training.metrics.Reduction`)."""

    def add_mean(self, name: str, total: float | Tensor, count: float | Tensor) -> None:
        """Add to a mean its part of the sum and of the count."""

    def add_min(self, name: str, value: float | Tensor) -> None:
        """Add a candidate for a minimum."""

    def add_max(self, name: str, value: float | Tensor) -> None:
        """Add a candidate for a maximum."""


@dataclass(slots=True)
class BatchStatistics:
    """Statistics of a micro-batch by metric name; all tensors are detached scalars.

    A mean is kept as (sum, count): a mean of means would depend on how a step is split.
    """

    means: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    minima: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)

    def add_mean(self, name: str, values: Tensor, mask: Tensor) -> None:
        """The mean of `values` [K] where `mask` [K] (bool) holds; NaN elsewhere does no harm."""
        self.means[name] = (values.detach()[mask].sum(), mask.sum())

    def add_extreme(self, name: str, values: Tensor, largest: bool) -> None:
        """The largest or smallest of `values` [K]; nothing when K is 0."""
        if values.numel() == 0:
            return
        extremes = self.maxima if largest else self.minima
        extremes[name] = values.detach().max() if largest else values.detach().min()

    def add_to(self, metrics: MetricSink) -> None:
        """Hand everything to the collector of the step."""
        for name, (total, count) in self.means.items():
            metrics.add_mean(name, total, count)
        for name, value in self.minima.items():
            metrics.add_min(name, value)
        for name, value in self.maxima.items():
            metrics.add_max(name, value)


def sequence_mean(values: Tensor, mask: Tensor, sequence_index: Tensor, num_sequences: int) -> Tensor:
    """Mean of `values` over the masked-in tokens of each sequence; 0 for a sequence without any.

    Args:
        values: [N] float.
        mask: [N] bool.
        sequence_index: [N] long, in 0..S-1.
        num_sequences: S.

    Returns:
        [S], differentiable.
    """
    masked = torch.where(mask, values, 0.0)
    totals = values.new_zeros(num_sequences).index_add(0, sequence_index, masked)
    return totals / sequence_lengths(mask, sequence_index, num_sequences).clamp(min=1)


def sequence_lengths(mask: Tensor, sequence_index: Tensor, num_sequences: int) -> Tensor:
    """How many masked-in tokens each sequence has: [S] long."""
    return torch.bincount(sequence_index[mask], minlength=num_sequences)
