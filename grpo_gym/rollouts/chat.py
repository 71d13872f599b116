"""Messages to token ids with the tokenizer's chat template, without ever re-tokenizing what was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin
from verifiers.types import ToolCall

from grpo_gym.inference.sampler import ImagePrompt
from grpo_gym.rollouts.tool_calls import reader_for, template_tool_calls

# Stands for what was sampled when the text around it is wanted.
_SAMPLED = "[[sampled-by-the-policy]]"
_TURN_ENDS = ("<|eom_id|>", "<|eot_id|>", "<|im_end|>", "<|endoftext|>")
"""Tokens that end a turn in some templates without being the tokenizer's end-of-sequence token."""


def plain_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Verifiers' message objects as the plain dicts a chat template reads."""
    return [_plain_message(m if isinstance(m, dict) else m.model_dump(exclude_none=True)) for m in messages]


def _plain_message(message: dict[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls")
    if not calls:
        return message if message.get("content") is not None else {**message, "content": ""}
    return {"content": "", **message, "tool_calls": template_tool_calls(calls)}


def check_chat_template(tokenizer: PreTrainedTokenizerBase | ProcessorMixin, name: str) -> None:
    """Raise a ValueError when the tokenizer (or the processor) cannot turn messages into a prompt."""
    if not (tokenizer.chat_template or getattr(getattr(tokenizer, "tokenizer", None), "chat_template", None)):
        raise ValueError(
            f"the tokenizer of {name!r} has no chat template, which environments with chat messages need; "
            "use an instruct model, or set tokenizer.chat_template and pass it as processing_class."
        )


def refuse_images(messages: Sequence[Any]) -> None:
    """Raise a ValueError when a text model is given images."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else message.content
        for part in content if isinstance(content, list) else ():
            kind = part.get("type") if isinstance(part, dict) else part.type
            if kind in ("image_url", "image"):
                raise ValueError(
                    "the prompts have images, but the model sees text only; use a vision-language model "
                    "(Qwen2.5-VL, Qwen3-VL, SmolVLM, Gemma 3) or an environment without images."
                )


class ChatRenderer:
    """Renders conversations to ids, once per distinct first prompt (the G rollouts of a group share it)."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self._read_tool_calls = reader_for(str(tokenizer.chat_template))
        self.chat_template_kwargs = chat_template_kwargs or {}

    def prompt_ids(self, messages: Sequence[Any], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Token ids of `messages` followed by the generation prompt."""
        text = self._render(plain_messages(messages), tools, add_generation_prompt=True)
        return self._encode(text, messages)

    def image_prompt(self, messages: Sequence[Any]) -> ImagePrompt | None:
        """None: the prompts of a text model have no images."""
        return None

    def without_images(self, ids: Sequence[int]) -> list[int]:
        """The ids as they are."""
        return list(ids)

    def extend_ids(
        self,
        previous_ids: list[int],
        messages: Sequence[Any],
        num_previous: int,
        tools: list[dict[str, Any]] | None = None,
    ) -> list[int]:
        """Ids of a later turn's prompt: the ids so far, kept as they are, plus the environment's new messages.

        Earlier turns stay as they were sampled also where the template would write them differently now (Qwen3
        drops earlier <think> blocks): the policy is trained on what it saw.

        Args:
            previous_ids: prompt and completion ids of the turn before, exactly as sampled.
            messages: the whole conversation.
            num_previous: how many of `messages` the ids so far stand for (the last is the sampled one).
            tools: tool definitions for the template.

        Raises:
            ValueError: the chat template leaves out what the policy said.
        """
        plain = plain_messages(messages)
        sampled = {"role": "assistant", "content": _SAMPLED}
        text = self._render([*plain[: num_previous - 1], sampled, *plain[num_previous:]], tools, True)
        _, found, after = text.rpartition(_SAMPLED)
        if not found:
            raise ValueError(
                "the chat template leaves out an earlier assistant turn, so a later turn cannot be appended to it; "
                "multi-turn training needs a template that writes every turn."
            )
        new_ids = self._encode(after, messages[num_previous:])
        # The token that ends a turn was sampled already, unless the turn was cut.
        ended = bool(previous_ids) and previous_ids[-1:] == new_ids[:1]
        return previous_ids + new_ids[ended:]

    def assistant_turn(self, ids: list[int], has_tools: bool) -> tuple[str, list[ToolCall]]:
        """What a completion says: its text and, where tools are offered, the calls it makes."""
        if has_tools:
            # The tags of a call are special tokens in some models, which `decode` leaves out.
            content, calls = self._read_tool_calls(self._decode_all_but_end(ids))
            if calls:
                return content, calls
        return self.decode(ids), []

    def ignores_tools(self, messages: Sequence[Any], tools: list[dict[str, Any]]) -> bool:
        """Whether the chat template says nothing about tools it is given."""
        return self.prompt_ids(messages, tools) == self.prompt_ids(messages)

    def decode(self, ids: list[int]) -> str:
        """Text of a completion, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _decode_all_but_end(self, ids: list[int]) -> str:
        text = str(self.tokenizer.decode(ids))
        for end in {self.tokenizer.eos_token, *_TURN_ENDS}:
            text = text.removesuffix(end) if end else text
        return text

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, add_generation_prompt: bool
    ) -> str:
        refuse_images(messages)
        text = self.tokenizer.apply_chat_template(
            messages,
            tools=tools,  # type: ignore[arg-type]
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.chat_template_kwargs,
        )
        return str(text)

    def _encode(self, text: str, messages: Sequence[Any]) -> list[int]:
        """Ids of the text of `messages`, whose images (of a vision-language model) belong into it."""
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]
