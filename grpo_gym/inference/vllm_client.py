"""`VLLMSampler`: token ids to vf-vllm servers and back, over aiohttp.

The stock OpenAI client reaches about 125 requests a second on a core; reading only the fields that training
needs from `/v1/completions` reaches several times that.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from grpo_gym.inference.sampler import (
    ImagePrompt,
    InferenceError,
    PromptTooLongError,
    SampleResult,
    SamplingParams,
)
from grpo_gym.inference.server_api import API_KEY_VARIABLE
from grpo_gym.inference.server_pool import PooledServer, ServerPool
from grpo_gym.inference.weight_transfer_guard import INSTANCE_HEADER, RESTARTED
from grpo_gym.vision.server_chat import CHAT_ROUTE, chat_request, completions_answer

_MAX_ATTEMPTS = 5
_FIRST_BACKOFF_SECONDS = 0.5
_CONNECT_SECONDS = 60.0
_TOO_LONG = ("maximum context length", "max_model_len", "maximum model length", "too long", "longer than")


class VLLMSampler:
    """Samples on one or several servers of the same weights; the least busy one gets the next request.

    Set `policy_version` whenever the servers have new weights: a sample carries the version that began it.
    A request that breaks off with its server is made again on another one. When none answers, a request fails
    after 5 attempts in about 8 seconds.

    Args:
        base_urls: such as `http://127.0.0.1:8000`.
        model: the name the servers serve.
        request_timeout: seconds one completion may take.
        api_key: for servers with `--api-key`; the variable VLLM_API_KEY when None.
    """

    def __init__(
        self,
        base_urls: Sequence[str],
        model: str,
        request_timeout: float = 600.0,
        api_key: str | None = None,
    ) -> None:
        self._pool = ServerPool(base_urls, request_timeout, _CONNECT_SECONDS)
        self._model = model
        self._request_timeout = request_timeout
        self._headers = {"Content-Type": "application/json"}
        api_key = api_key or os.environ.get(API_KEY_VARIABLE)
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self.policy_version = 0

    def use(self, instances: Mapping[str, str | None]) -> None:
        """Sample from these servers only, until the next call; from any thread.

        Args:
            instances: URL -> the start of the server (`instance` in its `/vf_info`) that has the weights. A
                server that was started again since refuses, and its requests go to the others.
        """
        self._pool.use(instances)

    async def sample(
        self, prompt_ids: list[int], params: SamplingParams, images: ImagePrompt | None = None
    ) -> SampleResult:
        """Sample one completion.

        Connection errors, HTTP 5xx and aborted requests are tried again, on another server where there is one.

        Raises:
            PromptTooLongError: the prompt leaves no room in the server's context.
            InferenceError: the server refuses, fails or times out, or no server is left.
        """
        request, route = request_body(self._model, prompt_ids, params), "/v1/completions"
        if images is not None:
            request, route = chat_request(request, images), CHAT_ROUTE
        body = json.dumps(request).encode()
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            version = self.policy_version
            try:
                answer = await self._post(body, route)
                if images is not None:
                    answer = completions_answer(answer, prompt_ids)
                return parse_completion(answer, version)
            except _PassingError as error:
                if attempt == _MAX_ATTEMPTS:
                    raise InferenceError(f"{error} ({attempt} attempts)") from error
            await asyncio.sleep(_FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()

    async def _post(self, body: bytes, route: str) -> dict[str, Any]:
        with self._pool.choose() as server:
            try:
                return await self._ask(server, body, route)
            except TimeoutError as error:
                self._pool.avoid(server)
                raise InferenceError(
                    f"{server.base_url} did not answer within {self._request_timeout} s"
                ) from error
            except (aiohttp.ClientError, ConnectionError) as error:
                server.is_down = True
                raise _PassingError(f"{server.base_url}: {type(error).__name__}: {error}") from error
            except _PassingError:
                self._pool.avoid(server)
                raise

    async def _ask(self, server: PooledServer, body: bytes, route: str) -> dict[str, Any]:
        headers = self._headers
        if server.instance is not None:
            headers = {**headers, INSTANCE_HEADER: server.instance}
        url = server.base_url + route
        async with self._pool.session(server).post(url, data=body, headers=headers) as response:
            answer = await response.read()
        if response.status == 200:
            server.is_down = False
            return _loaded(server.base_url, answer)
        if response.status == RESTARTED and server.instance == headers.get(INSTANCE_HEADER):
            server.lost = "it was restarted and has old weights until the next weight sync"
        raise _error_of(server.base_url, response.status, answer.decode(errors="replace"))


class _PassingError(Exception):
    """A failure that may be gone the next time."""


def request_body(model: str, prompt_ids: list[int], params: SamplingParams) -> dict[str, Any]:
    """A `/v1/completions` request for ids and the log-probs of what is sampled.

    Every sampling parameter is spelled out: vLLM fills gaps from the model's generation_config.json.
    """
    body: dict[str, Any] = {
        "model": model,
        "prompt": prompt_ids,
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
        "top_p": params.top_p,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": params.repetition_penalty,
        "logprobs": 0,
        "return_token_ids": True,
    }
    if params.stop:
        body["stop"] = list(params.stop)
    if params.seed is not None:
        body["seed"] = params.seed
    return body


def parse_completion(answer: dict[str, Any], version: int) -> SampleResult:
    """The sampled ids and log-probs of a `/v1/completions` answer.

    Raises:
        InferenceError: the server gave no ids (it is not vLLM, or too old), or ended for a reason of its own.
    """
    choices = answer.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise InferenceError(
            f"the server's answer has no choices but {str(answer)[:200]!r}; it must be a vf-vllm server"
        )
    choice = choices[0]
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    reason = choice.get("finish_reason")
    if reason == "abort":
        raise _PassingError("the server aborted the request")
    if reason not in ("stop", "length"):
        raise InferenceError(f"the server ended the completion with finish_reason={reason!r}")
    if ids is None or logprobs is None:
        raise InferenceError("the server returned no token_ids or logprobs; it must be a vf-vllm server")
    if len(ids) != len(logprobs):
        raise InferenceError(f"the server returned {len(ids)} token_ids but {len(logprobs)} logprobs")
    return SampleResult(ids, logprobs, reason, version)


def _loaded(url: str, answer: bytes) -> dict[str, Any]:
    """The JSON object of an answer with status 200; a proxy or another program may say something else."""
    try:
        loaded = json.loads(answer)
    except ValueError as error:
        text = answer[:200].decode(errors="replace")
        raise InferenceError(
            f"{url} answered with HTTP 200, but not with JSON: {text!r}; is it a vf-vllm server?"
        ) from error
    if not isinstance(loaded, dict):
        raise InferenceError(
            f"{url} answered with {str(loaded)[:200]!r}, not an object; is it a vf-vllm server?"
        )
    return loaded


def _error_of(url: str, status: int, text: str) -> Exception:
    message = f"{url}: HTTP {status}: {text[:300]}"
    if status == 400 and any(phrase in text for phrase in _TOO_LONG):
        return PromptTooLongError(message)
    is_passing = status >= 500 or status in (429, RESTARTED)
    return _PassingError(message) if is_passing else InferenceError(message)
