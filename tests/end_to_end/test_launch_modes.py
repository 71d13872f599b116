"""The same mathematics, however the work is divided: real processes over gloo, against one process."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file

from grpo_gym.models import TINY_MODEL_PATH
from tests.end_to_end.launching import ROOT, SCRIPT, launch, launch_as_machines

ACCELERATE = "configs/accelerate"
SCENARIOS = ["sgd", "accumulated", "adamw", "lora", "lonely"]
MODES = {
    "ddp2": (f"{ACCELERATE}/cpu_2proc.yaml", 2, "DistributedDataParallel", SCENARIOS),
    "ddp4": (f"{ACCELERATE}/multi_gpu.yaml", 4, "DistributedDataParallel", SCENARIOS),
    "zero2": (f"{ACCELERATE}/deepspeed_zero2.yaml", 2, "DeepSpeedEngine", SCENARIOS),
    "zero3": (f"{ACCELERATE}/deepspeed_zero3.yaml", 2, "zero3", SCENARIOS),
    "fsdp1": (f"{ACCELERATE}/fsdp1.yaml", 2, "FullyShardedDataParallel", ["accumulated", "adamw", "lora"]),
    "fsdp2": (f"{ACCELERATE}/fsdp2.yaml", 2, "fsdp2", SCENARIOS),
}


@pytest.fixture(scope="module")
def one_process(tmp_path_factory):
    """The reference: every scenario in one process."""
    folder = tmp_path_factory.mktemp("one")
    launch(f"{ACCELERATE}/single_gpu.yaml", 1, SCRIPT, folder, *SCENARIOS)
    return folder


def read(folder):
    return torch.load(folder / "weights.pt"), json.loads((folder / "report.json").read_text())


def largest_difference(a, b):
    assert set(a) == set(b)
    return max((a[name] - b[name]).abs().max().item() for name in a)


@pytest.mark.parametrize("mode", MODES)
def test_one_optimizer_step_gives_the_same_weights(mode, one_process, tmp_path):
    config, num_processes, sharded, scenarios = MODES[mode]
    launch(config, num_processes, SCRIPT, tmp_path, *scenarios)
    start = load_file(f"{TINY_MODEL_PATH}/model.safetensors")
    for scenario in scenarios:
        expected, reference = read(one_process / scenario)
        found, report = read(tmp_path / scenario)
        assert (report["sharded"], report["ranks"]) == (sharded, num_processes)
        moved = largest_difference(expected, start)
        assert largest_difference(found, expected) < min(1e-5, 1e-2 * moved), scenario
        for log, reference_log in zip(report["logs"], reference["logs"], strict=True):
            assert log == pytest.approx(reference_log, rel=1e-4, abs=1e-6)
        if scenario != "lora":  # what is saved is what was trained, whole
            saved = load_file(tmp_path / scenario / "model.safetensors")
            assert all(torch.equal(saved[name], weight) for name, weight in found.items())


def test_accumulation_changes_nothing_in_a_step_of_the_same_rollouts(one_process):
    whole, accumulated = read(one_process / "sgd")[0], read(one_process / "accumulated")[0]
    assert largest_difference(whole, accumulated) == 0.0


def test_the_command_of_the_readme_runs_as_printed(tmp_path):
    small = {
        "output_dir": tmp_path, "max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 8,
        "max_completion_length": 16, "eval_num_problems": 2, "num_completions_to_print": 0, "report_to": "none",
        "save_strategy": "no", "eval_on_start": "false",
    }  # fmt: skip
    arguments = [part for name, value in small.items() for part in (f"--{name}", value)]
    launch("configs/zero3.yaml", 2, "train_minimal.py", *arguments)
    assert load_file(tmp_path / "model.safetensors")
    state = json.loads((tmp_path / "trainer_state.json").read_text())
    assert state["global_step"] == 1


def test_deepspeed_over_machines_is_one_run(tmp_path):
    """One launcher per machine, as the SLURM script starts them; with pdsh each would train alone."""
    launch_as_machines("configs/zero3.yaml", 2, SCRIPT, tmp_path, "sgd")
    _, report = read(tmp_path / "sgd")
    assert (report["sharded"], report["ranks"]) == ("zero3", 2)


def test_zero3_has_one_meaning():
    files = (ROOT / "configs/zero3.yaml", ROOT / ACCELERATE / "deepspeed_zero3.yaml")
    first, second = (yaml.safe_load(path.read_text()) for path in files)
    assert first == second
