"""A Verifiers client that talks tokens: the environment sees messages, the sampler sees ids.

The same client stands before every sampler, so an environment cannot tell a vf-vllm server from the
in-process generator. Ids and log-probs of exactly what was sampled travel back in `Response.message.tokens`.
"""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import verifiers as vf
from verifiers.types import Response, ResponseMessage, ResponseTokens, Usage

from grpo_gym.inference.sampler import PromptTooLongError, Sampler, SampleResult, SamplingParams
from grpo_gym.rollouts.chat import ChatRenderer

_SEED_MASK = 2**62 - 1


def mix_seed(*parts: int) -> int:
    """One seed out of several numbers, the same in every process and Python version."""
    seed = 0x9E3779B97F4A7C15
    for part in parts:
        seed = (seed ^ part) * 0xBF58476D1CE4E5B9 % 2**64
        seed ^= seed >> 27
    return seed & _SEED_MASK


class TokenClient(vf.Client):
    """Client of one group of rollouts.

    Args:
        sampler: where tokens come from.
        renderer: messages to ids.
        params: how to sample.
        seed: seed of the group; request number i of the group samples with `mix_seed(seed, i)`.
            None leaves requests unseeded.
    """

    def __init__(
        self, sampler: Sampler, renderer: ChatRenderer, params: SamplingParams, seed: int | None = None
    ) -> None:
        super().__init__(sampler)
        self._renderer = renderer
        self._params = params
        self._seed = seed
        self._num_requests = 0
        self.min_policy_version: int | None = None
        self.num_running = 0

    def setup_client(self, config: Any) -> Sampler:
        """Unused: the sampler is given ready-made."""
        raise TypeError("TokenClient takes a sampler, not a ClientConfig.")

    async def to_native_tool(self, tool: vf.Tool) -> dict[str, Any]:
        """A tool as the JSON schema chat templates read."""
        function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
        return {"type": "function", "function": function}

    async def to_native_prompt(self, messages: vf.Messages) -> tuple[vf.Messages, dict[str, Any]]:
        """Messages as they are; they become ids in `get_native_response`, which knows the conversation."""
        return messages, {}

    async def get_native_response(
        self,
        prompt: vf.Messages,
        model: str,
        sampling_args: dict[str, Any],
        tools: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> tuple[list[int], SampleResult]:
        """Sample one completion for the conversation.

        Raises:
            vf.OverlongPromptError: the prompt leaves no room for a completion.
        """
        prompt_ids = self._conversation_ids(prompt, kwargs["state"], tools)
        try:
            result = await self.client.sample(prompt_ids, self._next_params())
        except PromptTooLongError as error:
            raise vf.OverlongPromptError(str(error)) from error
        self._note_version(result.policy_version)
        return prompt_ids, result

    async def raise_from_native_response(self, response: tuple[list[int], SampleResult]) -> None:
        """An empty completion is the policy's doing, so nothing is raised."""

    async def from_native_response(self, response: tuple[list[int], SampleResult]) -> Response:
        """The sampled ids as a Verifiers response."""
        prompt_ids, result = response
        tokens = ResponseTokens(
            prompt_ids=prompt_ids,
            prompt_mask=[0] * len(prompt_ids),
            completion_ids=result.completion_ids,
            completion_mask=[1] * len(result.completion_ids),
            completion_logprobs=result.logprobs,
        )
        message = ResponseMessage(
            content=self._renderer.decode(result.completion_ids),
            finish_reason=result.finish_reason,
            is_truncated=result.finish_reason == "length",
            tokens=tokens,
        )
        return Response(
            id="", created=int(time.time()), model="policy", usage=_usage(prompt_ids, result), message=message
        )

    async def close(self) -> None:
        """The sampler is shared; whoever made it closes it."""

    def _conversation_ids(
        self, prompt: vf.Messages, state: vf.State, tools: list[dict[str, Any]] | None
    ) -> list[int]:
        trajectory = state["trajectory"]
        if not trajectory:
            return self._renderer.prompt_ids(prompt, tools)
        last = trajectory[-1]
        previous_ids = last["tokens"]["prompt_ids"] + last["tokens"]["completion_ids"]
        num_previous = len(last["prompt"]) + len(last["completion"])
        return self._renderer.extend_ids(previous_ids, prompt, num_previous, tools)

    def _next_params(self) -> SamplingParams:
        number = self._num_requests
        self._num_requests += 1
        if self._seed is None:
            return self._params
        return dataclasses.replace(self._params, seed=mix_seed(self._seed, number))

    def _note_version(self, version: int) -> None:
        known = self.min_policy_version
        self.min_policy_version = version if known is None else min(known, version)


def _usage(prompt_ids: list[int], result: SampleResult) -> Usage:
    prompt, completion = len(prompt_ids), len(result.completion_ids)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        reasoning_tokens=0,
        total_tokens=prompt + completion,
    )
