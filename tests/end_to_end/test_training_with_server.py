"""The two terminals of the README, and the colocated server, with real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM

from grpo_gym import GRPOConfig, GRPOTrainer
from grpo_gym.inference.server_api import ServerApi, server_logprobs
from tests.end_to_end.conftest import TEXT, mean_difference, model_logprobs
from tests.training.test_trainer import legs_env

ROOT = Path(__file__).parents[2]


def run(command, timeout=600):
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=timeout, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


def training_log(output_dir):
    history = json.loads((Path(output_dir) / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in history if "reward" in entry]


def small(output_dir):
    settings = {
        "max_steps": 3, "output_dir": output_dir, "per_device_train_batch_size": 32, "num_generations": 8,
        "eval_num_problems": 8, "num_completions_to_print": 0, "report_to": "none", "learning_rate": 1e-3,
        "save_strategy": "no",
    }  # fmt: skip
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def test_two_terminals(server, tmp_path):
    before = server_logprobs(server.base_url, "tiny", TEXT)
    port = server.base_url.rsplit(":", 1)[1]
    server_mode = ["--use_vllm", "true", "--vllm_mode", "server", "--vllm_server_port", port]
    command = [
        "accelerate",
        "launch",
        "--num-processes",
        "1",
        "train_minimal.py",
        *server_mode,
        *small(str(tmp_path)),
    ]
    printed = run([*command, "--max_staleness", "0"])
    after = server_logprobs(server.base_url, "tiny", TEXT)
    trained = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert mean_difference(before, after) > 0.01
    assert mean_difference(after, model_logprobs(trained)) < 1e-3
    assert ServerApi(server.base_url).get("/weight_info")["weight_version"] == "3"
    for entry in training_log(tmp_path):
        assert entry["sampling/sampling_logp_difference/mean"] < 0.02
        assert entry["tokens_per_second"] > 0
    assert f"model:   {tmp_path}" in printed


def test_overlapped_rollouts_stay_within_their_staleness(server, tmp_path):
    args = GRPOConfig(
        output_dir=str(tmp_path), report_to="none", per_device_train_batch_size=32, num_generations=8,
        max_completion_length=64, max_steps=4, learning_rate=1e-4, disable_tqdm=True, save_strategy="no",
        use_vllm=True, vllm_server_base_url=f"{server.base_url}/v1", eval_num_problems=8,
        num_completions_to_print=0,
    )  # fmt: skip
    trainer = GRPOTrainer("tiny", legs_env(), args)
    trainer.train()
    assert args.resolved_max_staleness == 1
    entries = training_log(tmp_path)
    assert [entry["policy_version"] for entry in entries] == [0, 1, 2, 3]
    # What was generated while the step before trained is one version old, and nothing is older.
    assert [entry["rollouts/staleness/max"] for entry in entries] == [0, 1, 1, 1]
    assert all(0 < entry["rollouts/staleness/mean"] <= 1 for entry in entries[1:])


def test_colocated_server_is_started_used_and_stopped(tmp_path):
    args = GRPOConfig(
        output_dir=str(tmp_path), report_to="none", per_device_train_batch_size=16, num_generations=8,
        max_completion_length=64, max_steps=2, learning_rate=1e-3, disable_tqdm=True, save_strategy="no",
        use_vllm=True, vllm_mode="colocate", vllm_server_timeout=400, eval_num_problems=8,
        num_completions_to_print=0,
    )  # fmt: skip
    trainer = GRPOTrainer("tiny", legs_env(), args)
    trainer.train()
    server = trainer.rollouts.backend._server
    assert not ServerApi(server.base_url).is_healthy()
    assert [entry["policy_version"] for entry in training_log(tmp_path)] == [0, 1]
    assert all(entry["sampling/sampling_logp_difference/mean"] < 0.02 for entry in training_log(tmp_path))


def test_vf_eval_of_an_environment_package(server, tmp_path):
    run(
        [
            "vf-eval", "reasoning_gym_tasks", "-m", "tiny", "-b", f"{server.base_url}/v1", "-k", "UNUSED_KEY",
            "-n", "3", "-r", "2", "-t", "64", "-T", "1.0", "-a", json.dumps({"gym": "leg_counting"}),
            "-s", "-o", str(tmp_path), "--disable-tui",
        ]
    )  # fmt: skip
    (results,) = tmp_path.rglob("results.jsonl")
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    assert len(rows) == 6
    assert all("check_answer_reward_func" in row for row in rows) or all(row["reward"] >= 0 for row in rows)
    assert all(not row.get("error") for row in rows)


def test_scripts_run_under_accelerate_with_two_processes(tmp_path):
    command = [
        "torchrun", "--nproc_per_node", "2", "--master_addr", "127.0.0.1", "--master_port", "29517",
        "train_ultra_minimal.py", *small(str(tmp_path)), "--use_cpu", "true",
    ]  # fmt: skip
    run(command)
    assert len(training_log(tmp_path)) == 3


def test_an_environment_package_installs_with_vf_install():
    run(["vf-install", "question_answer", "-p", "environments"], timeout=300)
    run([sys.executable, "-c", "import question_answer; question_answer.load_environment"])
