"""Every file in configs/ loads; a new task or model is one file."""

from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from math_reasoning import sources

from grpo_gym.config import load_experiment
from grpo_gym.config.build import build_args, build_environment
from grpo_gym.rollouts.prompts import EnvironmentRows

CONFIGS = Path(__file__).parents[2] / "configs"


# Rows to train on and to evaluate on, where it is not 20,000 and 500.
SIZES = {
    "math": (500, 500),
    "math_gsm8k": (1000, 500),
    "math_builtin": (1000, 200),
    "math_tiny": (4000, 200),
    "calculator": (2000, 100),
}


@pytest.fixture(autouse=True)
def hub(monkeypatch):
    """A Hub whose mathematics datasets have a thousand rows."""

    def load_dataset(path, name=None, split=None):
        rows = [
            {"question": f"{split} {i}?", "answer_correct": str(i), "answer": f"#### {i}"}
            for i in range(1000)
        ]
        return Dataset.from_list(rows)

    monkeypatch.setattr(sources, "load_dataset", load_dataset)


def names(folder):
    return sorted(path.stem for path in (CONFIGS / folder).glob("*.yaml"))


@pytest.mark.parametrize("name", names("experiments"))
def test_experiments_make_valid_settings(name):
    experiment = load_experiment(CONFIGS / "experiments" / f"{name}.yaml")
    assert experiment.model.model_name_or_path
    build_args(experiment)
    build_environment(experiment)


# Prompts per step and completions per prompt.
MODELS = {
    "tiny": (8, 16),
    "smollm2-135m": (8, 8),
    "qwen2.5-0.5b-instruct": (8, 16),
    "qwen3-0.6b": (8, 8),
    "qwen2.5-1.5b-instruct": (8, 16),
    "qwen3-1.7b": (8, 8),
    "llama-3.2-1b": (8, 16),
    "gemma-3-1b": (8, 16),
    "llama-3.2-3b": (8, 16),
    "qwen2.5-3b-instruct": (16, 16),
    "qwen2.5-7b-instruct": (16, 16),
    "qwen3-4b": (16, 8),
    "qwen3-8b": (16, 8),
}
TASKS = {
    "algebra", "algorithmic", "arc", "arithmetic", "calculator", "chain_sum_syllogism", "code",
    "cognition", "countdown", "games", "geometry", "graphs", "induction", "leg_counting", "logic",
    "math", "math_builtin", "math_gsm8k", "math_tiny", "probability", "sudoku", "visual_chain_sum",
    "visual_colour", "visual_count",
}  # fmt: skip


def test_no_model_and_no_task_is_lost():
    """Written out, so that deleting a file fails; a new one needs a line here."""
    assert set(names("models")) == set(MODELS)
    assert set(names("tasks")) == TASKS


@pytest.mark.parametrize("model", MODELS)
def test_models_go_with_the_base_and_bring_their_batch(write, model):
    settings = {"per_device_train_batch_size", "gradient_accumulation_steps", "num_generations"}
    settings |= {"learning_rate", "max_tokens_per_micro_batch"}
    own = yaml.safe_load((CONFIGS / "models" / f"{model}.yaml").read_text())["training"]
    assert settings <= own.keys()
    text = f"_base_: [{CONFIGS}/base.yaml, {CONFIGS}/models/{model}.yaml]\n"
    plan = build_args(load_experiment(write("x.yaml", text))).batch_plan
    assert (plan.prompts_per_step, plan.num_generations) == MODELS[model]


@pytest.mark.parametrize("task", names("tasks"))
def test_tasks_make_an_environment(task):
    env = build_environment(load_experiment(CONFIGS / "tasks" / f"{task}.yaml"))
    sizes = tuple(len(EnvironmentRows(env, split)) for split in ("train", "eval"))
    assert sizes == SIZES.get(task, (20000, 500))


def test_a_task_and_a_model_are_one_file_each(write):
    write("task.yaml", "data: {num_train_examples: 9, tasks: {gcd: {config: {max_value: 20}}}}\n")
    write("model.yaml", "model: someone/their-model\nlearning_rate: 3e-6\n")
    path = write("x.yaml", f"_base_: [{CONFIGS}/base.yaml, model.yaml, task.yaml]\n")
    experiment = load_experiment(path)
    assert experiment.model.model_name_or_path == "someone/their-model"
    assert build_args(experiment).learning_rate == 3e-6
    assert build_environment(experiment).row(0)["info"]["source_dataset"] == "gcd"


@pytest.mark.parametrize("task", names("tasks"))
def test_tasks_make_problems(task):
    env = build_environment(load_experiment(CONFIGS / "tasks" / f"{task}.yaml"))
    if hasattr(env, "row"):
        assert all(env.row(index)["prompt"] for index in range(8))
