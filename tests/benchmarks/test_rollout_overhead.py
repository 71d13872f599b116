"""The stub server and sampler behind `rollout_overhead`."""

import asyncio

import pytest

from benchmarks.rollout_overhead import engine_rate, make_engine, stub_server
from benchmarks.zero_latency import COMPLETION_TOKENS, ZeroLatencySampler
from grpo_gym.inference.sampler import InferenceError, SamplingParams
from grpo_gym.inference.vllm_client import VLLMSampler


class BrokenSampler(ZeroLatencySampler):
    async def sample(self, prompt_ids, params):
        raise InferenceError("down")


def test_zero_latency_rollouts_are_whole():
    result = asyncio.run(ZeroLatencySampler().sample([1], SamplingParams(max_tokens=COMPLETION_TOKENS)))
    assert len(result.completion_ids) == len(result.logprobs) == COMPLETION_TOKENS


def test_a_rate_is_not_taken_from_failed_rollouts():
    engine = make_engine(BrokenSampler())
    try:
        with pytest.raises(RuntimeError, match="rollouts failed"):
            engine_rate(engine, num_prompts=2, group_size=2)
    finally:
        engine.close()


def test_the_stub_server_answers_the_trainers_client():
    with stub_server() as url:
        engine = make_engine(VLLMSampler([url], model="policy"))
        try:
            assert engine_rate(engine, num_prompts=2, group_size=2).by_core > 0
        finally:
            engine.close()
