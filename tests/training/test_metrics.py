"""Names and counts of metrics, without a model."""

from grpo_gym.rollouts.types import Rollout, RolloutGroup
from grpo_gym.training.metrics import rollout_metrics


def failed(error, rewards=()):
    return Rollout([1], [2], [0.0], [1], None, error=error, failed_rewards=list(rewards))


def test_failures_are_counted_by_kind_and_by_reward():
    rollouts = [
        failed("scoring failed: one: KeyError: 'x'; a/b c: ValueError: no", ["one", "a/b c"]),
        failed("scoring failed: one: KeyError: 'x'", ["one"]),
        failed("generation failed: server down"),
        failed("no tokens came back (stop condition: None)"),
        failed("prompt_too_long"),
    ]
    assert rollout_metrics([RolloutGroup(0, "task", "", "", rollouts)]) == {
        "rollouts/failed": 5.0,
        "rollouts/failed/scoring_failed": 2.0,
        "rollouts/failed/scoring_failed/one": 2.0,
        "rollouts/failed/scoring_failed/a_b_c": 1.0,
        "rollouts/failed/generation_failed": 1.0,
        "rollouts/failed/no_tokens_came_back": 1.0,
        "rollouts/failed/prompt_too_long": 1.0,
    }


def test_without_failures_there_is_a_zero():
    rollouts = [Rollout([1], [2], [0.0], [1], reward) for reward in (0.0, 1.0)]
    metrics = rollout_metrics([RolloutGroup(0, "task", "", "", rollouts)])
    assert [name for name in metrics if name.startswith("rollouts/failed")] == ["rollouts/failed"]
