"""What goes wrong on a cluster: wrong numbers, taken ports, ranks that die. Real processes, on the CPU."""

import json
import re
import socket
import subprocess
import time

import pytest
import torch

from tests.end_to_end.launching import ROOT, environment, launch, launch_command

DDP = "configs/accelerate/cpu_2proc.yaml"
ZERO3 = "configs/zero3.yaml"
FSDP2 = "configs/accelerate/fsdp2.yaml"
DYING = "tests/end_to_end/dying.py"


def failed_launch(command, timeout=300):
    """The text of a launch that must fail."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        text, _ = process.communicate(timeout=timeout)
    finally:
        process.kill()
    assert process.returncode != 0, text[-3000:]
    return text


def test_a_batch_that_does_not_fit_the_processes_is_one_line():
    wrong = ["--per_device_train_batch_size", "3", "--num_generations", "4"]
    text = failed_launch(launch_command(DDP, 2, "train_minimal.py", *wrong))
    lines = [line for line in text.splitlines() if "completions per step, which is not divisible" in line]
    assert len(lines) == 1
    assert lines[0].startswith("train_minimal.py: error: per_device_train_batch_size=3 x 2 processes")
    assert "num_generations=3" in lines[0]
    assert text.count("Traceback") == 1  # the launcher's own, about exit code 2


@pytest.mark.parametrize(("config", "rank"), [(FSDP2, 0), (ZERO3, 1)])
def test_a_rank_killed_while_saving_leaves_whole_checkpoints_only(config, rank, tmp_path):
    text = failed_launch(launch_command(config, 2, DYING, tmp_path, rank, "save"))
    assert re.search(rf"rank\s*:\s*{rank} ", text)
    assert "Signal 9 (SIGKILL)" in text
    run = tmp_path / "run"
    assert [path.name for path in run.glob("checkpoint-*")] == ["checkpoint-1"]
    assert list((run / ".saving").iterdir()), "the kill came too early to test anything"

    launch(config, 2, DYING, tmp_path)
    assert not (run / ".saving").exists()
    assert {path.name for path in run.glob("checkpoint-*")} == {
        "checkpoint-1",
        "checkpoint-2",
        "checkpoint-3",
    }
    resumed, whole = (torch.load(tmp_path / name / "weights.pt") for name in ("run", "whole"))
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_all_ranks_stop_when_one_is_killed_and_the_message_names_it(tmp_path):
    text = failed_launch(launch_command(DDP, 2, DYING, tmp_path, 1, "train"))
    saved = tmp_path / "run" / "checkpoint-1" / "trainer_state.json"
    assert json.loads(saved.read_text())["global_step"] == 1
    assert time.time() - saved.stat().st_mtime < 60  # the kill came after it
    assert re.search(r"rank\s*:\s*1 ", text)
    assert "Signal 9 (SIGKILL)" in text


def test_a_taken_port_is_named_and_another_is_used(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        command = [
            "accelerate",
            "launch",
            "--config-file",
            DDP,
            "--main-process-port",
            port,
            "-m",
            "platform",
        ]
        done = subprocess.run(
            command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=120, check=False
        )
    assert done.returncode == 0
    assert f"Port `{port}` is already in use" in done.stderr
