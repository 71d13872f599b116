"""From an experiment to environment, settings and adapters."""

import json

import pytest

from grpo_gym.config import ConfigError, load_experiment
from grpo_gym.config.build import build_args, build_environment, build_peft, check_processes

CPU = "training: {per_device_train_batch_size: 8, num_generations: 4, report_to: none}\n"


def experiment(write, text, *overrides):
    return load_experiment(write("x.yaml", text), list(overrides))


def test_tasks_become_a_reasoning_gym_environment(write):
    text = """
data:
  num_train_examples: 30
  num_eval_examples: 4
  think: true
  dataset_seed: 5
  tasks: {leg_counting: {weight: 2, config: {max_animals: 3}}, syllogism: {}}
"""
    env = build_environment(experiment(write, text))
    assert (env.num_rows("train"), env.num_rows("eval"), env.seed) == (30, 4, 5)
    assert env.parser.get_fields() == ["think", "answer"]
    assert {env.row(i)["info"]["source_dataset"] for i in range(30)} == {"leg_counting", "syllogism"}


def test_datasets_are_put_together_and_rewards_replaced(write):
    rows = [{"q": f"what is {i} + 1?", "a": f"so #### {i + 1}"} for i in range(6)]
    write("one.jsonl", "\n".join(map(json.dumps, rows[:4])))
    write("two.jsonl", "\n".join(map(json.dumps, rows[4:])))
    text = r"""
datasets: [{path: one.jsonl}, {path: two.jsonl}]
field_mapping: {question_field: q, answer_field: a}
answer_regex: '#### (.+)'
num_eval_examples: 2
match: numeric
rewards: [{name: correctness}, {name: strict_format, weight: 0.5}]
"""
    env = build_environment(experiment(write, text))
    assert len(env.get_dataset()) == 4
    assert len(env.get_eval_dataset()) == 2
    assert set(env.get_dataset()["answer"]) <= {str(i + 1) for i in range(6)}
    assert env.rubric._get_reward_func_names()[:2] == ["correctness", "strict_format"]
    assert env.rubric._get_reward_weights()[:2] == [1.0, 0.5]


def test_a_users_reward_is_chosen_by_name(write):
    source = """
from grpo_gym.rewards import BaseReward, register_reward
@register_reward("test_build_own")
class Own(BaseReward):
    def __init__(self, factor):
        self.factor = factor
    def compute(self, prompt, completion, answer, info):
        return self.factor
"""
    write("own.py", source)
    text = (
        "data: leg_counting\nrewards_module: own.py\nrewards: [{name: test_build_own, params: {factor: 2}}]\n"
    )
    env = build_environment(experiment(write, text))
    assert env.rubric._get_reward_func_names()[:2] == ["correctness", "test_build_own"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\n", "nothing to train on"),
        ("data: {tasks: leg_counting, match: exact}\n", "data.match: this kind of data does not have it"),
        ("data: {environment: mine, num_eval_examples: 3}\n", "data.num_eval_examples.*belongs to env_args"),
        ("data: leg_counting\nrewards: [{name: corectness}]\n", "did you mean 'correctness'"),
        (
            "data: {tasks: leg_counting, format_weight: 0.2}\nrewards: [{name: correctness}]\n",
            r"data.format_weight: .*add \{name: strict_format, weight: 0.2\} to rewards, or set rewards: \[\]",
        ),
        (
            "data: {tasks: leg_counting, env_args: {format_weight: 0.2}}\nrewards: [{name: correctness}]\n",
            "data.env_args.format_weight: it has no effect beside rewards",
        ),
    ],
)
def test_what_does_not_fit_is_refused(write, text, message):
    with pytest.raises(ValueError, match=message):
        build_environment(experiment(write, text))


def test_the_environments_own_format_reward_without_rewards(write):
    env = build_environment(
        experiment(write, "data: {tasks: leg_counting, format_weight: 0.2}\nrewards: []\n")
    )
    assert env.rubric._get_reward_weights()[:2] == [1.0, 0.2]


def test_settings_reach_grpo_config(write):
    args = build_args(experiment(write, CPU, "max_tokens=33", "model_revision=abc"))
    assert args.max_completion_length == 33
    assert args.batch_plan.prompts_per_step == 2
    assert args.model_init_kwargs == {"revision": "abc"}
    assert args.output_dir == "outputs/x"


def test_lora(write):
    assert build_peft(experiment(write, CPU).model) is None
    config = build_peft(experiment(write, CPU, "use_peft=true", "lora_r=4").model)
    assert (config.r, config.target_modules) == (4, "all-linear")


def test_another_number_of_processes_than_planned_is_refused(write):
    planned = experiment(write, "launch: {num_processes: 8}\n")
    with pytest.raises(ConfigError, match="accelerate launch --num-processes 8"):
        check_processes(planned, 1)
    check_processes(planned, 8)
