"""The small typed objects that travel from the environment to the loss."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

FinishReason = Literal["stop", "length"]
NO_SPREAD = 1e-8
"""Rewards of a group that differ by less are equal (the tolerance of TRL's `frac_reward_zero_std`)."""


@dataclass(slots=True)
class Branch:
    """Turns that did not go on from the ones before: the environment rewrote the history.

    The fields are those of `Rollout`; the reward is that of the rollout it belongs to.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    sampler_logprobs: list[float]
    loss_mask: list[int]


@dataclass(slots=True)
class Rollout:
    """One scored sample of the policy, as tokens: what was sampled is what is trained on.

    `completion_ids`, `sampler_logprobs` and `loss_mask` have one entry per completion token.
    `loss_mask` is 1 where the policy sampled the token and 0 where the environment wrote it
    (tool results, later user turns). `reward` is None when the rollout could not be generated
    or scored; `error` then says why, and the rollout never enters an advantage. `failed_rewards` names the
    reward functions that could not score it. `images` are the data
    URIs of the pictures in the prompt and in environment turns, in order; the ids hold their expanded placeholders.
    """

    prompt_ids: list[int]
    completion_ids: list[int]
    sampler_logprobs: list[float]
    loss_mask: list[int]
    reward: float | None
    metrics: dict[str, float] = field(default_factory=dict)
    policy_version: int = 0
    finish_reason: FinishReason | None = None
    error: str | None = None
    completion_text: str = ""
    images: list[str] = field(default_factory=list)
    branches: list[Branch] = field(default_factory=list)
    failed_rewards: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # From a checkpoint they come as plain mappings.
        self.branches = [Branch(**b) if isinstance(b, dict) else b for b in self.branches]

    @property
    def num_sampled(self) -> int:
        """Tokens the policy sampled, over all turns and branches."""
        return sum(self.loss_mask) + sum(sum(branch.loss_mask) for branch in self.branches)

    @property
    def is_valid(self) -> bool:
        """Whether the rollout has a reward and tokens to train on."""
        return self.reward is not None and len(self.completion_ids) > 0

    @property
    def is_truncated(self) -> bool:
        """Whether the completion was cut by a length limit."""
        return self.finish_reason == "length"


@dataclass(slots=True)
class RolloutGroup:
    """The G rollouts of one prompt."""

    example_id: int
    task: str
    prompt_text: str
    answer: str
    rollouts: list[Rollout]

    @property
    def valid_rollouts(self) -> list[Rollout]:
        """The rollouts that were generated and scored."""
        return [rollout for rollout in self.rollouts if rollout.is_valid]

    @property
    def has_spread(self) -> bool:
        """Whether the rewards differ by more than rounding, so that the group has something to teach."""
        rewards = [
            rollout.reward for rollout in self.rollouts if rollout.is_valid and rollout.reward is not None
        ]
        return bool(rewards) and max(rewards) - min(rewards) > NO_SPREAD

    def to_record(self) -> dict[str, Any]:
        """A plain dict for logs."""
        return {
            "example_id": self.example_id,
            "task": self.task,
            "prompt": self.prompt_text,
            "answer": self.answer,
            "completions": [r.completion_text for r in self.rollouts],
            "rewards": [r.reward for r in self.rollouts],
        }
