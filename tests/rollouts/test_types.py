import pytest
import torch

from grpo_gym.rollouts.types import NO_SPREAD, Rollout, RolloutGroup
from grpo_gym.training.advantages import group_advantages


def group_of(rewards) -> RolloutGroup:
    rollouts = [Rollout([1], [2], [-1.0], [1], reward) for reward in rewards]
    return RolloutGroup(0, "task", "", "", rollouts)


@pytest.mark.parametrize(
    ("rewards", "has_spread"),
    [
        ([], False),
        ([None, None], False),
        ([0.5], False),
        ([0.5, None], False),
        ([0.1 + 0.2, 0.3, 0.3], False),
        ([0.0, 1e-17], False),
        ([0.0, NO_SPREAD], False),
        ([0.0, 2 * NO_SPREAD], True),
        ([1.0, None, 0.0], True),
    ],
)
def test_a_group_has_spread_exactly_when_it_has_advantages(rewards, has_spread):
    assert group_of(rewards).has_spread is has_spread
    values = torch.tensor([float("nan") if r is None else r for r in rewards], dtype=torch.float64)
    advantages = group_advantages(values, torch.zeros(len(values), dtype=torch.long))
    assert bool(advantages.any()) is has_spread
