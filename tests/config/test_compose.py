"""Files on files, overrides, interpolation."""

import pytest
from transformers.trainer_callback import TrainerState

from grpo_gym.config import ConfigError, load_experiment
from grpo_gym.config.build import build_args
from grpo_gym.evaluation.during_training import wants_final_evaluation


def test_bases_merge_in_order_and_the_file_has_the_last_word(write):
    write("base/a.yaml", "training: {max_steps: 1, num_generations: 2, seed: 7}\nrewards: [{name: x}]\n")
    write("base/b.yaml", "training: {max_steps: 2, learning_rate: 1e-6}\n")
    path = write("x.yaml", "_base_: [base/a.yaml, base/b.yaml]\nnum_generations: 4\nrewards: []\n")
    experiment = load_experiment(path)
    assert experiment.training_settings == {
        "max_steps": 2,
        "num_generations": 4,
        "seed": 7,
        "learning_rate": 1e-6,
        "run_name": "x",
    }
    assert experiment.rewards == []


def test_a_base_is_relative_to_the_file_that_names_it(write):
    write("deep/er/c.yaml", "training: {max_steps: 3}\n")
    write("deep/b.yaml", "_base_: er/c.yaml\n")
    assert load_experiment(write("a.yaml", "_base_: deep/b.yaml\n")).training_settings["max_steps"] == 3


def test_one_base_may_be_reached_twice_but_not_from_itself(write):
    write("c.yaml", "training: {max_steps: 3}\n")
    write("a.yaml", "_base_: c.yaml\n")
    write("b.yaml", "_base_: c.yaml\n")
    assert load_experiment(write("x.yaml", "_base_: [a.yaml, b.yaml]\n")).training_settings["max_steps"] == 3
    write("one.yaml", "_base_: two.yaml\n")
    with pytest.raises(ConfigError, match=r"circle: .*one.yaml -> .*two.yaml -> .*one.yaml"):
        load_experiment(write("two.yaml", "_base_: one.yaml\n").parent / "one.yaml")


def test_tasks_of_several_bases_make_a_mix(write):
    write("a.yaml", "data: {tasks: {leg_counting: {weight: 2}}}\n")
    write("b.yaml", "data: {tasks: {syllogism: {}}}\n")
    tasks = load_experiment(write("x.yaml", "_base_: [a.yaml, b.yaml]\n")).data.tasks
    assert {name: task.weight for name, task in tasks.items()} == {"leg_counting": 2.0, "syllogism": 1.0}


def test_only_a_list_leaves_out_tasks_of_a_base(write):
    write("mix.yaml", "data: {tasks: {leg_counting: {weight: 2}, syllogism: {weight: 3}}}\n")
    path = write("x.yaml", "_base_: mix.yaml\n")

    def weights(override):
        return {name: task.weight for name, task in load_experiment(path, [override]).data.tasks.items()}

    assert weights("data.tasks.syllogism=null") == {"leg_counting": 2.0, "syllogism": 1.0}
    assert weights("data.tasks.syllogism={}") == {"leg_counting": 2.0, "syllogism": 3.0}
    assert weights("data.tasks=[{name: leg_counting, weight: 2.0}]") == {"leg_counting": 2.0}


@pytest.mark.parametrize(
    ("override", "name", "value"),
    [
        ("training.learning_rate=2e-6", "learning_rate", 2e-6),
        ("max_steps=100", "max_steps", 100),
        ("report_to=none", "report_to", "none"),
        ("report_to=[tensorboard, wandb]", "report_to", ["tensorboard", "wandb"]),
        ("temperature=0.7", "temperature", 0.7),
        ("eval.temperature=0.6", "eval_temperature", 0.6),
        ("logging.steps=5", "logging_steps", 5),
        ("use_vllm=true", "use_vllm", True),
        ("epsilon_high=", "epsilon_high", None),
        ("resume_from_checkpoint=true", "resume_from_checkpoint", True),
    ],
)
def test_overrides_with_section_and_bare(write, override, name, value):
    assert load_experiment(write("x.yaml", ""), [override]).training_settings[name] == value


def test_overrides_reach_other_sections_and_into_them(write):
    path = write("x.yaml", "data: leg_counting\nrewards: [{name: correctness}, {name: strict_format}]\n")
    overrides = [
        "model_name_or_path=Qwen/Qwen2.5-1.5B-Instruct",
        "data.tasks.leg_counting.config.max_animals=4",
        "rewards.1.weight=0.25",
    ]
    experiment = load_experiment(path, overrides)
    assert experiment.model.model_name_or_path == "Qwen/Qwen2.5-1.5B-Instruct"
    assert experiment.data.tasks["leg_counting"].config == {"max_animals": 4}
    assert [(r.name, r.weight) for r in experiment.rewards] == [("correctness", 1.0), ("strict_format", 0.25)]


def test_a_later_override_wins(write):
    assert load_experiment(write("x.yaml", ""), ["seed=1", "training.seed=2"]).training_settings["seed"] == 2


