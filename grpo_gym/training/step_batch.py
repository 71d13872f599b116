"""The rollouts of one optimizer step with everything the loss needs to know about each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpo_gym.rollouts.types import Rollout, RolloutGroup
from grpo_gym.training.advantages import group_advantages
from grpo_gym.training.losses import token_weights
from grpo_gym.training.packing import PackInput


@dataclass(slots=True)
class StepBatch:
    """B rollouts of one optimizer step, on the CPU, the same on every rank.

    A rollout whose environment rewrote the history counts as several here, one for each branch, with the advantage
    and the token weight of the whole.

    Attributes:
        rollouts: the rollouts, group after group.
        group_index: [B] long, the group of each rollout.
        rewards: [B] float64, NaN where a rollout could not be generated or scored.
        advantages: [B] float64.
        lengths: [B] long, tokens of each rollout that are trained on.
        weights: [B] float64, weight of each trained token of a rollout in the loss of the whole step.
    """

    rollouts: list[Rollout]
    group_index: Tensor
    rewards: Tensor
    advantages: Tensor
    lengths: Tensor
    weights: Tensor

    def trainable(self, keep_all: bool) -> list[int]:
        """Rollouts that can move the weights: with trained tokens and an advantage (any, when `keep_all`)."""
        useful = (self.lengths > 0) & self.rewards.isfinite()
        if not keep_all:
            useful &= self.advantages != 0
        return useful.nonzero().flatten().tolist()

    def pack_inputs(self, rollout_ids: Sequence[int]) -> list[PackInput]:
        """The rollouts as groups that share a prompt."""
        # An environment may give each rollout of a group a prompt of its own.
        by_group: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for rollout_id in rollout_ids:
            prompt = tuple(self.rollouts[rollout_id].prompt_ids)
            by_group.setdefault((int(self.group_index[rollout_id]), prompt), []).append(rollout_id)
        return [
            PackInput(
                prompt_ids=self.rollouts[ids[0]].prompt_ids,
                completions=[(i, self.rollouts[i].completion_ids) for i in ids],
            )
            for ids in by_group.values()
        ]


def make_step_batch(
    groups: Sequence[RolloutGroup],
    loss_type: str,
    scale_rewards: str,
    max_completion_length: int,
    mask_truncated_completions: bool,
    per_device_train_batch_size: int,
) -> StepBatch:
    """Flatten groups and compute advantages and loss weights over the whole step.

    `per_device_train_batch_size` is the batch over which bnpo takes its token means, whatever the packing.
    """
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    group_index = torch.tensor(
        [i for i, group in enumerate(groups) for _ in group.rollouts], dtype=torch.long
    )
    rewards = torch.tensor(
        [float("nan") if not r.is_valid else r.reward for r in rollouts], dtype=torch.float64
    )
    lengths = torch.tensor(
        [trained_length(r, mask_truncated_completions) for r in rollouts], dtype=torch.long
    )
    batch = StepBatch(
        rollouts=rollouts,
        group_index=group_index,
        rewards=rewards,
        advantages=group_advantages(rewards, group_index, scale_rewards),
        lengths=lengths,
        weights=token_weights(
            loss_type,
            lengths,
            max_completion_length,
            valid=rewards.isfinite(),
            batch_index=torch.arange(len(rollouts)) // per_device_train_batch_size,
        ),
    )
    return _with_branches(batch, mask_truncated_completions) if any(r.branches for r in rollouts) else batch


def trained_length(rollout: Rollout, mask_truncated_completions: bool) -> int:
    """Tokens of a rollout that enter the loss, over all of its branches."""
    if not rollout.is_valid or (mask_truncated_completions and rollout.is_truncated):
        return 0
    return rollout.num_sampled


def _with_branches(batch: StepBatch, mask_truncated_completions: bool) -> StepBatch:
    """The batch with every branch in a place of its own behind its rollout."""
    places = [(i, sequence) for i, r in enumerate(batch.rollouts) for sequence in _sequences(r)]
    index = torch.tensor([i for i, _ in places], dtype=torch.long)
    sequences = [sequence for _, sequence in places]
    return StepBatch(
        rollouts=sequences,
        group_index=batch.group_index[index],
        rewards=batch.rewards[index],
        advantages=batch.advantages[index],
        lengths=torch.tensor([trained_length(s, mask_truncated_completions) for s in sequences]),
        weights=batch.weights[index],
    )


def _sequences(rollout: Rollout) -> list[Rollout]:
    """The rollout without its branches, then each branch as a rollout."""
    own = dataclasses.replace(rollout, branches=[])
    fields = ("prompt_ids", "completion_ids", "sampler_logprobs", "loss_mask")
    return [
        own,
        *(dataclasses.replace(own, **{name: getattr(b, name) for name in fields}) for b in rollout.branches),
    ]
