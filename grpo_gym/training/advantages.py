"""Group-relative advantages: how much better a rollout did than the others of its prompt.

DeepSeekMath (Shao et al. 2024, arXiv:2402.03300), section 4.1.2: A_i = (r_i - mean(r)) / std(r).
Dividing by the std gives the easiest and the hardest prompts more weight; Dr. GRPO (Liu et al. 2025,
arXiv:2503.20783) leaves it out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from grpo_gym.rollouts.types import NO_SPREAD
from grpo_gym.training.choices import check_choice

ADVANTAGE_SCALES = ("group", "batch", "none")


def group_advantages(
    rewards: Tensor, group_index: Tensor, scale: str = "group", epsilon: float = 1e-4
) -> Tensor:
    """Reward minus the group's mean, divided by a standard deviation (ddof 1) + `epsilon`.

    Args:
        rewards: [B] float32 or float64; NaN for a rollout that could not be generated or scored: it has
            advantage 0 and enters no mean and no deviation.
        group_index: [B] long, which prompt a rollout belongs to; any numbers, in any order.
        scale: "group": the group's deviation; "batch": that of all rewards; "none": no division.
        epsilon: keeps a small deviation from blowing advantages up; 1e-4 as in TRL.

    Returns:
        [B], dtype of `rewards`. Exactly 0 for a group whose rewards are all equal, or with only one of them.

    Raises:
        ValueError: unknown `scale`, infinite rewards, or shapes that differ.
    """
    _check(rewards, group_index)
    check_choice("scale_rewards", scale, ADVANTAGE_SCALES)
    valid, group, count = _groups(rewards, group_index)
    mean = _group_sums(rewards.nan_to_num(), group) / count.clamp(min=1)
    informative = valid & _has_spread(rewards, group)[group]
    centred = torch.where(informative, rewards - mean[group], 0.0)
    if scale == "none":
        return centred
    if scale == "batch":
        return centred / (_std(rewards[valid]) + epsilon)
    # Deviations of the centred rewards: the group's mean is 0 by construction.
    std = (_group_sums(centred.square(), group) / (count - 1).clamp(min=1)).sqrt()
    return centred / (std[group] + epsilon)


def group_stats(rewards: Tensor, group_index: Tensor) -> dict[str, float]:
    """What the rewards of a step look like, under TRL's names; arguments as in `group_advantages`.

    Returns:
        `reward` and `reward_std` (ddof 1) over all scored rollouts, and `frac_reward_zero_std`, the share
        of groups (of those with a scored rollout) whose rewards are all equal, so that they teach nothing.
        Empty when nothing was scored.
    """
    _check(rewards, group_index)
    valid, group, count = _groups(rewards, group_index)
    if not valid.any():
        return {}
    no_spread = ~_has_spread(rewards, group)[count > 0]
    return {
        "reward": float(rewards[valid].mean()),
        "reward_std": float(_std(rewards[valid])),
        "frac_reward_zero_std": float(no_spread.double().mean()),
    }


def _has_spread(rewards: Tensor, group: Tensor) -> Tensor:
    """Which groups 0..G-1 have rewards that differ: [G] bool."""
    empty = rewards.new_zeros(int(group.max()) + 1 if group.numel() else 0)
    low = (empty + torch.inf).scatter_reduce(0, group, rewards.nan_to_num(torch.inf), "amin")
    high = (empty - torch.inf).scatter_reduce(0, group, rewards.nan_to_num(-torch.inf), "amax")
    return high - low > NO_SPREAD


def _groups(rewards: Tensor, group_index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Which rollouts count [B], their groups numbered 0..G-1 [B], and how many count in each group [G]."""
    valid = ~rewards.isnan()
    _, group = torch.unique(group_index, return_inverse=True)
    return valid, group, _group_sums(valid.to(rewards.dtype), group)


def _group_sums(values: Tensor, group: Tensor) -> Tensor:
    num_groups = int(group.max()) + 1 if group.numel() else 0
    return values.new_zeros(num_groups).index_add(0, group, values)


def _std(values: Tensor) -> Tensor:
    return values.std() if values.numel() > 1 else values.new_zeros(())


def _check(rewards: Tensor, group_index: Tensor) -> None:
    if rewards.shape != group_index.shape or rewards.dim() != 1:
        shapes = f"rewards {tuple(rewards.shape)}, group_index {tuple(group_index.shape)}"
        raise ValueError(f"{shapes}: both must be [B].")
    if rewards.isinf().any():
        raise ValueError("an infinite reward; rewards must be finite, or NaN where they could not be scored.")
