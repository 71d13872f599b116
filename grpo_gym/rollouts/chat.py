"""Messages to token ids with the tokenizer's chat template, without ever re-tokenizing what was sampled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase


def plain_messages(messages: Sequence[Any]) -> list[dict[str, Any]]:
    """Verifiers' message objects as the plain dicts a chat template reads."""
    return [m if isinstance(m, dict) else m.model_dump(exclude_none=True) for m in messages]


def check_chat_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise a ValueError when the tokenizer cannot turn messages into a prompt."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {name!r} has no chat template, which environments with chat messages need; "
            "use an instruct model, or set tokenizer.chat_template and pass it as processing_class."
        )


class ChatRenderer:
    """Renders conversations to ids, once per distinct first prompt (the G rollouts of a group share it)."""

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: dict[str, Any] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        self.chat_template_kwargs = chat_template_kwargs or {}

    def prompt_ids(self, messages: Sequence[Any], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """Token ids of `messages` followed by the generation prompt."""
        text = self._render(plain_messages(messages), tools, add_generation_prompt=True)
        return self._encode(text)

    def extend_ids(
        self,
        previous_ids: list[int],
        messages: Sequence[Any],
        num_previous: int,
        tools: list[dict[str, Any]] | None = None,
    ) -> list[int]:
        """Ids of a later turn's prompt: the ids so far, kept as they are, plus the environment's new messages.

        Args:
            previous_ids: prompt and completion ids of the turn before, exactly as sampled.
            messages: the whole conversation.
            num_previous: how many of `messages` the ids so far stand for (the last is the sampled one).
            tools: tool definitions for the template.

        Raises:
            ValueError: the chat template renders earlier messages differently when later ones follow.
        """
        plain = plain_messages(messages)
        before = self._render(plain[:num_previous], tools, add_generation_prompt=False)
        full = self._render(plain, tools, add_generation_prompt=True)
        if not full.startswith(before):
            raise ValueError(
                "the chat template rewrites earlier turns when a later one is added (it may strip <think> blocks); "
                "multi-turn training needs a template that only appends."
            )
        end_of_turn = self._after_last_eos(before)
        closing = (
            [] if previous_ids and previous_ids[-1] in self._eos_ids() else [self.tokenizer.eos_token_id]
        )
        return previous_ids + closing + self._encode(end_of_turn + full[len(before) :])

    def decode(self, ids: list[int]) -> str:
        """Text of a completion, without special tokens."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True))

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, add_generation_prompt: bool
    ) -> str:
        text = self.tokenizer.apply_chat_template(
            messages,
            tools=tools,  # type: ignore[arg-type]
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.chat_template_kwargs,
        )
        return str(text)

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _eos_ids(self) -> set[int]:
        return {self.tokenizer.eos_token_id}

    def _after_last_eos(self, text: str) -> str:
        """What a template writes after the token that ends a turn (a line break, often)."""
        _, found, tail = text.rpartition(self.tokenizer.eos_token)
        return tail if found else ""
