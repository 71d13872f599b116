"""Tags: one answer after the thinking counts, and the format reward is all or nothing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import verifiers as vf


class StrictXMLParser(vf.XMLParser):
    """`vf.XMLParser` that wants exactly one closed answer after the thinking, and rewards format strictly.

    The stock parser takes the first answer of a message but the last of a string, also when it stands
    inside the thinking, and its format reward gives marks for half-written tags.
    """

    def parse_answer(self, completion: Any) -> str | None:
        """The text of the only answer tag after the last `</think>`, stripped; None when there is none."""
        return single_answer(self.last_text(completion))

    def get_format_reward_func(self) -> Callable[..., float]:
        """A reward of 1.0 or 0.0: see `is_well_formed`."""

        def format_reward(completion: Any) -> float:
            """1.0 when each tag stands once, in order, with only white space outside."""
            return float(is_well_formed(self.last_text(completion), self.get_fields()))

        return format_reward

    def last_text(self, completion: Any) -> str:
        """The text of the last assistant message, or the string itself."""
        if isinstance(completion, str):
            return completion
        messages = self.get_assistant_messages(completion)
        return self._content_to_text(self._message_field(messages[-1], "content", "")) if messages else ""


def single_answer(text: str) -> str | None:
    """What stands in the only `<answer>...</answer>` after the last `</think>`.

    Two answers are a bet on both, so they are none; an answer inside the thinking is not given yet.
    """
    spoken = text.rpartition("</think>")[2]
    if spoken.count("<answer>") != 1 or spoken.count("</answer>") != 1:
        return None
    before, _, after = spoken.partition("<answer>")
    return None if "</answer>" in before else after.partition("</answer>")[0].strip()


def is_well_formed(text: str, fields: Sequence[str]) -> bool:
    """Whether every tag is opened and closed once, in order, with nothing but white space outside."""
    if any(text.count(f"<{field}>") != 1 or text.count(f"</{field}>") != 1 for field in fields):
        return False
    body = r"\s*".join(rf"<{field}>.*?</{field}>" for field in map(re.escape, fields))
    return re.fullmatch(rf"\s*{body}\s*", text, re.DOTALL) is not None
