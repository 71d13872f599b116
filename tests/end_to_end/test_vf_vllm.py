"""The sampler and weight updates under way, against a real vf-vllm."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
import torch

from grpo_gym.inference.sampler import PromptTooLongError, SamplingParams
from grpo_gym.inference.server_api import ServerApi, data_parallel_size, server_logprobs
from grpo_gym.inference.vllm_client import VLLMSampler
from grpo_gym.inference.weight_sync import ServerWeightSync
from tests.end_to_end.conftest import TEXT, mean_difference, model_logprobs

MAX_MODEL_LEN = 640
TEMPERATURE = 0.7


@pytest.fixture
def original(server, tiny_model):
    """A connected trainer, with the original weights on the server."""
    sync = ServerWeightSync(server.base_url, timeout=120)
    sync.connect("cpu")
    sync.push(tiny_model.named_parameters(), 1)
    yield sync
    sync.close()


def with_sampler(server, use):
    async def run():
        sampler = VLLMSampler([server.base_url], "tiny", request_timeout=120)
        try:
            return await use(sampler)
        finally:
            await sampler.close()

    return asyncio.run(run())


@torch.no_grad()
def scaled_logprobs(model, prompt_ids, completion_ids):
    """Log-probs of the completion at TEMPERATURE, from a plain forward pass."""
    logits = model(torch.tensor([prompt_ids + completion_ids])).logits[0, len(prompt_ids) - 1 : -1]
    targets = torch.tensor(completion_ids)[:, None]
    return (logits.float() / TEMPERATURE).log_softmax(-1).gather(1, targets)[:, 0].tolist()


def test_samples_are_those_of_the_tempered_policy_with_their_end(server, original, tiny_model, tokenizer):
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "How many legs do 2 dogs have?"}],
        add_generation_prompt=True,
        return_dict=False,
    )
    params = SamplingParams(max_tokens=200, temperature=TEMPERATURE)

    async def use(sampler):
        return await asyncio.gather(*(sampler.sample(prompt, params) for _ in range(8)))

    results = with_sampler(server, use)
    assert len({tuple(result.completion_ids) for result in results}) > 1
    assert any(result.finish_reason == "stop" for result in results)
    for result in results:
        assert (
            mean_difference(result.logprobs, scaled_logprobs(tiny_model, prompt, result.completion_ids))
            < 1e-3
        )
        ended = result.completion_ids[-1] == tokenizer.eos_token_id
        assert ended == (result.finish_reason == "stop")


def test_a_seed_repeats_a_sample_and_max_tokens_cuts_it(server, original):
    params = SamplingParams(max_tokens=5, seed=11)

    async def use(sampler):
        return [await sampler.sample(TEXT, params) for _ in range(2)]

    first, second = with_sampler(server, use)
    assert first.completion_ids == second.completion_ids
    assert len(first.completion_ids) <= 5


@pytest.mark.parametrize("length", [MAX_MODEL_LEN, MAX_MODEL_LEN + 100])
def test_a_prompt_without_room_has_its_own_error(server, length):
    prompt = [20 + i % 50 for i in range(length)]
    with pytest.raises(PromptTooLongError):
        with_sampler(server, lambda sampler: sampler.sample(prompt, SamplingParams(max_tokens=8)))


def test_requests_in_flight_outlive_an_update(server, original, tiny_model):
    """Requests that are paused for an update go on with the new weights and lose no token."""
    params = SamplingParams(max_tokens=300, temperature=1.0)

    async def use(sampler):
        sampler.policy_version = 1
        running = [asyncio.create_task(sampler.sample([20, 21, 22 + i], params)) for i in range(6)]
        await asyncio.sleep(0.3)
        for parameter in tiny_model.parameters():
            parameter.data.mul_(0.9)
        await asyncio.to_thread(original.push, tiny_model.named_parameters(), 2)
        sampler.policy_version = 2
        return [*await asyncio.gather(*running), await sampler.sample([20, 21], params)]

    *begun_before, begun_after = with_sampler(server, use)
    assert all(result.policy_version == 1 for result in begun_before)
    assert begun_after.policy_version == 2
    assert ServerApi(server.base_url).get("/weight_info")["weight_version"] == "2"
    assert mean_difference(server_logprobs(server.base_url, "tiny", TEXT), model_logprobs(tiny_model)) < 1e-3


def test_a_replica_can_be_asked_for(server, original):
    assert data_parallel_size(server.base_url) == 1
    asked = server_logprobs(server.base_url, "tiny", TEXT, data_parallel_rank=0)
    assert mean_difference(asked, server_logprobs(server.base_url, "tiny", TEXT)) < 1e-5


def test_a_server_stops_when_its_trainer_is_killed(tmp_path):
    script = (
        "import sys; from grpo_gym.inference.colocate import ColocatedServer\n"
        "ColocatedServer('tiny', log_path=sys.argv[1]).start()\n"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script, str(tmp_path / "log")])
    try:
        deadline = time.monotonic() + 120
        while not (children := psutil.Process(trainer.pid).children()):
            assert time.monotonic() < deadline, "the trainer started no server"
            assert trainer.poll() is None
            time.sleep(0.2)
        (server,) = children
        time.sleep(3)  # let Python reach the watcher
    finally:
        os.kill(trainer.pid, signal.SIGKILL)
        trainer.wait()
    server.wait(timeout=90)
    assert not server.is_running()
