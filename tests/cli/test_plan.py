"""`grpo-gym plan` as a user types it."""

import json
import re
from pathlib import Path

import pytest

from grpo_gym.cli import main
from grpo_gym.planning.calibration import save
from grpo_gym.planning.hardware import gpu_rates

CONFIGS = Path(__file__).parents[2] / "configs/experiments"
TINY = str(CONFIGS / "tiny_leg_counting.yaml")
QWEN = str(CONFIGS / "qwen_leg_counting.yaml")


def test_the_plan_names_the_best_split_and_its_commands(capsys):
    command = ["plan", QWEN, "--gpus", "4", "--gpu-type", "h100", "training.gradient_checkpointing=true"]
    assert main(command) == 0
    out = capsys.readouterr().out
    for line in (
        r"model +1\.544B parameters",
        r"devices +4 x h100",
        r"assumed for h100",
        r"best +[\d.]+ s per step; rollouts and training overlap",
        r"serve +CUDA_VISIBLE_DEVICES=0\S* vf-vllm --model MODEL --data-parallel-size \d",
        r"train +CUDA_VISIBLE_DEVICES=.*--num-processes \d .*per_device_train_batch_size=\d+",
    ):
        assert re.search(line, out), line


def test_nothing_fits_is_exit_code_one_and_says_why(capsys):
    assert main(["plan", QWEN, "--gpus", "1", "--gpu-type", "l4", "--prompt-tokens", "100"]) == 1
    assert re.search(
        r"NOTHING FITS:\n  server and trainer on one GPU: .* need [\d.]+ GiB", capsys.readouterr().out
    )


def test_json_has_every_split(capsys):
    assert main(["plan", QWEN, "--gpus", "4", "--gpu-type", "h200", "--prompt-tokens", "100", "--json"]) == 0
    splits = json.loads(capsys.readouterr().out)
    assert {split["server_gpus"] for split in splits} == {1, 2, 3}
    assert splits[0]["problems"] == []
    assert splits[0]["step_seconds"] > 0


def test_measured_rates_plan_a_cpu_run(capsys, tmp_path):
    save(gpu_rates("l4"), tmp_path / "rates.json", threads=1)
    command = ["plan", TINY, "--gpu-type", "cpu", "--rates", str(tmp_path / "rates.json")]
    assert main([*command, "--mean-completion", "40"]) == 0
    assert "completions of 40, at most 96" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["plan"], "give an experiment file"),
        (["plan", TINY, "--gpu-type", "cpu"], "--gpu-type cpu needs --rates FILE"),
        (["plan", TINY, "--gpu-type", "h1000", "--prompt-tokens", "9"], "known are a100-40"),
        (["plan", TINY, "--gpus", "0"], "--gpus 0"),
        (["plan", TINY, "--gpu-type", "cpu", "--rates", "no.json", "--prompt-tokens", "9"], "holds no rates"),
    ],
)
def test_mistakes_are_one_line(command, message, capsys):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("grpo-gym: error:")
