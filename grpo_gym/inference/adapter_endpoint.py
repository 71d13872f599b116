"""vLLM's side of a LoRA sync: `POST /lora_adapter` replaces the one adapter that the trainer trains.

An ASGI middleware behind the guard. The body is a safetensors file with PEFT's names whose metadata carries the
adapter's configuration; it is written into the server's own folder, from which vLLM's workers load it. vLLM's own
`/v1/load_lora_adapter` reads whatever path it is told, and with `load_inplace` it reads it again at every step; here
the adapter keeps its number, requests in flight go on with the new weights, and it is read once.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from pathlib import Path
from typing import Any

from grpo_gym.inference.weight_transfer_guard import ADAPTER_PATH, Answer, GuardSettings, refuse, send_answer

ADAPTER_NAME = "policy-adapter"
"""The model name under which the trained adapter is served."""
CONFIG_KEY = "adapter_config"


_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM accepts as `--max-lora-rank`."""


def served_rank(rank: int) -> int:
    """The smallest `--max-lora-rank` that is large enough for an adapter of this rank."""
    return next((choice for choice in _RANKS if choice >= rank), rank)


class AdapterEndpoint:
    """The middleware; vLLM builds it from `--middleware`.

    Args:
        app: the application behind it.
        settings: None reads them from the environment.
    """

    def __init__(self, app: Any, settings: GuardSettings | None = None) -> None:
        self._app = app
        lease = (settings or GuardSettings.from_environment()).lease_path
        self._folder = Path(lease).parent / "adapter"

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        """Load an adapter, or pass the request on."""
        if scope["type"] != "http" or scope["path"] != ADAPTER_PATH:
            await self._app(scope, receive, send)
            return
        answer = await self._answer(await _read_body(receive), scope["app"].state.openai_serving_models)
        await send_answer(answer, send)

    async def _answer(self, body: bytes, models: Any) -> Answer:
        try:
            write_adapter(body, self._folder)
        except ValueError as error:
            return refuse(HTTPStatus.BAD_REQUEST, str(error))
        failure = await load_in_place(models, str(self._folder))
        if failure is not None:
            return refuse(HTTPStatus.BAD_REQUEST, failure)
        return Answer(HTTPStatus.OK, {"model": ADAPTER_NAME})


def write_adapter(body: bytes, folder: Path) -> None:
    """Write what PEFT would have written: `adapter_model.safetensors` and `adapter_config.json`.

    Raises:
        ValueError: not a safetensors file with an adapter's configuration in its metadata.
    """
    size = int.from_bytes(body[:8], "little")
    try:
        config = json.loads(body[8 : 8 + size])["__metadata__"][CONFIG_KEY]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the body is not a LoRA adapter with its configuration ({error!r}).") from error
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(config)
    (folder / "adapter_model.safetensors").write_bytes(body)


async def load_in_place(models: Any, path: str) -> str | None:
    """Have every engine load the adapter under its old number; what went wrong, or None.

    Args:
        models: vLLM's `OpenAIServingModels`.
        path: folder of the adapter.
    """
    from vllm.entrypoints.serve.engine.protocol import ErrorResponse
    from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest

    request = LoadLoRAAdapterRequest(lora_name=ADAPTER_NAME, lora_path=path, load_inplace=True)
    outcome = await models.load_lora_adapter(request)
    if isinstance(outcome, ErrorResponse):
        return str(outcome.error.message)
    # Requests carry this object: with the flag still set, workers would read the files again at every step.
    models.lora_requests[ADAPTER_NAME].load_inplace = False
    return None


async def _read_body(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts)
