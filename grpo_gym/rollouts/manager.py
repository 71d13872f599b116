"""Rollouts for every rank: rank 0 runs the environment, all ranks get the same scored groups."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from grpo_gym.inference.backends import Backend
from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.rollouts.prompts import Row
from grpo_gym.rollouts.source import RolloutSource, StepRollouts
from grpo_gym.rollouts.types import RolloutGroup

T = TypeVar("T")


class RolloutManager:
    """Keeps the sampler's weights in step with the trainer's and hands out groups.

    Args:
        backend: where tokens come from; every rank has one.
        source: the orchestrator; on rank 0 only.
    """

    def __init__(self, backend: Backend, source: RolloutSource | None) -> None:
        self.backend = backend
        self.source = source
        self.version: int | None = None
        self.sync_seconds = 0.0
        self.is_open = True

    def sync(self, model: Any, version: int) -> None:
        """Sample with `model`'s weights from now on, as policy version `version`; called by every rank."""
        if version == self.version:
            self.sync_seconds = 0.0
            return
        start = time.perf_counter()
        self.backend.update(model, version)
        self.version = version
        self.sync_seconds = time.perf_counter() - start

    def next_step(self) -> StepRollouts:
        """The groups of the next optimizer step."""
        version = self.version or 0
        return self._on_rank_zero(lambda source: source.next_step(version))

    def evaluate(self, rows: Sequence[Row], num_samples: int, params: SamplingParams) -> list[RolloutGroup]:
        """Groups for fixed problems."""
        return self._on_rank_zero(lambda source: source.evaluate(rows, num_samples, params))

    def close(self) -> None:
        """Stop rollouts, then whatever the backend started."""
        self.is_open = False
        try:
            if self.source is not None:
                self.source.engine.close()
        finally:
            self.backend.close()

    def _on_rank_zero(self, call: Callable[[RolloutSource], T]) -> T:
        """Call on rank 0 and give every rank the result, or the error: no rank waits for one that failed."""
        if not torch.distributed.is_initialized():
            assert self.source is not None
            return call(self.source)
        outcome: list[Any] = [None, None]
        failure: Exception | None = None
        if self.source is not None:
            try:
                outcome[0] = call(self.source)
            except Exception as error:  # handed to the other ranks first, raised right below
                failure = error
                outcome[1] = f"{type(error).__name__}: {error}"
        torch.distributed.broadcast_object_list(outcome, src=0)
        if failure is not None:
            raise failure
        if outcome[1] is not None:
            raise RuntimeError(f"rollouts failed on rank 0: {outcome[1]}")
        return outcome[0]
