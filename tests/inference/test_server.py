"""`vf-vllm`'s command line: vLLM's flags, a trainer's defaults, one-line errors. No server is started."""

import argparse
import json
import os
import socket
import subprocess
import sys

import pytest

from grpo_gym.inference import server
from grpo_gym.models import TINY_MODEL_PATH

COMMAND_LINES = {
    "defaults": ["--model", "tiny"],
    "by_position": ["tiny", "--port", "8123"],
    "vllm_flags": [
        "--model", "tiny", "--data-parallel-size", "2", "--tensor-parallel-size", "1", "--enforce-eager",
        "--max-model-len", "512", "--max_num_seqs", "64", "--dtype", "bfloat16", "--served-model-name", "policy",
        "--logprobs-mode", "raw_logprobs", "--api-key", "key", "--host", "127.0.0.2", "--seed", "3",
        "--enable-log-requests", "--no-enable-prefix-caching", "--api-server-count", "2",
    ],
    "public": ["--model", "tiny", "--host", "0.0.0.0"],
    "public_with_token": ["--model", "tiny", "--host", "0.0.0.0", "--weight-sync-token", "secret"],
    "own_backend": ["--model", "tiny", "--weight-transfer-config", '{"backend": "vf_nccl"}'],
    "sized": ["--model", "tiny", "--kv-cache-memory-bytes", "1000000"],
}  # fmt: skip
FIELDS = [
    "model", "model_tag", "served_model_name", "host", "port", "dtype", "logprobs_mode", "data_parallel_size",
    "enforce_eager", "max_model_len", "max_num_seqs", "api_key", "seed", "api_server_count", "middleware",
    "worker_extension_cls", "enable_prefix_caching",
]  # fmt: skip
# In a process of its own: importing vLLM changes settings of the whole process.
SCRIPT = """
import json, os, sys
from grpo_gym.inference import server
server.check_port = lambda args: None
before = dict(os.environ)
found = {}
for name, argv in json.loads(sys.argv[1]).items():
    os.environ.clear()
    os.environ.update(before)
    parser = server.make_parser()
    args = parser.parse_args(argv)
    server.prepare(args, parser).rmdir()
    found[name] = {field: getattr(args, field) for field in json.loads(sys.argv[2])}
    found[name]["backend"] = args.weight_transfer_config.backend
    found[name]["has_token_flag"] = hasattr(args, "weight_sync_token")
    found[name]["guard"] = json.loads(os.environ["VF_VLLM_GUARD"])
    found[name]["env"] = dict(os.environ)
print("FOUND" + json.dumps(found))
"""


@pytest.fixture(scope="module")
def prepared():
    """What becomes of the command lines, all in one process (importing vLLM takes seconds)."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "OMP_", "VF_"))
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(COMMAND_LINES), json.dumps(FIELDS)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("FOUND")]
    return json.loads(line.removeprefix("FOUND")) | {"stderr": done.stderr}


def test_a_trainers_defaults(prepared):
    found = prepared["defaults"]
    assert (found["host"], found["port"], found["logprobs_mode"]) == ("127.0.0.1", 8000, "processed_logprobs")
    assert (found["dtype"], found["api_server_count"], found["backend"]) == ("float32", 1, "gloo")
    assert found["worker_extension_cls"] == "grpo_gym.inference.weight_transfer.WorkerExtension"
    assert "grpo_gym.inference.weight_transfer_guard.WeightSyncGuard" in found["middleware"]
    assert 1 <= int(found["env"]["VLLM_CPU_KVCACHE_SPACE"]) <= 8
    assert found["guard"]["token"] is None
    assert found["guard"]["is_loopback"] is True


@pytest.mark.parametrize("name", ["defaults", "by_position"])
def test_the_packaged_model_is_served_under_its_name_and_path(prepared, name):
    found = prepared[name]
    assert found["model"] == found["model_tag"] == str(TINY_MODEL_PATH)
    assert found["served_model_name"] == ["tiny", str(TINY_MODEL_PATH)]


def test_vllms_own_flags_win(prepared):
    found = prepared["vllm_flags"]
    expected = {
        "data_parallel_size": 2, "enforce_eager": True, "max_model_len": 512, "max_num_seqs": 64,
        "dtype": "bfloat16", "served_model_name": ["policy"], "logprobs_mode": "raw_logprobs", "api_key": ["key"],
        "host": "127.0.0.2", "seed": 3, "enable_prefix_caching": False, "api_server_count": 2,
    }  # fmt: skip
    assert found.items() >= expected.items()
    assert found["env"]["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_beyond_this_machine_a_token_is_needed_and_told(prepared):
    token = prepared["public"]["guard"]["token"]
    assert len(token) >= 24
    assert f"export VF_VLLM_TOKEN={token}" in prepared["stderr"]
    assert prepared["public"]["guard"]["is_loopback"] is False
    assert prepared["public_with_token"]["guard"]["token"] == "secret"
    assert "secret" not in prepared["stderr"]
    assert not prepared["public_with_token"]["has_token_flag"]  # vLLM would log it


def test_the_engine_and_the_cache_size_can_be_chosen(prepared):
    assert prepared["own_backend"]["backend"] == prepared["own_backend"]["guard"]["backend"] == "vf_nccl"
    assert prepared["own_backend"]["worker_extension_cls"] is not None
    assert "VLLM_CPU_KVCACHE_SPACE" not in prepared["sized"]["env"]


def test_a_port_that_is_taken_is_one_line():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        args = argparse.Namespace(uds=None, host="127.0.0.1", port=taken.getsockname()[1])
        with pytest.raises(ValueError, match=rf"cannot listen on 127\.0\.0\.1:{args.port}.*another --port"):
            server.check_port(args)


def test_no_model_is_one_line():
    with pytest.raises(ValueError, match="which model"):
        server.use_model(argparse.Namespace(model=None, model_tag=None))


def test_the_users_variables_come_first(monkeypatch):
    args = argparse.Namespace(
        data_parallel_size=2, tensor_parallel_size=1, kv_cache_memory_bytes=None, gpu_memory_utilization=0.5
    )
    assert "VLLM_CPU_KVCACHE_SPACE" not in server.cpu_environment(args, default_utilization=0.9)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    assert "OMP_NUM_THREADS" not in server.cpu_environment(args, default_utilization=0.5)
