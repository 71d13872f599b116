"""The built-in rewards but for math_verify, whose import is slow. All are quick, so they run in place."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, ClassVar

from grpo_gym.rewards import math_reward  # noqa: F401  (registers math_verify)
from grpo_gym.rewards.base import BaseReward, RewardError
from grpo_gym.rewards.registry import register_reward


@register_reward("correctness")
class Correctness(BaseReward):
    """The score of the task's own scorer."""

    deadline = None
    uses_correctness: ClassVar[bool] = True

    def compute(self, prompt: str, completion: str, answer: str, info: dict[str, Any]) -> float:
        """What the environment's own scorer gave."""
        return float(info["correctness"])


@register_reward("strict_format")
class StrictFormat(BaseReward):
    """1.0 when every tag is opened and closed once, in order, with only white space outside; else 0.0.

    Args:
        tags: the tags in their order; in an experiment by default those that the environment's parser reads.
    """

    deadline = None

    def __init__(self, tags: Sequence[str] = ("think", "answer")) -> None:
        self.tags = tuple(tags)
        body = r"\s*".join(rf"<{tag}>.*?</{tag}>" for tag in map(re.escape, self.tags))
        self._pattern = re.compile(rf"\s*{body}\s*", re.DOTALL)

    def compute(self, prompt: str, completion: str, answer: str, info: dict[str, Any]) -> float:
        """1.0 or 0.0."""
        marks = [mark for tag in self.tags for mark in (f"<{tag}>", f"</{tag}>")]
        once = all(completion.count(mark) == 1 for mark in marks)
        return float(once and self._pattern.fullmatch(completion) is not None)


@register_reward("cosine_length")
class CosineLength(BaseReward):
    """Short right answers are worth more than long ones, and long wrong ones cost less than short ones.

    With l of at most L tokens: `end + (start - end) (1 + cos(pi l / L)) / 2`, where start and end are the
    rewards at length 0 and L for right (correctness above 0.5) or wrong answers; `exceeded` at l >= L.
    Yeo et al. 2025, Demystifying Long Chain-of-Thought Reasoning in LLMs, arXiv 2502.03373.

    Args:
        max_tokens: L; in an experiment `${training.max_completion_length}`.
        correct_short: right, 0 tokens.
        correct_long: right, L tokens.
        wrong_short: wrong, 0 tokens.
        wrong_long: wrong, L tokens.
        exceeded: L tokens or more.
    """

    deadline = None
    uses_correctness: ClassVar[bool] = True

    def __init__(
        self,
        max_tokens: int,
        correct_short: float = 1.0,
        correct_long: float = 0.5,
        wrong_short: float = -1.0,
        wrong_long: float = -0.5,
        exceeded: float = -1.0,
    ) -> None:
        self.max_tokens = max_tokens
        self.correct = (correct_short, correct_long)
        self.wrong = (wrong_short, wrong_long)
        self.exceeded = exceeded

    def compute(self, prompt: str, completion: str, answer: str, info: dict[str, Any]) -> float:
        """The cosine between the two ends."""
        length = num_tokens(info)
        if length >= self.max_tokens:
            return self.exceeded
        start, end = self.correct if info["correctness"] > 0.5 else self.wrong
        return end + (start - end) * (1 + math.cos(math.pi * length / self.max_tokens)) / 2


@register_reward("repetition_penalty")
class RepetitionPenalty(BaseReward):
    """`max_penalty` times the share of n-grams (of words) that occurred before; Yeo et al. 2025, like above.

    Args:
        ngram_size: n.
        max_penalty: the reward of endless repetition, below 0.
    """

    deadline = None

    def __init__(self, ngram_size: int = 4, max_penalty: float = -1.0) -> None:
        if ngram_size < 1 or max_penalty > 0:
            raise ValueError(
                f"repetition_penalty: ngram_size={ngram_size} must be above 0, max_penalty={max_penalty} not."
            )
        self.ngram_size = ngram_size
        self.max_penalty = max_penalty

    def compute(self, prompt: str, completion: str, answer: str, info: dict[str, Any]) -> float:
        """0.0 for no repetition."""
        words = completion.lower().split()
        ngrams = list(zip(*(words[i:] for i in range(self.ngram_size)), strict=False))
        return self.max_penalty * (1 - len(set(ngrams)) / len(ngrams)) if ngrams else 0.0


@register_reward("overlong_penalty")
class OverlongPenalty(BaseReward):
    """0 up to L - C tokens, then falling to -1 at L. DAPO (Yu et al. 2025, arXiv 2503.14476), equation 13.

    Args:
        max_tokens: L; in an experiment `${training.max_completion_length}`.
        cache_tokens: C.
    """

    deadline = None

    def __init__(self, max_tokens: int, cache_tokens: int) -> None:
        if not 0 < cache_tokens <= max_tokens:
            raise ValueError(
                f"overlong_penalty: cache_tokens={cache_tokens} must be from 1 to max_tokens={max_tokens}."
            )
        self.max_tokens = max_tokens
        self.cache_tokens = cache_tokens

    def compute(self, prompt: str, completion: str, answer: str, info: dict[str, Any]) -> float:
        """From 0 down to -1."""
        beyond = num_tokens(info) - (self.max_tokens - self.cache_tokens)
        return -min(1.0, max(0.0, beyond / self.cache_tokens))


def num_tokens(info: dict[str, Any]) -> int:
    """Sampled tokens of the completion.

    Raises:
        RewardError: the sampler did not count them.
    """
    if "num_completion_tokens" not in info:
        raise RewardError(
            "the sampler reports no token ids, which rewards of length need; use vf-vllm or train in process."
        )
    return int(info["num_completion_tokens"])
