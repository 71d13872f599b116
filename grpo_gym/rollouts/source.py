"""The orchestrator on rank 0: which groups make the next optimizer step."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.rollouts.engine import RolloutEngine
from grpo_gym.rollouts.prompts import PromptStream, Row
from grpo_gym.rollouts.token_client import mix_seed
from grpo_gym.rollouts.types import RolloutGroup


@dataclass(slots=True)
class StepRollouts:
    """The groups of one optimizer step and what it took to get them.

    Attributes:
        groups: what is trained on.
        seconds: how long the trainer waited for them.
        num_generated: groups generated or begun, with those that were then left out.
        num_uninformative: groups whose rewards are all equal, among those that were not stale.
        num_stale: groups dropped or stopped because the policy had moved on too far.
        spread: share of the generated groups of each task whose rewards differ.
        prompt_epochs: passes over the prompts so far; refills draw more prompts than the steps of an epoch count.
        ages: how many steps old the policy of each valid rollout was when the step got it.
    """

    groups: list[RolloutGroup]
    seconds: float
    num_generated: int
    num_uninformative: int = 0
    num_stale: int = 0
    spread: dict[str, float] = field(default_factory=dict)
    prompt_epochs: float = 0.0
    ages: list[float] = field(default_factory=list)

    @property
    def num_completion_tokens(self) -> int:
        """Sampled tokens of the step's rollouts."""
        return sum(r.num_sampled for group in self.groups for r in group.rollouts)

    def metrics(self) -> dict[str, float]:
        """What was left out on the way to the step."""
        judged = max(1, self.num_generated - self.num_stale)
        return {
            "informative_fraction": 1.0 - self.num_uninformative / judged,
            "rollouts/groups_generated": float(self.num_generated),
            "rollouts/groups_stale": float(self.num_stale),
            **{f"spread/{task}": share for task, share in self.spread.items()},
            "prompts/epochs": self.prompt_epochs,
            **self._age_metrics(),
        }

    def _age_metrics(self) -> dict[str, float]:
        if not self.ages:  # from a checkpoint
            return {}
        mean = sum(self.ages) / len(self.ages)
        return {"rollouts/staleness/mean": mean, "rollouts/staleness/max": max(self.ages)}


@dataclass(frozen=True, slots=True)
class SourceSettings:
    """What a step is made of.

    Attributes:
        prompts_per_step: groups of one optimizer step.
        num_generations: completions per prompt.
        params: how to sample.
        seed: rollouts of ticket t are seeded with `mix_seed(seed, t)`; None leaves them unseeded.
        filter_zero_variance: leave out groups whose rewards are all equal and draw fresh prompts instead.
        max_refill: at most `max_refill * prompts_per_step` fresh prompts per step; then the step is filled
            with uninformative groups, so that it always ends and always has the same size.
        max_staleness: how many steps old a group's policy may be; 0 is strictly on-policy.
        versions_per_step: by how much the policy version rises from one step to the next.
    """

    prompts_per_step: int
    num_generations: int
    params: SamplingParams
    seed: int | None
    filter_zero_variance: bool = False
    max_refill: float = 2.0
    max_staleness: int = 0
    versions_per_step: int = 1

    @property
    def max_age(self) -> int:
        """`max_staleness` in policy versions."""
        return self.max_staleness * self.versions_per_step

    @property
    def max_generated(self) -> int:
        """Groups that may be generated for one step."""
        extra = int(self.max_refill * self.prompts_per_step) if self.filter_zero_variance else 0
        return self.prompts_per_step + extra


class RolloutSource:
    """Strictly on-policy: the groups of a step are generated when the step asks for them."""

    def __init__(self, engine: RolloutEngine, stream: PromptStream, settings: SourceSettings) -> None:
        self.engine = engine
        self.stream = stream
        self.settings = settings

    def next_step(self, version: int) -> StepRollouts:
        """Generate the groups of the next optimizer step with the current policy.

        Args:
            version: the policy version the trainer is at.

        Raises:
            RuntimeError: not one rollout of the step could be generated and scored.
        """
        start = time.perf_counter()
        wanted, limit = self.settings.prompts_per_step, self.settings.max_generated
        kept: list[RolloutGroup] = []
        spare: list[RolloutGroup] = []
        while len(kept) < wanted and len(kept) + len(spare) < limit:
            count = min(wanted - len(kept), limit - len(kept) - len(spare))
            for group in self._generate(count):
                informative = group.has_spread or not self.settings.filter_zero_variance
                (kept if informative else spare).append(group)
        groups = kept + spare[: wanted - len(kept)]
        generated = kept + spare
        check_some_rollout_is_valid(groups)
        return StepRollouts(
            groups,
            time.perf_counter() - start,
            num_generated=len(generated),
            num_uninformative=sum(not group.has_spread for group in generated),
            spread=spread_by_task(generated),
            prompt_epochs=self.stream.epochs,
            ages=policy_ages(groups, version, self.settings.versions_per_step),
        )

    def evaluate(self, rows: Sequence[Row], num_samples: int, params: SamplingParams) -> list[RolloutGroup]:
        """Sample fixed problems with fixed seeds: two evaluations differ by the policy alone."""
        # Tickets of training start at 0, so these negative numbers never meet them.
        seeds = [self._seed(-1 - index) for index in range(len(rows))]
        return self.engine.generate(rows, num_samples, params, seeds)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to go on with the very next prompt."""
        return dict(self.stream.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.stream.load_state_dict(state)

    def _generate(self, count: int) -> list[RolloutGroup]:
        drawn = [next(self.stream) for _ in range(count)]
        return self.engine.generate(
            [row for _, row in drawn],
            self.settings.num_generations,
            self.settings.params,
            [self._seed(ticket) for ticket, _ in drawn],
        )

    def _seed(self, ticket: int) -> int | None:
        return None if self.settings.seed is None else mix_seed(self.settings.seed, ticket)


def spread_by_task(groups: Sequence[RolloutGroup]) -> dict[str, float]:
    """Share of the prompts of each task whose rollouts differ in reward: where there is something to learn."""
    by_task: dict[str, list[bool]] = {}
    for group in groups:
        by_task.setdefault(group.task, []).append(group.has_spread)
    return {task: sum(spreads) / len(spreads) for task, spreads in sorted(by_task.items())}


def policy_ages(groups: Sequence[RolloutGroup], version: int, versions_per_step: int) -> list[float]:
    """How many steps old the policy of each valid rollout is at policy version `version`."""
    return [(version - r.policy_version) / versions_per_step for g in groups for r in g.valid_rollouts]


def check_some_rollout_is_valid(groups: Sequence[RolloutGroup]) -> None:
    """Raise when a whole step failed: training would silently stand still."""
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    if any(rollout.is_valid for rollout in rollouts):
        return
    reason = rollouts[0].error if rollouts else "no rollouts"
    raise RuntimeError(f"all {len(rollouts)} rollouts of the step failed, the first because: {reason}")
