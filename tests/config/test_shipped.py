"""Every file in configs/ loads; a new task or model is one file."""

from pathlib import Path

import pytest

from grpo_gym.config import load_experiment
from grpo_gym.config.build import build_args, build_environment

CONFIGS = Path(__file__).parents[2] / "configs"


def names(folder):
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


@pytest.mark.parametrize("name", names("experiments"))
def test_experiments_make_valid_settings(name):
    experiment = load_experiment(CONFIGS / "experiments" / f"{name}.yaml")
    assert experiment.model.model_name_or_path
    build_args(experiment)
    build_environment(experiment)


@pytest.mark.parametrize("model", names("models"))
def test_models_go_with_the_base(write, model):
    text = f"_base_: [{CONFIGS}/base.yaml, {CONFIGS}/models/{model}.yaml]\n"
    args = build_args(load_experiment(write("x.yaml", text)))
    assert args.batch_plan.prompts_per_step == 8


@pytest.mark.parametrize("task", names("tasks"))
def test_tasks_make_an_environment(task):
    env = build_environment(load_experiment(CONFIGS / "tasks" / f"{task}.yaml"))
    assert env.num_rows("train") == 20000
    assert env.num_rows("eval") == 500


def test_a_task_and_a_model_are_one_file_each(write):
    write("task.yaml", "data: {num_train_examples: 9, tasks: {gcd: {config: {max_value: 20}}}}\n")
    write("model.yaml", "model: someone/their-model\nlearning_rate: 3e-6\n")
    path = write("x.yaml", f"_base_: [{CONFIGS}/base.yaml, model.yaml, task.yaml]\n")
    experiment = load_experiment(path)
    assert experiment.model.model_name_or_path == "someone/their-model"
    assert build_args(experiment).learning_rate == 3e-6
    assert build_environment(experiment).row(0)["info"]["source_dataset"] == "gcd"
