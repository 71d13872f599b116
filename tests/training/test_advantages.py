import numpy as np
import pytest
import torch

from grpo_gym.training.advantages import ADVANTAGE_SCALES, group_advantages, group_stats
from tests.training.trl_oracle import NUM_GENERATIONS, random_step, trl_step

pytestmark = pytest.mark.usefixtures("double_precision")

NAN = float("nan")


def step_with_failures(seed, share_failed):
    step = random_step(seed, num_rollouts=8 * NUM_GENERATIONS)
    failed = torch.rand(step.num_rollouts, generator=torch.Generator().manual_seed(seed)) < share_failed
    step.rewards[failed] = NAN
    return step


def numpy_advantages(rewards, groups, scale, epsilon=1e-4):
    result = np.zeros_like(rewards)
    batch_std = np.std(rewards[~np.isnan(rewards)], ddof=1)
    for group in np.unique(groups):
        members = (groups == group) & ~np.isnan(rewards)
        if members.sum() < 2:
            continue
        own = rewards[members]
        divisor = {"group": np.std(own, ddof=1) + epsilon, "batch": batch_std + epsilon, "none": 1.0}[scale]
        result[members] = (own - own.mean()) / divisor
    return result


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("share_failed", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("scale", ADVANTAGE_SCALES)
def test_advantages_are_trls(scale, share_failed, seed):
    step = step_with_failures(seed, share_failed)
    expected = trl_step(step, scale_rewards=scale).advantages
    torch.testing.assert_close(
        group_advantages(step.rewards, step.group_index, scale), expected, rtol=0, atol=1e-10
    )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("scale", ADVANTAGE_SCALES)
def test_advantages_of_unequal_shuffled_groups_are_numpys(scale, seed):
    rng = np.random.default_rng(seed)
    rewards = rng.normal(size=40)
    rewards[rng.random(40) < 0.2] = np.nan
    groups = rng.choice([3, 14, 15, 92, 65], size=40, p=[0.5, 0.2, 0.2, 0.05, 0.05])
    ours = group_advantages(torch.from_numpy(rewards), torch.from_numpy(groups), scale)
    np.testing.assert_allclose(ours.numpy(), numpy_advantages(rewards, groups, scale), rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", ADVANTAGE_SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_rewards_teach_exactly_nothing(dtype, scale):
    # The mean of three 0.1 is not 0.1 in binary, so a difference from it would leave a residue.
    rewards = torch.tensor([0.1, 0.1, 0.1, 1.0, 0.0, 0.0], dtype=dtype)
    advantages = group_advantages(rewards, torch.tensor([0, 0, 0, 1, 1, 1]), scale)
    assert advantages.dtype == dtype
    assert advantages[:3].tolist() == [0.0, 0.0, 0.0]
    assert advantages[3] > 0 > advantages[4]


@pytest.mark.parametrize("scale", ADVANTAGE_SCALES)
def test_a_failed_rollout_changes_nothing_for_the_others(scale):
    rewards, groups = torch.tensor([1.0, 0.0, 0.5, 2.0, 1.0]), torch.tensor([0, 0, 0, 1, 1])
    with_failures = torch.tensor([NAN, 1.0, 0.0, NAN, 0.5, 2.0, 1.0, NAN])
    advantages = group_advantages(with_failures, torch.tensor([0, 0, 0, 0, 0, 1, 1, 2]), scale)
    kept = ~with_failures.isnan()
    torch.testing.assert_close(advantages[kept], group_advantages(rewards, groups, scale))
    assert advantages[~kept].eq(0.0).all()


@pytest.mark.parametrize("scale", ADVANTAGE_SCALES)
def test_the_only_scored_rollout_of_a_group_has_advantage_zero(scale):
    rewards, groups = torch.tensor([5.0, NAN, 1.0, 0.0]), torch.tensor([0, 0, 1, 1])
    assert group_advantages(rewards, groups, scale)[:2].tolist() == [0.0, 0.0]
    assert group_advantages(rewards[:2], groups[:2], scale).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("scale", ADVANTAGE_SCALES)
def test_advantages_of_a_group_sum_to_zero_and_ignore_a_shift(scale):
    step = random_step(5)
    advantages = group_advantages(step.rewards, step.group_index, scale)
    sums = advantages.view(-1, NUM_GENERATIONS).sum(1)
    torch.testing.assert_close(sums, torch.zeros_like(sums), rtol=0, atol=1e-12)
    torch.testing.assert_close(group_advantages(step.rewards + 3.0, step.group_index, scale), advantages)


def test_no_rollouts_have_no_advantages():
    empty = torch.zeros(0)
    assert group_advantages(empty, empty.long()).shape == (0,)
    assert group_stats(torch.tensor([NAN, NAN]), torch.tensor([0, 1])) == {}


@pytest.mark.parametrize("seed", range(4))
def test_group_stats_are_trls(seed):
    step = random_step(seed, num_rollouts=8 * NUM_GENERATIONS)
    step.rewards[: 2 * NUM_GENERATIONS] = 1.0
    stats, metrics = group_stats(step.rewards, step.group_index), trl_step(step).metrics
    assert stats["frac_reward_zero_std"] >= 0.25
    for name, value in stats.items():
        assert value == pytest.approx(metrics[name][0], abs=1e-6), name


def test_a_group_with_one_scored_rollout_counts_as_without_spread_and_an_unscored_one_not_at_all():
    rewards = torch.tensor([1.0, 0.0, 1.0, NAN, NAN, NAN])
    stats = group_stats(rewards, torch.tensor([0, 0, 1, 1, 2, 2]))
    assert stats["frac_reward_zero_std"] == 0.5
    assert stats["reward"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("rewards", "groups", "scale", "message"),
    [
        (
            [1.0, 0.0],
            [0, 0],
            "groups",
            "'groups' is not one of group, batch, none .did you mean 'group'",
        ),
        ([1.0, float("inf")], [0, 0], "group", "infinite reward"),
        ([1.0, 0.0], [0], "group", r"rewards \(2,\), group_index \(1,\)"),
    ],
)
def test_bad_input_is_named_in_one_line(rewards, groups, scale, message):
    with pytest.raises(ValueError, match=message) as error:
        group_advantages(torch.tensor(rewards), torch.tensor(groups), scale)
    assert "\n" not in str(error.value)
