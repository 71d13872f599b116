"""The orchestrator on rank 0: which groups make the next optimizer step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.rollouts.engine import RolloutEngine
from grpo_gym.rollouts.prompts import PromptStream, Row
from grpo_gym.rollouts.token_client import mix_seed
from grpo_gym.rollouts.types import RolloutGroup


@dataclass(slots=True)
class StepRollouts:
    """The groups of one optimizer step and what it took to get them."""

    groups: list[RolloutGroup]
    seconds: float
    num_prompts: int

    @property
    def num_completion_tokens(self) -> int:
        """Sampled tokens of the step's rollouts."""
        return sum(sum(r.loss_mask) for group in self.groups for r in group.rollouts)


class RolloutSource:
    """Makes the groups of each step from a stream of prompts.

    Args:
        engine: runs the rollouts.
        stream: prompts in order.
        prompts_per_step: groups of one optimizer step.
        num_generations: completions per prompt.
        params: how to sample.
        seed: rollouts of ticket t are seeded with `mix_seed(seed, t)`; None leaves them unseeded.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        stream: PromptStream,
        prompts_per_step: int,
        num_generations: int,
        params: SamplingParams,
        seed: int | None,
    ) -> None:
        self.engine = engine
        self.stream = stream
        self.prompts_per_step = prompts_per_step
        self.num_generations = num_generations
        self.params = params
        self.seed = seed

    def next_step(self) -> StepRollouts:
        """Generate the groups of the next optimizer step with the current policy.

        Raises:
            RuntimeError: not one rollout of the step could be generated and scored.
        """
        start = time.perf_counter()
        drawn = [next(self.stream) for _ in range(self.prompts_per_step)]
        groups = self.engine.generate(
            [row for _, row in drawn], self.num_generations, self.params, [self._seed(t) for t, _ in drawn]
        )
        check_some_rollout_is_valid(groups)
        return StepRollouts(groups, time.perf_counter() - start, len(drawn))

    def evaluate(self, rows: Sequence[Row], num_samples: int, params: SamplingParams) -> list[RolloutGroup]:
        """Sample fixed problems with fixed seeds: two evaluations differ by the policy alone."""
        # Tickets of training start at 0, so these negative numbers never meet them.
        seeds = [self._seed(-1 - index) for index in range(len(rows))]
        return self.engine.generate(rows, num_samples, params, seeds)

    def _seed(self, ticket: int) -> int | None:
        return None if self.seed is None else mix_seed(self.seed, ticket)


def check_some_rollout_is_valid(groups: Sequence[RolloutGroup]) -> None:
    """Raise when a whole step failed: training would silently stand still."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if any(rollout.is_valid for rollout in rollouts):
        return
    reason = rollouts[0].error if rollouts else "no rollouts"
    raise RuntimeError(f"all {len(rollouts)} rollouts of the step failed, the first because: {reason}")
