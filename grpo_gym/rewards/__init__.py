"""Reward functions by name: your own and the built-in ones. Light to import: scoring processes do it too."""

from __future__ import annotations

from grpo_gym.rewards.base import BaseReward, RewardError
from grpo_gym.rewards.registry import create_reward, load_rewards_module, register_reward, reward_names

__all__ = [
    "BaseReward",
    "RewardError",
    "create_reward",
    "load_rewards_module",
    "register_reward",
    "reward_names",
]
