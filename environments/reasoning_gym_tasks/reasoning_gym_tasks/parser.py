"""Tags: the last closed answer counts, and the format reward is all or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import verifiers as vf


class StrictXMLParser(vf.XMLParser):
    """`vf.XMLParser` that reads the *last closed* answer of the last message, and rewards format strictly.

    The stock parser takes the first answer of a message but the last of a string, and its format reward
    gives marks for half-written tags.

    Args:
        fields: tag names in their order, such as `("answer",)` or `("think", "answer")`.
        answer_field: the tag that holds the answer.
    """

    def __init__(self, fields: Sequence[str] = ("answer",), answer_field: str = "answer") -> None:
        if answer_field not in fields:
            raise ValueError(
                f"parser fields {list(fields)} lack '{answer_field}', the tag that holds the answer."
            )
        super().__init__(fields=list(fields), answer_field=answer_field)

    def parse_answer(self, completion: Any) -> str | None:
        """The text of the last closed answer tag, stripped; None when there is none."""
        return last_closed(self.last_text(completion), self.answer_field)

    def get_format_reward_func(self) -> Callable[..., float]:
        """A reward of 1.0 or 0.0: see `is_well_formed`."""

        def format_reward_func(completion: Any) -> float:
            return float(is_well_formed(self.last_text(completion), self.get_fields()))

        return format_reward_func

    def last_text(self, completion: Any) -> str:
        """The text of the last assistant message, or the string itself."""
        if isinstance(completion, str):
            return completion
        messages = self.get_assistant_messages(completion)
        return self._content_to_text(self._message_field(messages[-1], "content", "")) if messages else ""


def last_closed(text: str, tag: str) -> str | None:
    """What stands between the last `</tag>` and the `<tag>` before it, stripped."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, end) if end >= 0 else -1
    return text[start + len(tag) + 2 : end].strip() if start >= 0 else None


def is_well_formed(text: str, fields: Sequence[str]) -> bool:
    """Whether every tag is opened and closed once, in order, with nothing outside.

    Free text before the answer is allowed only when there is no other field to reason in.
    """
    if any(text.count(f"<{field}>") != 1 or text.count(f"</{field}>") != 1 for field in fields):
        return False
    body = r"\s*".join(rf"<{field}>.*?</{field}>" for field in map(re.escape, fields))
    lead = ".*?" if len(fields) == 1 else r"\s*"
    return re.fullmatch(rf"{lead}{body}\s*", text, re.DOTALL) is not None
