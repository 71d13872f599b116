"""Tokens per second of one real vf-vllm: through environment and `RolloutEngine`, and through bare HTTP clients.

All ways send the same prompts with the same sampling parameters, equally many at once; the bare clients do nothing
else, so that they reach what the server can do.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import aiohttp
from openai import AsyncOpenAI

from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.inference.vllm_client import request_body
from grpo_gym.rollouts.engine import RolloutEngine

REQUEST_SECONDS = 600.0
TokensPerSecond = Callable[[], float]


def make_ways(
    engine: RolloutEngine, url: str, model: str, num_prompts: int, group_size: int, params: SamplingParams
) -> dict[str, TokensPerSecond]:
    """What is measured, by name; all of it is in flight at once."""
    dataset = engine.env.get_dataset()
    rows = [dataset[index % len(dataset)] for index in range(num_prompts)]
    prompts = [engine.renderer.prompt_ids(row["prompt"]) for row in rows for _ in range(group_size)]
    return {
        "environment": lambda: engine_throughput(engine, rows, group_size, params),
        "bare_openai": lambda: asyncio.run(openai_throughput(url, model, prompts, params)),
        "bare_aiohttp": lambda: asyncio.run(aiohttp_throughput(url, model, prompts, params)),
    }


def engine_throughput(
    engine: RolloutEngine, rows: Sequence[dict[str, Any]], group_size: int, params: SamplingParams
) -> float:
    """Tokens per second through environment, scoring and orchestrator.

    Raises:
        RuntimeError: a rollout failed, so that the rate would mean nothing.
    """
    start = time.perf_counter()
    groups = engine.generate(rows, group_size, params, [None] * len(rows))
    seconds = time.perf_counter() - start
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    failed = [rollout.error for rollout in rollouts if not rollout.is_valid]
    if failed:
        raise RuntimeError(f"{len(failed)} rollouts failed: {failed[0]}")
    return sum(len(rollout.completion_ids) for rollout in rollouts) / seconds


async def openai_throughput(
    url: str, model: str, prompts: Sequence[list[int]], params: SamplingParams
) -> float:
    """Tokens per second of OpenAI's own client on `/v1/completions`, which is asked for what training needs."""
    body = request_body(model, [], params)
    extra = {name: body[name] for name in ("top_k", "min_p", "repetition_penalty", "return_token_ids")}
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=REQUEST_SECONDS) as client:

        async def ask(prompt: list[int]) -> int:
            answer = await client.completions.create(
                model=model,
                prompt=prompt,
                max_tokens=params.max_tokens,
                temperature=params.temperature,
                top_p=params.top_p,
                logprobs=0,
                extra_body=extra,
            )
            assert answer.usage is not None
            return answer.usage.completion_tokens

        start = time.perf_counter()
        tokens = await asyncio.gather(*(ask(prompt) for prompt in prompts))
        return sum(tokens) / (time.perf_counter() - start)


async def aiohttp_throughput(
    url: str, model: str, prompts: Sequence[list[int]], params: SamplingParams
) -> float:
    """Tokens per second of the least that a client can do: post, read, parse."""
    timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
    headers = {"Content-Type": "application/json"}
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout, headers=headers) as session:

        async def ask(prompt: list[int]) -> int:
            body = json.dumps(request_body(model, prompt, params)).encode()
            async with session.post(f"{url}/v1/completions", data=body) as response:
                response.raise_for_status()
                return int(json.loads(await response.read())["usage"]["completion_tokens"])

        start = time.perf_counter()
        tokens = await asyncio.gather(*(ask(prompt) for prompt in prompts))
        return sum(tokens) / (time.perf_counter() - start)
