import dataclasses

import pytest

from grpo_gym.training.batch_arithmetic import plan_batch
from grpo_gym.training.config import GRPOConfig


def config(tmp_path, **kwargs):
    defaults = {"output_dir": str(tmp_path), "report_to": "none", "per_device_train_batch_size": 8}
    return GRPOConfig(**{**defaults, **kwargs})


def test_completions_per_step_is_the_product(tmp_path):
    made = config(tmp_path, gradient_accumulation_steps=4, num_generations=16)
    assert made.completions_per_step == 32
    assert made.batch_plan.prompts_per_step == 2


def test_indivisible_batch_names_the_nearest_values_and_they_work():
    with pytest.raises(
        ValueError, match=r"num_generations=6 or num_generations=12 or per_device.*=11"
    ) as error:
        plan_batch(6, 2, 1, 11)
    assert "12 completions per step" in str(error.value)
    assert plan_batch(6, 2, 1, 6).prompts_per_step == 2
    assert plan_batch(6, 2, 1, 12).prompts_per_step == 1
    assert plan_batch(11, 2, 1, 11).prompts_per_step == 2


def test_a_copy_for_another_number_of_processes_keeps_the_step(tmp_path):
    made = config(tmp_path, gradient_accumulation_steps=4, num_generations=16)
    copy = dataclasses.replace(made, gradient_accumulation_steps=1)
    assert copy.batch_plan == made.batch_plan


@pytest.mark.parametrize("alias", ["max_tokens", "max_new_tokens"])
def test_other_names_of_the_completion_length(tmp_path, alias):
    assert config(tmp_path, **{alias: 77}).max_completion_length == 77


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"loss_type": "dappo"}, "did you mean 'dapo'"),
        ({"scale_rewards": "groups"}, "did you mean 'group'"),
        ({"vllm_mode": "colocated"}, "did you mean 'colocate'"),
        ({"importance_sampling_mode": "truncate"}, "token_truncate"),
        ({"num_generations": 1}, "at least 2"),
        ({"num_generations": 3}, "num_generations=2 or num_generations=4"),
        ({"temperature": 0.0}, "above 0"),
        ({"max_completion_length": 0}, "at least 1"),
        ({"report_to": "clearml"}, "the package is not installed"),
        ({"max_tokens": 3, "max_new_tokens": 4}, "same setting"),
        ({"loss_type": "cispo", "epsilon_high": 0.2}, "caps the ratio itself"),
    ],
)
def test_bad_settings_get_one_line_that_says_what_to_do(tmp_path, bad, message):
    with pytest.raises(ValueError, match=message) as error:
        config(tmp_path, **bad)
    assert "\n" not in str(error.value)


def test_loss_defaults_follow_the_loss_type(tmp_path):
    assert config(tmp_path).epsilon_high == 0.28
    assert config(tmp_path, loss_type="cispo").epsilon_high == 5.0


def test_default_output_dir_is_named_after_the_run():
    assert GRPOConfig(run_name="x", report_to="none").output_dir == "outputs/x"


def test_command_line_overrides_the_script(tmp_path):
    made = GRPOConfig.from_command_line(
        ["--learning_rate", "3e-5", "--use_vllm", "true"],
        output_dir=str(tmp_path), report_to="none", learning_rate=1e-6, num_generations=4,
    )  # fmt: skip
    assert (made.learning_rate, made.use_vllm, made.num_generations) == (3e-5, True, 4)


def test_server_urls(tmp_path):
    assert config(tmp_path, vllm_server_port=9).server_urls == ["http://127.0.0.1:9"]
    assert config(tmp_path, vllm_server_base_url="http://a:1/v1/").server_urls == ["http://a:1"]
    urls = ["http://a:1", "http://b:2/"]
    assert config(tmp_path, vllm_server_base_urls=urls).server_urls == ["http://a:1", "http://b:2"]
