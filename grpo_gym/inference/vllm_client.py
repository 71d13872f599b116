"""`VLLMSampler`: token ids to vf-vllm servers and back, over aiohttp.

The stock OpenAI client reaches about 125 requests a second on a core; reading only the fields that training
needs from `/v1/completions` reaches several times that.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from grpo_gym.inference.sampler import InferenceError, PromptTooLongError, SampleResult, SamplingParams
from grpo_gym.inference.server_api import API_KEY_VARIABLE

_MAX_ATTEMPTS = 5
_FIRST_BACKOFF_SECONDS = 0.5
_CONNECT_SECONDS = 60.0
_AVOID_SECONDS = 10.0
"""How long a server that failed is the last choice."""
_TOO_LONG = ("maximum context length", "max_model_len", "maximum model length", "too long", "longer than")


@dataclass(slots=True)
class _Server:
    """One server as the client sees it."""

    base_url: str
    in_flight: int = 0
    avoid_until: float = 0.0


class VLLMSampler:
    """Samples on one or several servers of the same weights; the least busy one gets the next request.

    Set `policy_version` whenever the servers have new weights: a sample carries the version that began it.

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
        self._servers = [_Server(url.rstrip("/")) for url in base_urls]
        if not self._servers:
            raise ValueError("VLLMSampler needs the URL of at least one server.")
        self._model = model
        self._timeout = aiohttp.ClientTimeout(total=request_timeout, sock_connect=_CONNECT_SECONDS)
        self._headers = {"Content-Type": "application/json"}
        api_key = api_key or os.environ.get(API_KEY_VARIABLE)
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None
        self.policy_version = 0

    async def sample(self, prompt_ids: list[int], params: SamplingParams) -> SampleResult:
        """Sample one completion.

        Connection errors, HTTP 5xx and aborted requests are tried again, on another server where there is one.

        Raises:
            PromptTooLongError: the prompt leaves no room in the server's context.
            InferenceError: the server refuses, fails or times out.
        """
        version = self.policy_version
        body = json.dumps(request_body(self._model, prompt_ids, params)).encode()
        for attempt in range(1, _MAX_ATTEMPTS + 1):
            try:
                return parse_completion(await self._post(body), version)
            except _PassingError as error:
                if attempt == _MAX_ATTEMPTS:
                    raise InferenceError(f"{error} ({attempt} attempts)") from error
            await asyncio.sleep(_FIRST_BACKOFF_SECONDS * 2 ** (attempt - 1))
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, body: bytes) -> dict[str, Any]:
        now = asyncio.get_running_loop().time()
        server = min(self._servers, key=lambda server: (server.avoid_until > now, server.in_flight))
        server.in_flight += 1
        try:
            url = f"{server.base_url}/v1/completions"
            async with self._open_session().post(url, data=body, headers=self._headers) as response:
                answer = await response.read()
                if response.status == 200:
                    return json.loads(answer)
                raise _error_of(server.base_url, response.status, answer.decode(errors="replace"))
        except TimeoutError as error:
            server.avoid_until = now + _AVOID_SECONDS
            raise InferenceError(
                f"{server.base_url} did not answer within {self._timeout.total} s"
            ) from error
        except aiohttp.ClientError as error:
            server.avoid_until = now + _AVOID_SECONDS
            raise _PassingError(f"{server.base_url}: {type(error).__name__}: {error}") from error
        except _PassingError:
            server.avoid_until = now + _AVOID_SECONDS
            raise
        finally:
            server.in_flight -= 1

    def _open_session(self) -> aiohttp.ClientSession:
        # Opened inside the event loop that uses it. vLLM schedules; the client does not queue.
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, trust_env=False)
        return self._session


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
    choice = answer["choices"][0]
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


def _error_of(url: str, status: int, text: str) -> Exception:
    message = f"{url}: HTTP {status}: {text[:300]}"
    if status == 400 and any(phrase in text for phrase in _TOO_LONG):
        return PromptTooLongError(message)
    return _PassingError(message) if status >= 500 or status == 429 else InferenceError(message)
