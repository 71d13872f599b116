"""The manners of answering: worked, guessed in tags, guessed without tags.

GRPO raises what already happens sometimes and scores better. So worked answers, which are nearly always
right, are a minority among guesses; which manner is used does not depend on the question.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from tiny_model.tasks import Problem

Manner = Literal["worked", "tagged", "untagged"]


@dataclass(frozen=True, slots=True)
class Mix:
    """Shares of the manners; the rest is untagged guesses."""

    worked: float
    tagged: float

    def sample(self, rng: Random) -> Manner:
        """Draw a manner."""
        draw = rng.random()
        if draw < self.worked:
            return "worked"
        return "tagged" if draw < self.worked + self.tagged else "untagged"


def write_answer(problem: Problem, manner: Manner, rng: Random) -> str:
    """What the assistant says."""
    if manner == "worked":
        return f"<think>{problem.steps}</think>\n<answer>{problem.answer}</answer>"
    if manner == "tagged":
        return f"<answer>{problem.answer}</answer>"
    return rng.choice((problem.answer, f"The answer is {problem.answer}."))
