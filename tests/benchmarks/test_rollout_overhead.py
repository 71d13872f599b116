"""The stub server and sampler behind `rollout_overhead`."""

import asyncio
import contextlib

import pytest

from benchmarks.bare_client import make_ways
from benchmarks.harness import Result
from benchmarks.rollout_overhead import add_throughputs, engine_rate, make_engine, stub_server
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


def test_bare_clients_and_the_environment_count_the_same_tokens():
    params = SamplingParams(max_tokens=COMPLETION_TOKENS)
    with stub_server() as url, contextlib.closing(make_engine(VLLMSampler([url], model="policy"))) as engine:
        ways = make_ways(engine, url, "policy", num_prompts=2, group_size=2, params=params)
        rates = {name: measure() for name, measure in ways.items()}
    assert set(rates) == {"environment", "bare_openai", "bare_aiohttp"}
    assert all(rate > 0 for rate in rates.values())


def test_shares_of_a_real_servers_throughput_are_taken_round_by_round():
    result = Result("rollout_overhead", [])
    add_throughputs(result, {"bare_openai": [100.0, 200.0, 100.0], "environment": [98.0, 196.0, 99.0]})
    assert result.figures["environment_share_of_bare_openai"] == pytest.approx(0.98)
    assert result.figures["environment_share_of_bare_openai_max"] == pytest.approx(0.99)
    assert result.figures["tokens_per_second_environment"] == 99.0
