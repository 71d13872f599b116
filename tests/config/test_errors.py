"""What is wrong is said with file, line, key and the nearest known name."""

import pytest

from grpo_gym.config import ConfigError, load_experiment
from grpo_gym.config.build import build_environment


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("training:\n  seeed: 1\n", "x.yaml:2: training.seeed: unknown setting; did you mean 'seed'?"),
        ("\nlearning_rte: 1\n", "x.yaml:2: learning_rte: unknown setting; did you mean 'learning_rate'?"),
        ("trainin:\n  seed: 1\n", "x.yaml:1: trainin: unknown setting; did you mean 'training'?"),
        (
            "training:\n  use_peft: true\n",
            "training.use_peft: unknown setting; did you mean 'model.use_peft'?",
        ),
        ("training:\n  max_steps: many\n", "x.yaml:2: training.max_steps: input should be a valid integer"),
        ("training:\n  max_steps: true\n", "x.yaml:2: training.max_steps: must be a number, not true"),
        ("training:\n  use_vllm: maybe\n", "x.yaml:2: training.use_vllm: input should be a valid boolean"),
        ("training: 3\n", "x.yaml:1: training: must be a mapping, not 3"),
        ("training:\n  seed: 1\n  seed: 2\n", "x.yaml:3: training.seed: is written twice; first in line 2."),
        ("seed: 1\ntraining:\n  seed: 2\n", "x.yaml:3: training.seed: is set twice"),
        ("data:\n  tasks:\n    leg_countin: {}\n", "x.yaml:3: data.tasks.leg_countin: unknown Reasoning"),
        ("datasets:\n  syllogism:\n    wieght: 1\n", "x.yaml:3: datasets.syllogism.wieght: unknown setting"),
        ("data:\n  tasks:\n    leg_counting:\n      config: {max_animal: 3}\n", "did you mean 'max_animals'"),
        ("rewards:\n  - name: correctness\n    wait: 1\n", "x.yaml:3: rewards.0.wait: unknown setting"),
        ("rewards:\n  - weight: 1\n", "x.yaml:2: rewards.0: 'name' is missing"),
        (
            "data:\n  tasks:\n    leg_counting: {level: 99}\n",
            "x.yaml:3: data.tasks.leg_counting: task 'leg_counting' has the levels 0 to ",
        ),
        (
            "data:\n  tasks:\n    chain_sum:\n      level: [0, -1]\n",
            "x.yaml:3: data.tasks.chain_sum: task 'chain_sum' has the levels 0 to ",
        ),
        (
            "eval:\n  num_sample: 4\n",
            "x.yaml:2: eval.num_sample: unknown setting; did you mean 'num_samples'?",
        ),
        ("eval:\n  temprature: 1\n", "eval.temprature: unknown setting; did you mean 'temperature'?"),
        ("eval:\n  fixed_eval_stps: 1\n", "did you mean 'fixed_eval_steps'?"),
        ("logging:\n  stepz: 1\n", "x.yaml:2: logging.stepz: unknown setting; did you mean 'steps'?"),
        ("logging:\n  raport_to: none\n", "logging.raport_to: unknown setting; did you mean 'report_to'?"),
        ("model:\n  torch_dtypo: float32\n", "did you mean 'torch_dtype'?"),
        ("data:\n  tasks: leg_counting\n  datasets: [{path: a}]\n", "tasks and datasets are both set"),
        ("training:\n  seed: ${training.sed}\n", "x.yaml:2: training.seed: Interpolation key"),
        ("training: [\n", "x.yaml:2: not valid YAML"),
        ("- a\n", "x.yaml:1: an experiment is a mapping"),
        ("_base_: nowhere.yaml\n", "x.yaml:1: _base_: no file 'nowhere.yaml'"),
    ],
)
def test_message(write, text, message):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write("x.yaml", text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "rewards:\n  - name: corectness\n",
            "x.yaml:2: rewards.0: unknown reward 'corectness'; did you mean 'correctness'?",
        ),
        (
            "rewards:\n  - {name: correctness}\n  - name: strict_format\n    params:\n      tagz: [a]\n",
            "x.yaml:5: rewards.1.params.tagz: reward 'strict_format' has no param 'tagz'; did you mean 'tags'?",
        ),
        (
            "data:\n  env_args:\n    cache_sise: 2\n",
            "x.yaml:3: data.env_args.cache_sise: reasoning_gym_tasks has no such argument; "
            "did you mean 'cache_size'?",
        ),
        (
            "data:\n  tasks: null\n  environment: calculator-tools\n  env_args: {max_digits: 1}\n",
            "x.yaml:4: data.env_args: Failed to load environment 'calculator-tools': there are only about",
        ),
    ],
)
def test_what_shows_when_the_environment_is_built_has_file_and_line_too(write, text, message):
    write("base.yaml", "data: {tasks: leg_counting}\n")
    experiment = load_experiment(write("x.yaml", f"{text}_base_: base.yaml\n"))
    with pytest.raises(ConfigError) as caught:
        build_environment(experiment)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_error_in_a_base_names_the_base(write):
    write("base.yaml", "training:\n  seed: 1\n  max_stps: 2\n")
    with pytest.raises(ConfigError, match=r"base.yaml:3: training.max_stps: .*'max_steps'"):
        load_experiment(write("x.yaml", "_base_: base.yaml\ntraining:\n  seed: 2\n"))


def test_every_problem_gets_a_line(write):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write("x.yaml", "training:\n  max_stps: 2\n  seed: x\n"))
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("max_stps=1", "command line: max_stps: unknown setting; did you mean 'max_steps'?"),
        ("max_steps=x", "command line: max_steps: input should be a valid integer"),
        ("max_steps", "write key=value"),
        ("model.lora_rank=3", "command line: model.lora_rank: unknown setting; did you mean 'lora_r'?"),
    ],
)
def test_overrides_are_checked_alike(write, override, message):
    with pytest.raises(ConfigError) as caught:
        load_experiment(write("x.yaml", ""), [override])
    assert message in str(caught.value)


def test_no_file():
    with pytest.raises(ConfigError, match=r"cannot read 'nowhere\.yaml'"):
        load_experiment("nowhere.yaml")
