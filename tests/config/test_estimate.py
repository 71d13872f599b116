"""Numbers of a run, from the experiment alone."""

import pytest
from transformers import AutoModelForCausalLM

from grpo_gym.config import load_experiment
from grpo_gym.config.build import build_args, build_peft
from grpo_gym.config.estimate import GIB, count_steps, memory_gib, model_size, size_from_name
from grpo_gym.config.schema import ModelSection
from grpo_gym.models import TINY_MODEL_PATH


def test_parameters_are_those_of_the_loaded_model():
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    assert model_size("tiny", ModelSection()).num_parameters == model.num_parameters()


def test_adapter_parameters_are_those_of_peft():
    from peft import get_peft_model

    section = ModelSection(use_peft=True, lora_r=3)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH), build_peft(section))
    assert model_size("tiny", section).num_adapter_parameters == model.get_nb_trainable_parameters()[0]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("Qwen/Qwen2.5-1.5B-Instruct", 1.5e9),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", 135e6),
        ("x/gemma-3-1b-it", 1e9),
    ],
)
def test_size_from_a_name(name, size):
    assert size_from_name(name).num_parameters == size


def test_a_name_without_a_size():
    assert size_from_name("someone/their-model") is None


def arguments(write, *overrides):
    text = "training: {per_device_train_batch_size: 8, num_generations: 4, report_to: none}\n"
    return build_args(load_experiment(write("x.yaml", text), list(overrides)))


def test_steps_of_epochs_are_rounded_up(write):
    args = arguments(write, "num_train_epochs=3", "num_iterations=2")
    assert count_steps(args, args.batch_plan, num_rows=5) == 3 * 3 * 2
    args = arguments(write, "max_steps=7")
    assert count_steps(args, args.batch_plan, num_rows=5) == 7


def test_memory_of_weights_and_optimizer(write):
    size = size_from_name("x-1B")
    full = memory_gib(size, arguments(write, "beta=0.1"), use_peft=False)
    assert {name: value * GIB for name, value in full.items()} == pytest.approx(
        {"weights": 4e9, "gradients": 4e9, "optimizer": 8e9, "reference model": 4e9}
    )
    assert memory_gib(size, arguments(write, "torch_dtype=bfloat16"), use_peft=True)["weights"] * GIB == 2e9


def test_checkpointing_takes_less(write):
    size = model_size("tiny", ModelSection())
    plain = memory_gib(size, arguments(write), use_peft=False)
    checkpointed = memory_gib(size, arguments(write, "gradient_checkpointing=true"), use_peft=False)
    assert checkpointed["activations"] < plain["activations"]
