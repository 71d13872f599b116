"""`VLLMSampler`: token ids to vf-vllm servers and back, over aiohttp.

The stock OpenAI client reaches about 125 requests a second on a core; reading only the fields that training
needs from `/v1/completions` reaches several times that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aiohttp

from grpo_gym.inference.sampler import InferenceError, PromptTooLongError, SampleResult, SamplingParams

_MAX_ATTEMPTS = 4
_FIRST_BACKOFF_SECONDS = 0.5
_TOO_LONG = ("maximum context length", "max_model_len", "maximum model length", "too long", "longer than")


class VLLMSampler:
    """Samples on one or several servers of the same weights; the least busy one gets the next request.

    Args:
        base_urls: such as `http://127.0.0.1:8000`.
        model: the name the servers serve.
        request_timeout: seconds one completion may take.
    """

    def __init__(self, base_urls: Sequence[str], model: str, request_timeout: float = 600.0) -> None:
        self._in_flight = {url.rstrip("/"): 0 for url in base_urls}
        self._model = model
        self._timeout = aiohttp.ClientTimeout(total=request_timeout, sock_connect=60.0)
        self._session: aiohttp.ClientSession | None = None
        self.policy_version = 0

    async def sample(self, prompt_ids: list[int], params: SamplingParams) -> SampleResult:
        """Sample one completion; connection errors and HTTP 5xx are tried again, on the least busy server.

        Raises:
            PromptTooLongError: the prompt leaves no room in the server's context.
            InferenceError: the server refuses, fails or times out.
        """
        version = self.policy_version
        body = request_body(self._model, prompt_ids, params)
        for attempt in range(_MAX_ATTEMPTS):
            try:
                return parse_completion(await self._post(body), version)
            except _PassingError as error:
                if attempt == _MAX_ATTEMPTS - 1:
                    raise InferenceError(str(error)) from error
            await asyncio.sleep(_FIRST_BACKOFF_SECONDS * 2**attempt)
        raise AssertionError("unreachable: the last attempt returns or raises")

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, body: dict[str, Any]) -> dict[str, Any]:
        url = min(self._in_flight, key=self._in_flight.__getitem__)
        self._in_flight[url] += 1
        try:
            async with self._open_session().post(f"{url}/v1/completions", json=body) as response:
                if response.status == 200:
                    return await response.json()
                raise _error_of(url, response.status, await response.text())
        except TimeoutError as error:
            raise InferenceError(f"{url} did not answer within {self._timeout.total} s") from error
        except aiohttp.ClientError as error:
            raise _PassingError(f"{url}: {type(error).__name__}: {error}") from error
        finally:
            self._in_flight[url] -= 1

    def _open_session(self) -> aiohttp.ClientSession:
        # Opened inside the event loop that uses it. vLLM schedules; the client does not queue.
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, timeout=self._timeout, trust_env=False)
        return self._session


class _PassingError(Exception):
    """A failure that may be gone the next time."""


def request_body(model: str, prompt_ids: list[int], params: SamplingParams) -> dict[str, Any]:
    """A `/v1/completions` request for ids and the log-probs of what is sampled."""
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
        InferenceError: the server was aborted, or gave no ids (it is not vLLM, or too old).
    """
    choice = answer["choices"][0]
    ids, logprobs = choice.get("token_ids"), (choice.get("logprobs") or {}).get("token_logprobs")
    reason = choice.get("finish_reason")
    if ids is None or logprobs is None:
        raise InferenceError("the server returned no token_ids or logprobs; it must be a vf-vllm server")
    if len(ids) != len(logprobs):
        raise InferenceError(f"the server returned {len(ids)} token_ids but {len(logprobs)} logprobs")
    if reason not in ("stop", "length"):
        raise InferenceError(f"the server ended the completion with finish_reason={reason!r}")
    return SampleResult(ids, logprobs, reason, version)


def _error_of(url: str, status: int, text: str) -> Exception:
    message = f"{url}: HTTP {status}: {text[:300]}"
    if status == 400 and any(phrase in text for phrase in _TOO_LONG):
        return PromptTooLongError(message)
    return _PassingError(message) if status >= 500 or status == 429 else InferenceError(message)
