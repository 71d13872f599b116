"""Rewards of an experiment in the place of the environment's own, through the rollout engine."""

import json

import pytest

from grpo_gym.config.schema import RewardSpec
from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.rewards import BaseReward, register_reward
from grpo_gym.rewards.rubric import use_rewards
from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.rollouts.engine import RolloutEngine
from grpo_gym.rollouts.scoring import leaf_rubrics


@register_reward("test_raises")
class Raises(BaseReward):
    deadline = None

    def compute(self, prompt, completion, answer, info):
        raise RuntimeError("no score today")


def rollouts(env, row, tokenizer, sampler, count=2):
    engine = RolloutEngine(env, sampler, ChatRenderer(tokenizer), max_retries=0)
    try:
        (group,) = engine.generate([row], count, SamplingParams(max_tokens=50), [0])
        return group.rollouts, engine.failures
    finally:
        engine.close()


def test_weights_and_metrics(echo_env, tokenizer, scripted_sampler):
    specs = [
        RewardSpec(name="strict_format", weight=0.2, params={"tags": ["answer"]}),
        RewardSpec(name="correctness", weight=0.8),
        RewardSpec(name="overlong_penalty", weight=0.0, params={"max_tokens": 4, "cache_tokens": 4}),
    ]
    use_rewards(echo_env, specs)
    sampler = scripted_sampler(lambda prompt, n: ["<answer>0</answer>", "0"][n])
    (right, wrong), _ = rollouts(echo_env, echo_env.get_dataset()[0], tokenizer, sampler)
    assert right.reward == pytest.approx(1.0)
    assert wrong.reward == 0.0
    assert next(iter(right.metrics)) == "correctness"
    assert right.metrics["strict_format"] == 1.0
    assert right.metrics["overlong_penalty"] == -1.0
    assert right.metrics["num_turns"] == 1.0


@pytest.mark.parametrize("fields", [["answer"], ["think", "answer"]])
def test_strict_format_wants_the_tags_of_the_environment(fields, tokenizer, scripted_sampler):
    from reasoning_gym_tasks import load_environment

    env = load_environment("leg_counting", parser_fields=fields)
    use_rewards(env, [RewardSpec(name="strict_format")])
    texts = {("answer",): "<answer>-1</answer>", ("think", "answer"): "<think>a</think> <answer>-1</answer>"}
    sampler = scripted_sampler(lambda prompt, n: list(texts.values())[n])
    found, _ = rollouts(env, env.row(0), tokenizer, sampler)
    right = texts[tuple(fields)]
    assert {r.completion_text: r.metrics["strict_format"] for r in found} == {
        text: float(text == right) for text in texts.values()
    }


def test_functions_of_weight_zero_stay_as_metrics(echo_env, tokenizer, scripted_sampler):
    def words(completion):
        return float(len(completion[-1]["content"].split()))

    def correctness(completion):
        return 7.0  # of the name of a reward that is chosen: it would be added to that

    def bonus(completion):
        return 5.0

    own = next(leaf_rubrics(echo_env.rubric))
    own.add_metric(words)
    own.add_metric(correctness)
    own.add_reward_func(bonus, weight=0.5)
    use_rewards(echo_env, [RewardSpec(name="correctness")])
    sampler = scripted_sampler(lambda prompt, n: "it is <answer>0</answer>")
    (rollout, _), _ = rollouts(echo_env, echo_env.get_dataset()[0], tokenizer, sampler)
    assert rollout.reward == 1.0
    assert (rollout.metrics["words"], rollout.metrics["correctness"]) == (3.0, 1.0)
    assert "bonus" not in rollout.metrics
    assert own.weights == [1.0, 0.0, 0.0, 0.5]


def test_correctness_is_a_metric_even_where_it_is_not_chosen(echo_env, tokenizer, scripted_sampler):
    use_rewards(echo_env, [RewardSpec(name="strict_format", params={"tags": ["answer"]})])
    sampler = scripted_sampler(lambda prompt, n: "<answer>1</answer>")
    (rollout, _), _ = rollouts(echo_env, echo_env.get_dataset()[0], tokenizer, sampler)
    assert rollout.reward == 1.0
    assert rollout.metrics["correctness"] == 0.0


def test_a_reward_that_raises_is_unscorable_and_counted(echo_env, tokenizer, scripted_sampler):
    use_rewards(echo_env, [RewardSpec(name="correctness"), RewardSpec(name="test_raises")])
    sampler = scripted_sampler(lambda prompt, n: "<answer>0</answer>")
    (first, second), failures = rollouts(echo_env, echo_env.get_dataset()[0], tokenizer, sampler)
    assert first.reward is None
    assert second.reward is None
    assert [(("test_raises" in reason), count) for reason, count in failures.items()] == [(True, 2)]


def test_reasoning_gym_is_scored_in_a_worker_like_in_place(tokenizer, scripted_sampler):
    from reasoning_gym_tasks import load_environment

    env = load_environment("leg_counting", {"max_animals": 2, "min_animals": 1}, num_train_examples=5)
    row = env.row(3)
    use_rewards(env, [RewardSpec(name="correctness", deadline=60)])
    answers = [f"<answer>{row['answer']}</answer>", "<answer>-1</answer>", "no tags"]
    sampler = scripted_sampler(lambda prompt, n: answers[n])
    found, _ = rollouts(env, row, tokenizer, sampler, count=3)
    assert [r.reward for r in found] == [1.0, 0.0, 0.0]


def test_a_reasoning_gym_scorer_at_fault_is_an_error(tokenizer, scripted_sampler):
    from reasoning_gym_tasks import load_environment

    env = load_environment("prime_factorization", num_train_examples=5)
    row = env.row(0)
    entry = json.loads(row["info"]["entry"])
    entry["answer"] = "not a number"
    entry["metadata"] = {}
    row["info"]["entry"] = json.dumps(entry)
    use_rewards(env, [RewardSpec(name="correctness", deadline=60)])
    sampler = scripted_sampler(lambda prompt, n: "<answer>2 x 3</answer>")
    (rollout, _), failures = rollouts(env, row, tokenizer, sampler)
    assert rollout.reward is None
    assert any("correctness" in reason for reason in failures)


def test_a_reward_listed_twice_is_refused(echo_env):
    with pytest.raises(ValueError, match="'correctness' is listed twice"):
        use_rewards(echo_env, [RewardSpec(name="correctness"), RewardSpec(name="correctness")])
