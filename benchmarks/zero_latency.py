"""Samplers and a server that answer at once: what is left is the environment layer's own cost."""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

from aiohttp import web

from grpo_gym.inference.sampler import ImagePrompt, SampleResult, SamplingParams

COMPLETION_TOKENS = 64
TOKEN_IDS = [5 + i for i in range(COMPLETION_TOKENS - 1)] + [2]
LOGPROBS = [-0.5] * COMPLETION_TOKENS


class ZeroLatencySampler:
    """Answers every request with the same tokens, in process."""

    policy_version = 0

    async def sample(
        self, prompt_ids: list[int], params: SamplingParams, images: ImagePrompt | None = None
    ) -> SampleResult:
        """The answer, after one turn of the event loop."""
        await asyncio.sleep(0)
        return SampleResult(list(TOKEN_IDS), list(LOGPROBS), "stop", self.policy_version)

    async def close(self) -> None:
        """Nothing to release."""


async def completions(request: web.Request) -> web.Response:
    """`/v1/completions` as vLLM answers it with `return_token_ids` and `logprobs`."""
    body = await request.json()
    prompt = body["prompt"]
    choice = {
        "index": 0,
        "text": "",
        "finish_reason": "stop",
        "stop_reason": None,
        "token_ids": TOKEN_IDS,
        "prompt_token_ids": prompt,
        "logprobs": {
            "token_logprobs": LOGPROBS,
            "tokens": [f"token_id:{i}" for i in TOKEN_IDS],
            "text_offset": [0] * COMPLETION_TOKENS,
            "top_logprobs": [{} for _ in TOKEN_IDS],
        },
    }
    return web.json_response(_envelope("text_completion", [choice], len(prompt)))


async def chat_completions(request: web.Request) -> web.Response:
    """`/v1/chat/completions` as vLLM answers it with `return_token_ids` and `logprobs`."""
    await request.json()
    content: list[dict[str, Any]] = [
        {"token": f"token_id:{i}", "logprob": p, "bytes": None, "top_logprobs": []}
        for i, p in zip(TOKEN_IDS, LOGPROBS, strict=True)
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "no answer"},
        "finish_reason": "stop",
        "token_ids": TOKEN_IDS,
        "logprobs": {"content": content},
    }
    prompt_ids = list(range(60))
    envelope = _envelope("chat.completion", [choice], len(prompt_ids))
    return web.json_response({**envelope, "prompt_token_ids": prompt_ids})


async def healthy(_: web.Request) -> web.Response:
    """`/health`."""
    return web.Response()


def _envelope(kind: str, choices: list[dict[str, Any]], prompt_tokens: int) -> dict[str, Any]:
    usage = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": COMPLETION_TOKENS,
        "total_tokens": prompt_tokens + COMPLETION_TOKENS,
    }
    return {
        "id": "stub",
        "object": kind,
        "created": int(time.time()),
        "model": "policy",
        "choices": choices,
        "usage": usage,
    }


def serve(port: int) -> None:
    """Serve on 127.0.0.1 until the process is ended."""
    app = web.Application()
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_get("/health", healthy)
    web.run_app(app, host="127.0.0.1", port=port, print=None, access_log=None)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    serve(parser.parse_args().port)
