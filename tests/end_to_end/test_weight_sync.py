"""Weights pushed to a real vf-vllm arrive whole: log-probs say so."""

import json
import urllib.request

import pytest
import torch

from grpo_gym.inference.colocate import ColocatedServer
from grpo_gym.inference.server_api import ServerApi, check_server, data_parallel_size, server_logprobs
from grpo_gym.inference.weight_sync import ServerWeightSync, WeightSyncError
from grpo_gym.training.weights import iter_full_weights
from tests.end_to_end.conftest import SERVER_FLAGS, TEXT, mean_difference, model_logprobs


def perturb(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.02)


@pytest.fixture
def sync(server):
    link = ServerWeightSync(server.base_url, timeout=120, bucket_bytes=2**20)
    link.connect("cpu")
    yield link
    link.close()


def test_pushed_weights_are_served_with_tied_embeddings_repacked(server, sync, tiny_model):
    for version in (1, 2):
        perturb(tiny_model, version)
        before = server_logprobs(server.base_url, "tiny", TEXT)
        sync.push(iter_full_weights(tiny_model), version)
        served = server_logprobs(server.base_url, "tiny", TEXT)
        assert mean_difference(before, served) > 0.05
        assert mean_difference(served, model_logprobs(tiny_model)) < 1e-3
        assert ServerApi(server.base_url).get("/weight_info")["weight_version"] == str(version)


def test_a_second_trainer_is_refused_until_the_first_has_left(server, sync):
    second = ServerWeightSync(server.base_url, timeout=20)
    with pytest.raises(WeightSyncError, match=r"409.*Another trainer holds this server"):
        second.connect("cpu")
    sync.close()
    second = ServerWeightSync(server.base_url, timeout=60)
    second.connect("cpu")
    second.close()


def test_the_server_is_an_openai_server(server):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "How many legs?"}], "max_tokens": 8}
    request = urllib.request.Request(
        f"{server.base_url}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        assert json.load(response)["choices"][0]["message"]["role"] == "assistant"


def test_wrong_model_and_short_context_are_named(server):
    with pytest.raises(ValueError, match=r"serves .*tiny.*but the trainer trains other/model"):
        check_server(server.base_url, "other/model", 10)
    with pytest.raises(ValueError, match=r"max_model_len=640.*--max-model-len 5000"):
        check_server(server.base_url, "tiny", 5000)


def test_every_data_parallel_rank_gets_the_weights(tmp_path, tiny_model):
    """Two engines behind one port: each must serve the new weights."""
    flags = [*SERVER_FLAGS, "--data-parallel-size", "2"]
    running = ColocatedServer("tiny", max_model_len=640, extra_args=flags, log_path=tmp_path / "log")
    running.start(timeout=400)
    try:
        sync = ServerWeightSync(running.base_url, timeout=120)
        sync.connect("cpu")
        perturb(tiny_model, 5)
        sync.push(iter_full_weights(tiny_model), 1)
        expected = model_logprobs(tiny_model)
        assert data_parallel_size(running.base_url) == 2
        for rank in range(2):
            served = server_logprobs(running.base_url, "tiny", TEXT, data_parallel_rank=rank)
            assert mean_difference(served, expected) < 1e-3
        sync.close()
    finally:
        running.stop()
