"""Mathematical equality by math-verify, which may take forever on adversarial input: hence the deadline."""

from __future__ import annotations

from typing import Any

from grpo_gym.rewards.base import BaseReward, RewardError
from grpo_gym.rewards.registry import register_reward


@register_reward("math_verify")
class MathVerify(BaseReward):
    r"""1.0 when the answer equals the dataset's mathematically (1/2 = 0.5 = \frac{1}{2}); else 0.0.

    What is compared is in the last closed answer tag, else in the last \boxed{}; without either it is 0.

    Args:
        answer_tag: the tag that holds the answer.
        max_characters: longer answers score 0.
    """

    deadline = 5.0

    def __init__(self, answer_tag: str = "answer", max_characters: int = 1000) -> None:
        self.answer_tag = answer_tag
        self.max_characters = max_characters

    def prepare(self) -> None:
        """Import math-verify and sympy."""
        import math_verify  # noqa: F401

    def compute(self, prompt: str, completion: str, answer: str, info: dict[str, Any]) -> float:
        """1.0 or 0.0; runs in a scoring process, whose deadline replaces math-verify's own time-outs."""
        given = self._given(completion)
        if not given or len(given) > self.max_characters:
            return 0.0
        from math_verify import verify

        expected = parse_math(answer)
        if not expected:
            raise RewardError(
                f"the dataset's answer {answer[:80]!r} is not mathematics that math-verify can read"
            )
        return float(verify(expected, parse_math(given), timeout_seconds=None))

    def _given(self, completion: str) -> str:
        end = completion.rfind(f"</{self.answer_tag}>")
        start = completion.rfind(f"<{self.answer_tag}>", 0, end) if end >= 0 else -1
        if start >= 0:
            return completion[start + len(self.answer_tag) + 2 : end].strip()
        boxed = completion.rfind("\\boxed{")
        return completion[boxed:].strip() if boxed >= 0 else ""


def parse_math(text: str) -> list[Any]:
    """Everything math-verify reads in the text: bare LaTeX, LaTeX in dollars, plain numbers."""
    from math_verify import parse

    wrapped = text if "$" in text or "\\boxed" in text else f"${text}$"
    return parse(wrapped, parsing_timeout=None) or parse(text, parsing_timeout=None)
