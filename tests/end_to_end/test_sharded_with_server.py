"""Sharded training with rollouts from a real vf-vllm: asynchronous, whole weights on the server, one trainer each."""

import json
import math
from urllib.parse import urlparse

import pytest
from transformers import AutoModelForCausalLM

from grpo_gym.inference.server_api import ServerApi, server_logprobs
from grpo_gym.inference.weight_sync import ServerWeightSync
from tests.end_to_end.conftest import TEXT, mean_difference, model_logprobs
from tests.end_to_end.launching import launch
from tests.end_to_end.test_faults import failed_launch


def arguments(server, folder, **more):
    settings = {
        "use_vllm": "true", "vllm_mode": "server", "vllm_server_port": urlparse(server.base_url).port,
        "max_steps": 4, "output_dir": folder, "per_device_train_batch_size": 16, "num_generations": 8,
        "eval_num_problems": 4, "num_completions_to_print": 0, "report_to": "none", "learning_rate": 1e-4,
        "save_strategy": "no", "max_staleness": 1, **more,
    }  # fmt: skip
    return [str(part) for name, value in settings.items() for part in (f"--{name}", value)]


@pytest.mark.parametrize("config", ["configs/zero3.yaml", "configs/accelerate/fsdp2.yaml"])
def test_overlapped_rollouts_under_sharding(config, server, tmp_path):
    launch(config, 2, "train_minimal.py", *arguments(server, tmp_path))
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    steps = [entry for entry in history if "loss" in entry]
    assert [entry["policy_version"] for entry in steps] == [0, 1, 2, 3]
    # Rollouts went on while the step before trained: with strictly on-policy ones all ages would be 0.
    assert [entry["rollouts/staleness/max"] for entry in steps] == [0, 1, 1, 1]
    for entry in steps:
        assert math.isfinite(entry["reward"])
        assert entry["sampling/sampling_logp_difference/mean"] < 0.05  # one small step old at most
    trained = AutoModelForCausalLM.from_pretrained(tmp_path)
    served = server_logprobs(server.base_url, "tiny", TEXT)
    assert mean_difference(served, model_logprobs(trained)) < 1e-3
    assert ServerApi(server.base_url).get("/weight_info")["weight_version"] == "4"


def test_a_second_trainer_is_refused_in_one_line(server, tmp_path):
    first = ServerWeightSync(server.base_url, timeout=120)
    first.connect("cpu")
    try:
        text = failed_launch(["python", "train_minimal.py", *arguments(server, tmp_path)])
    finally:
        first.close()
    assert "Another trainer holds this server" in text.splitlines()[-1]
