"""The script of `grpo-gym slurm` on a real SLURM: time limit, checkpoint, requeue, resume; two nodes with a server."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from grpo_gym.cli import main
from grpo_gym.launch import slurm
from tests.end_to_end.slurm_cluster import Cluster, why_not
from tests.launch.test_slurm import running_in, write_parts

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
SECONDS_PER_COMPLETION = 0.2
STEPS = 60

EXPERIMENT = {
    "_base_": [str(ROOT / "configs/base.yaml"), str(ROOT / "configs/models/tiny.yaml")],
    "data": {"tasks": "leg_counting", "num_train_examples": 64, "num_eval_examples": 4},
    "training": {
        "run_name": "queued",
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "max_completion_length": 16,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "report_to": "none",
    },
    "eval": {"on_start": False, "num_problems": 4},
}
SLOW_REWARD = f"""\
import time
from grpo_gym.rewards import BaseReward, register_reward

@register_reward("slow")
class Slow(BaseReward):
    '''Makes a step take at least a fixed time, on any machine.'''
    def compute(self, prompt, completion, answer, info):
        time.sleep({SECONDS_PER_COMPLETION})
        return float(len(completion))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with Cluster(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def write_script(folder: Path, experiment: dict, *flags: str) -> Path:
    (folder / "queued.yaml").write_text(yaml.safe_dump(experiment))
    command = [sys.executable, "-m", "grpo_gym.cli", "slurm", "queued.yaml", "acct", *flags]
    command += ["--partition", "cpu", "--gpus", "0", "--cpus", "2", "--memory", "4G"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "slurm_queued.sh"


def logs(folder: Path) -> str:
    return "\n".join(f"--- {file}\n{file.read_text()[-4000:]}" for file in folder.rglob("*.log"))


def programs_of(folder: Path) -> list[str]:
    """Command lines of processes that still run for this job."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = file.read_bytes().decode(errors="replace").replace("\0", " ")
        except OSError:
            continue
        if str(folder / "queued.yaml") in words or "vf-vllm" in words:
            found.append(words)
    return found


def test_a_job_that_meets_its_time_limit_is_queued_again_and_finishes(cluster, tmp_path):
    (tmp_path / "slow.py").write_text(SLOW_REWARD)
    experiment = {**EXPERIMENT, "rewards_module": "slow.py", "rewards": [{"name": "slow"}]}
    experiment["training"] = {**EXPERIMENT["training"], "max_steps": STEPS}
    # SLURM looks at limits every 30 s and warns up to 30 s early: the signal comes 10 to 40 s after the start.
    script = write_script(tmp_path, experiment, "--time", "00:04:00", "--checkpoint-lead", "200")
    number = cluster.submit(script)
    job = cluster.wait(number, "RUNNING", timeout=30)
    job = cluster.wait(number, "PENDING", "COMPLETED", "FAILED", "TIMEOUT", timeout=260)
    assert job["JobState"] == "PENDING", logs(tmp_path)
    assert job["Restarts"] == "1"
    saved = list((tmp_path / "outputs/queued").glob("checkpoint-*"))
    assert len(saved) == 1
    stopped_after = int(saved[0].name.removeprefix("checkpoint-"))
    assert 0 < stopped_after < STEPS
    # The second start has all the time it needs, and need not wait.
    cluster.start_now(number, "TimeLimit=00:10:00")
    job = cluster.wait(number, "COMPLETED", "FAILED", "TIMEOUT", timeout=240)
    assert job["JobState"] == "COMPLETED", logs(tmp_path)
    assert job["ExitCode"] == "0:0"

    folder = tmp_path / "outputs/queued"
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in history if "loss" in entry] == list(range(1, STEPS + 1))
    trainer_log = (folder / f"logs/slurm-{number}/trainer.log").read_text()
    assert f"SIGUSR1: stopped after step {stopped_after}, saved in" in trainer_log
    job_log = (tmp_path / f"slurm-queued-{number}.log").read_text()
    assert "[start 1] trainer, log" in job_log
    assert f"goes on from {saved[0]}" in job_log
    assert (folder / "model.safetensors").is_file()
    assert not programs_of(tmp_path)


def test_a_server_on_one_node_and_the_trainer_on_another(cluster, tmp_path):
    experiment = {**EXPERIMENT, "launch": {"server_args": ["--enforce-eager", "--max-model-len", "512"]}}
    experiment["training"] = {
        **EXPERIMENT["training"],
        **{"max_steps": 2, "use_vllm": True, "vllm_mode": "server"},
    }
    script = write_script(tmp_path, experiment, "--nodes", "2", "--time", "00:10:00")
    number = cluster.submit(script)
    job = cluster.wait(number, "COMPLETED", "FAILED", "TIMEOUT", timeout=400)
    assert job["JobState"] == "COMPLETED", logs(tmp_path)
    folder = tmp_path / "outputs/queued"
    assert "Application startup complete" in (folder / f"logs/slurm-{number}/server-1.log").read_text()
    assert json.loads((folder / "trainer_state.json").read_text())["global_step"] == 2
    deadline = time.monotonic() + 30
    while programs_of(tmp_path) and time.monotonic() < deadline:
        time.sleep(1)
    assert not programs_of(tmp_path)
    assert os.environ.get("SLURM_JOB_ID") is None


def test_trainers_and_servers_on_several_nodes(cluster, tmp_path, monkeypatch):
    """What starts where, the way of a signal to the ranks, and the end of every program; all are played."""
    parts = write_parts(tmp_path / "parts")
    monkeypatch.setattr(slurm, "activation", lambda: f"export PATH={parts}:$PATH")
    experiment = {**EXPERIMENT, "training": {**EXPERIMENT["training"], "use_vllm": True}}
    (tmp_path / "queued.yaml").write_text(yaml.safe_dump(experiment))
    script = tmp_path / "job.sh"
    flags = ["--partition", "cpu", "--gpus", "0", "--cpus", "2", "--memory", "4G", "--nodes", "3"]
    words = ["slurm", str(tmp_path / "queued.yaml"), "acct", *flags, "--work-dir", str(tmp_path)]
    assert main([*words, "--output", str(script)]) == 0
    folder = tmp_path / "outputs/queued"
    number = cluster.submit(script, PARTS=str(parts), PLAY="train", PLAY_OUT=str(folder))
    trainer_log = folder / f"logs/slurm-{number}/trainer.log"
    deadline = time.monotonic() + 60
    while not (trainer_log.exists() and trainer_log.read_text().count("listening") == 2):
        assert time.monotonic() < deadline, logs(tmp_path)
        time.sleep(0.5)
    cluster.run("scancel", "--batch", "--signal=USR1", number)  # as --signal=B:USR1@... will
    job = cluster.wait(number, "PENDING", "COMPLETED", "FAILED", timeout=90)
    assert (job["JobState"], job["Restarts"]) == ("PENDING", "1"), logs(tmp_path)
    cluster.start_now(number)
    job = cluster.wait(number, "COMPLETED", "FAILED", timeout=90)
    assert job["JobState"] == "COMPLETED", logs(tmp_path)
    started = trainer_log.read_text()
    for rank in (0, 1):
        assert (
            f"--num_processes 2 --num_machines 2 --machine_rank {rank} --main_process_ip 127.0.0.1" in started
        )
    assert "vllm_server_base_urls=[http://127.0.0.1:2" in started
    assert "serving for" in (folder / f"logs/slurm-{number}/server-2.log").read_text()
    assert not running_in(parts)