def test_interpolation_sees_overrides_and_environment(write, monkeypatch):
    monkeypatch.setenv("SOME_NAME", "from-env")
    text = "training:\n  max_steps: 3\n  save_steps: ${training.max_steps}\n  run_name: ${oc.env:SOME_NAME}\n"
    settings = load_experiment(write("x.yaml", text), ["max_steps=9"]).training_settings
    assert (settings["save_steps"], settings["run_name"]) == (9, "from-env")


def test_the_eval_section_sets_what_training_calls_eval(write):
    text = "eval: {on_start: true, num_problems: 5, num_samples: 2, fixed_eval_steps: 20}\n"
    settings = load_experiment(write("x.yaml", text)).training_settings
    assert settings["eval_on_start"] is True
    assert (settings["eval_num_problems"], settings["eval_num_samples"]) == (5, 2)
    assert (settings["eval_strategy"], settings["eval_steps"]) == ("steps", 20)


@pytest.mark.parametrize("off", ["null", "0", ""])
@pytest.mark.parametrize("on_start", [True, False])
def test_evaluation_is_turned_off_and_the_baseline_stays_if_it_is_asked_for(write, off, on_start):
    write("base.yaml", "eval: {fixed_eval_steps: 50}\ntraining: {report_to: none, use_cpu: true}\n")
    path = write("x.yaml", f"_base_: base.yaml\neval: {{on_start: {str(on_start).lower()}}}\n")
    args = build_args(load_experiment(path, [f"eval.fixed_eval_steps={off}"]))
    assert (args.eval_strategy, args.do_eval, args.eval_on_start) == ("no", False, on_start)
    assert wants_final_evaluation(args, TrainerState()) is on_start
    assert build_args(load_experiment(path)).eval_steps == 50


def test_a_flat_trl_style_file_loads(write):
    write("train.jsonl", "")
    text = """
model_name_or_path: Qwen/Qwen2.5-0.5B-Instruct
num_generations: 8
learning_rate: 1.0e-06
use_vllm: true
vllm_mode: colocate
use_peft: true
datasets:
  - path: train.jsonl
    split: train
field_mapping:
  question_field: problem
  answer_field: solution
"""
    path = write("flat.yaml", text)
    experiment = load_experiment(path)
    assert experiment.model.model_name_or_path == "Qwen/Qwen2.5-0.5B-Instruct"
    assert experiment.model.use_peft
    assert experiment.training_settings["vllm_mode"] == "colocate"
    assert experiment.data.field_mapping.answer_field == "solution"
    assert experiment.data.datasets[0].path == str(path.parent / "train.jsonl")


def test_trls_names_of_the_same_settings(write):
    write("train.jsonl", "")
    text = """
dataset_name: train.jsonl
dataset_config: main
dataset_train_split: part
vllm_max_model_length: 2048
model: {dtype: bfloat16}
"""
    path = write("trl.yaml", text)
    experiment = load_experiment(path, ["dataset_train_split=all", "dataset_test_split=test"])
    assert [entry.model_dump() for entry in experiment.data.datasets] == [
        {"path": str(path.parent / "train.jsonl"), "name": "main", "split": "all", "eval_split": "test"}
    ]
    settings = experiment.training_settings
    assert (settings["torch_dtype"], settings["vllm_max_model_len"]) == ("bfloat16", 2048)
    assert load_experiment(path, ["dtype=float32"]).training_settings["torch_dtype"] == "float32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dtype: auto\ntorch_dtype: auto\n", "x.yaml:2: torch_dtype: is set twice; the other place is"),
        ("dataset_train_split: train\n", "belong to a dataset_name"),
        ("dataset_name: a\ndatasets: [{path: b}]\n", "dataset_name and datasets are both set"),
        ("dataset_name: a\ntasks: leg_counting\n", "tasks and datasets are both set"),
    ],
)
def test_trls_names_beside_ours_are_refused(write, text, message):
    with pytest.raises(ConfigError, match=message):
        load_experiment(write("x.yaml", text))


def test_a_weights_and_configs_file_loads_as_it_is(write):
    text = """
model_name_or_path: tiny
datasets:
  basic_arithmetic:
    weight: 3.0
    config: {min_terms: 2, max_terms: 3}
  syllogism:
    weight: 1
"""
    tasks = load_experiment(write("mix.yaml", text)).data.tasks
    assert {name: task.weight for name, task in tasks.items()} == {"basic_arithmetic": 3.0, "syllogism": 1.0}
    assert tasks["basic_arithmetic"].config == {"min_terms": 2, "max_terms": 3}


@pytest.mark.parametrize("tasks", ["leg_counting", "[{name: leg_counting}]", "{leg_counting: }"])
def test_ways_to_write_one_task(write, tasks):
    assert list(load_experiment(write("x.yaml", f"data:\n  tasks: {tasks}\n")).data.tasks) == ["leg_counting"]
