"""Talking to a vf-vllm server from the trainer's main thread: health, what it serves, weight-sync calls."""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from grpo_gym.inference.weight_transfer_guard import TOKEN_HEADER, TOKEN_VARIABLE, TRAINER_HEADER
from grpo_gym.models import resolve_model

API_KEY_VARIABLE = "VLLM_API_KEY"
"""The variable from which vLLM itself takes the key that `--api-key` may also give."""
_POLL_SECONDS = 0.5


class ServerError(RuntimeError):
    """A server answered with an error, or did not answer."""


class ServerApi:
    """One server's HTTP endpoints.

    Args:
        base_url: such as `http://127.0.0.1:8000`.
        token: the server's token; the variable VF_VLLM_TOKEN when None.
        trainer: this trainer's name, for the server's lease.
    """

    def __init__(self, base_url: str, token: str | None = None, trainer: str = "") -> None:
        self.base_url = base_url.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        token = token or os.environ.get(TOKEN_VARIABLE)
        if token:
            self._headers[TOKEN_HEADER] = token
        if api_key := os.environ.get(API_KEY_VARIABLE):
            self._headers["Authorization"] = f"Bearer {api_key}"
        if trainer:
            self._headers[TRAINER_HEADER] = trainer

    def get(self, path: str, timeout: float = 10.0) -> dict[str, Any]:
        """GET a JSON answer.

        Raises:
            ServerError: no answer, or an error.
        """
        return self._call("GET", path, None, timeout, {})

    def post(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        timeout: float = 60.0,
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any]:
        """POST JSON and read the JSON answer.

        Raises:
            ServerError: no answer within `timeout` seconds, or an error.
        """
        return self._call("POST", path, body or {}, timeout, headers or {})

    def post_bytes(self, path: str, content: bytes, timeout: float = 60.0) -> dict[str, Any]:
        """POST raw bytes and read the JSON answer.

        Raises:
            ServerError: no answer within `timeout` seconds, or an error.
        """
        return self._call("POST", path, content, timeout, {"Content-Type": "application/octet-stream"})

    def is_healthy(self) -> bool:
        """Whether the server is up and its engine alive."""
        try:
            self.get("/health", timeout=5.0)
        except ServerError:
            return False
        return True

    def _call(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | bytes | None,
        timeout: float,
        headers: dict[str, str],
    ) -> dict[str, Any]:
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        request = urllib.request.Request(self.base_url + path, data, self._headers | headers, method=method)
        try:
            with _opener.open(request, timeout=timeout) as response:
                text = response.read()
        except urllib.error.HTTPError as error:
            raise ServerError(
                f"{self.base_url}{path}: HTTP {error.code}: {_message(error.read())}"
            ) from error
        except (OSError, http.client.HTTPException) as error:  # URLError and TimeoutError are OSErrors
            reason = getattr(error, "reason", error)
            raise ServerError(f"{self.base_url}{path}: no answer ({str(reason).strip()})") from error
        try:
            return json.loads(text) if text else {}
        except ValueError as error:
            raise ServerError(
                f"{self.base_url}{path}: the answer is not JSON; is it a vf-vllm server?"
            ) from error


# Servers are addressed directly: a proxy meant for the outside world must not stand in between.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _message(body: bytes) -> str:
    """The message of an error in OpenAI's shape, or the start of whatever came."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return body.decode(errors="replace")[:300]
    error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    return str(error.get("message", error) if isinstance(error, dict) else error)[:300]


def wait_for_server(base_url: str, timeout: float) -> None:
    """Wait until the server is healthy.

    Raises:
        TimeoutError: it was not within `timeout` seconds.
    """
    api = ServerApi(base_url)
    deadline = time.monotonic() + timeout
    announced = False
    while not api.is_healthy():
        if time.monotonic() > deadline:
            raise TimeoutError(
                f"no vf-vllm server answered at {base_url} within {timeout:.0f} s; "
                "start it (vf-vllm --model ... --port ...), check vllm_server_host and vllm_server_port, "
                "or raise vllm_server_timeout."
            )
        if not announced:
            print(f"waiting up to {timeout:.0f} s for a vf-vllm server at {base_url} ...", flush=True)
            announced = True
        time.sleep(_POLL_SECONDS)


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The name a server answers to for the trainer's model, and its context length in tokens."""

    name: str
    max_model_len: int


def check_server(base_url: str, model: str, min_model_len: int) -> ServedModel:
    """Check that the server serves the trainer's model, with enough context.

    Raises:
        ValueError: another model, or a `--max-model-len` that is too small.
    """
    cards = ServerApi(base_url).get("/v1/models")["data"]
    names = [card["id"] for card in cards] + [card["root"] for card in cards if card.get("root")]
    known_as = {model, resolve_model(model)}
    matching = [card for card in cards if known_as & {card["id"], card.get("root")}]
    if not matching:
        raise ValueError(
            f"the server at {base_url} serves {', '.join(sorted(set(names)))}, but the trainer trains {model}; "
            f"start it with `vf-vllm --model {model}`."
        )
    length = int(matching[0].get("max_model_len") or min_model_len)
    if length < min_model_len:
        raise ValueError(
            f"the server at {base_url} has max_model_len={length}, but prompts and completions take up to "
            f"{min_model_len} tokens; start it with --max-model-len {min_model_len}, or lower max_prompt_length or "
            "max_completion_length."
        )
    return ServedModel(matching[0]["id"], length)


def data_parallel_size(base_url: str) -> int:
    """How many replicas of the model the server has behind its port.

    Raises:
        ServerError: no answer, or an error.
    """
    api = ServerApi(base_url)
    workers = api.get("/get_world_size")["world_size"]
    return int(workers) // int(api.get("/get_world_size?include_dp=false")["world_size"])


def server_logprobs(
    base_url: str,
    model: str,
    token_ids: list[int],
    data_parallel_rank: int | None = None,
    timeout: float = 60.0,
) -> list[float]:
    """The server's log-prob of every token of a text after the first, at temperature 1, in nats.

    Args:
        base_url: the server.
        model: the name it serves.
        token_ids: the text.
        data_parallel_rank: which replica is asked; None leaves it to the server.
        timeout: seconds to wait for the answer, behind whatever the server is generating.

    Raises:
        ServerError: no answer, or an error.
    """
    body = {"model": model, "prompt": token_ids, "max_tokens": 1, "prompt_logprobs": 0, "temperature": 1.0}
    headers = {} if data_parallel_rank is None else {"X-data-parallel-rank": str(data_parallel_rank)}
    choice = ServerApi(base_url).post("/v1/completions", body, timeout, headers=headers)["choices"][0]
    positions = choice["prompt_logprobs"][1:]
    return [position[str(token)]["logprob"] for token, position in zip(token_ids[1:], positions, strict=True)]
