"""Where tokens come from: the one interface behind vf-vllm servers and the in-process generator."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from grpo_gym.rollouts.types import FinishReason


class InferenceError(RuntimeError):
    """The sampler failed for a reason that has nothing to do with the policy (never a reward of 0)."""


class PromptTooLongError(InferenceError):
    """The prompt leaves no room for a completion in the model's or server's context."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. Names are vLLM's. `top_k=0` means all tokens; `seed=None` means unseeded."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    seed: int | None = None


@dataclass(frozen=True, slots=True)
class SampleResult:
    """What was sampled.

    `completion_ids` includes the end-of-sequence token when it was sampled; `logprobs` has one entry
    per completion token: the log-probability under the distribution that was sampled from (after
    temperature, top-p, ...). `policy_version` is the version of the weights that began the sample.
    """

    completion_ids: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    policy_version: int


@dataclass(frozen=True, slots=True)
class ImagePrompt:
    """What a sampler needs beside the (expanded) ids of a prompt with images.

    `urls` are data URIs in the order of their placeholders. A server makes ids of its own from `messages`
    and the template arguments, which must turn out the same.
    """

    urls: tuple[str, ...]
    messages: list[dict[str, Any]]
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


class Sampler(Protocol):
    """Samples one completion for a tokenized prompt.

    Attributes:
        policy_version: the version of the weights that a sample begun now is from.
    """

    policy_version: int

    async def sample(
        self, prompt_ids: list[int], params: SamplingParams, images: ImagePrompt | None = None
    ) -> SampleResult:
        """Sample one completion.

        Args:
            prompt_ids: the prompt; image placeholders are expanded to image tokens.
            params: how to sample.
            images: the pictures of the prompt, when it has any.

        Raises:
            PromptTooLongError: no room for the completion.
            InferenceError: the server or generator failed.
        """
        ...

    async def close(self) -> None:
        """Release connections or threads."""
        ...
