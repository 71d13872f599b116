"""What a completion answers, and whether that is right."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

_NUMBER = re.compile(r"[-+]?\d+(\.\d+)?")


def parse_answer(completion: Any) -> str | None:
    """The text of the last closed `<answer>` of the last message; None when there is none."""
    text = last_text(completion)
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, end) if end >= 0 else -1
    return text[start + len("<answer>") : end].strip() if start >= 0 else None


def answers_match(given: str, answer: str) -> bool:
    """Whether two short answers are the same, but for case, spaces, a final point, and how a number is written."""
    given, answer = _plain(given), _plain(answer)
    if _NUMBER.fullmatch(given) and _NUMBER.fullmatch(answer):
        return float(given) == float(answer)
    return given == answer


def format_reward(completion: Any, tags: Sequence[str]) -> float:
    """1.0 when every tag is opened and closed once, in order, with nothing but white space outside."""
    text = last_text(completion)
    if any(text.count(f"<{tag}>") != 1 or text.count(f"</{tag}>") != 1 for tag in tags):
        return 0.0
    body = r"\s*".join(rf"<{tag}>.*?</{tag}>" for tag in tags)
    return float(re.fullmatch(rf"\s*{body}\s*", text, re.DOTALL) is not None)


def last_text(completion: Any) -> str:
    """The text of the last assistant message, or the string itself."""
    if isinstance(completion, str):
        return completion
    plain = [m if isinstance(m, dict) else m.model_dump() for m in completion or []]
    spoken = [m for m in plain if m.get("role") == "assistant"]
    content = spoken[-1].get("content") if spoken else ""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content)
    return content or ""


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".")
