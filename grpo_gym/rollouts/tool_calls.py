"""Tool calls in sampled text, in the formats that chat templates teach.

A vf-vllm server gets token ids and returns token ids, so calls are read here, for every sampler alike. What
counts as a call is what vLLM's own parsers of these formats count: when one call of a message cannot be
read, the whole message is text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import verifiers as vf
from verifiers.types import ToolCall

ToolCallReader = Callable[[str], tuple[str, list[ToolCall]]]

_HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)
_ID_LENGTH = 9  # the only length that Mistral's templates take
_WRITES = {"tool_call": "<tool_call>", "python_tag": "<|python_tag|>"}


def reader_for(chat_template: str | None) -> ToolCallReader:
    """How to read the calls of a model whose chat template is `chat_template`.

    Templates with `<tool_call>` (Qwen, Hermes, SmolLM3) are read as Hermes', those of Llama 3 as one JSON object;
    a template that knows neither is read as Hermes', which the prompt of the environment may then describe.
    """
    template = chat_template or ""
    is_llama = _WRITES["python_tag"] in template and _WRITES["tool_call"] not in template
    return read_llama3_json if is_llama else read_hermes


def read_hermes(text: str) -> tuple[str, list[ToolCall]]:
    """`<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, any number of them, anywhere in the text.

    Returns:
        What stands before the first call, and the calls; the whole text and no calls when one cannot be read.
    """
    calls = [_call(_loaded(body), "arguments", number) for number, body in enumerate(_HERMES.findall(text))]
    if not calls or None in calls:
        return text, []
    return text.partition("<tool_call>")[0].strip(), [call for call in calls if call is not None]


def read_llama3_json(text: str) -> tuple[str, list[ToolCall]]:
    """`{"name": ..., "parameters": {...}}` as the whole message; several are separated by semicolons."""
    body = text.strip().removeprefix(_WRITES["python_tag"]).strip()
    if not body.startswith("{"):
        return text, []
    calls = [_call(value, "parameters", number) for number, value in enumerate(_json_values(body))]
    return (text, []) if not calls or None in calls else ("", [call for call in calls if call is not None])


def tool_schema(tool: vf.Tool) -> dict[str, Any]:
    """A tool as the JSON schema chat templates read."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    return {"type": "function", "function": function}


def offered_tools(env: vf.Environment, row: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """The tools that the policy is told of in a row's prompt: the row's own, else the environment's."""
    info = row.get("info")
    own = info.get("tool_defs") if isinstance(info, dict) else None
    tools = env._normalize_tool_defs(own) if own is not None else env.tool_defs
    return [tool_schema(tool) for tool in tools] if tools else None


def template_tool_calls(calls: Sequence[dict[str, Any] | str]) -> list[dict[str, Any]]:
    """Verifiers' tool calls as chat templates read them: OpenAI's nesting, arguments as a mapping.

    Args:
        calls: in Verifiers' shape, in OpenAI's, or as the JSON texts that Verifiers writes into results.
    """
    return [_nested(json.loads(call) if isinstance(call, str) else call) for call in calls]


def _nested(call: dict[str, Any]) -> dict[str, Any]:
    if "function" in call:
        return call
    function = {"name": call["name"], "arguments": _mapping(call["arguments"])}
    return {"type": "function", "id": call.get("id", ""), "function": function}


def _mapping(arguments: Any) -> Any:
    if not isinstance(arguments, str):
        return arguments
    loaded = _loaded(arguments)
    return loaded if isinstance(loaded, dict) else arguments


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _json_values(text: str) -> list[Any]:
    """The JSON values of `a; b; c`; [None] when they are not all there is."""
    decoder, values, position = json.JSONDecoder(), [], 0
    while position < len(text):
        try:
            value, position = decoder.raw_decode(text, position)
        except ValueError:
            return [None]
        values.append(value)
        rest = text[position:]
        position = len(text) - len(rest.lstrip("; \n"))
    return values


def _call(value: Any, arguments_name: str, number: int) -> ToolCall | None:
    """One call; None when it has no name or no arguments."""
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    key = arguments_name if arguments_name in value else "arguments"
    if key not in value:
        return None
    identifier = f"call{number:0{_ID_LENGTH - 4}d}"
    return ToolCall(id=identifier, name=value["name"], arguments=json.dumps(value[key], ensure_ascii=False))
