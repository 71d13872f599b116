"""A Verifiers client that talks tokens: the environment sees messages, the sampler sees ids.

The same client stands before every sampler, so an environment cannot tell a vf-vllm server from the
in-process generator. Ids and log-probs of exactly what was sampled travel back in `Response.message.tokens`.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any, TypeAlias

import verifiers as vf
from verifiers.types import Response, ResponseMessage, ResponseTokens, TrajectoryStep, Usage

from grpo_gym.inference.sampler import PromptTooLongError, Sampler, SampleResult, SamplingParams
from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.rollouts.tool_calls import tool_schema

_SEED_MASK = 2**62 - 1
NativeResponse: TypeAlias = tuple[list[int], SampleResult, bool]
"""Prompt ids, what was sampled, and whether tools were offered."""


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
        seed: seed of the group; rollout i of the group starts with `mix_seed(seed, i)` and takes
            `mix_seed(seed, i, n)` for its n-th later request. None leaves requests unseeded.
    """

    def __init__(
        self, sampler: Sampler, renderer: ChatRenderer, params: SamplingParams, seed: int | None = None
    ) -> None:
        super().__init__(sampler)
        self._renderer = renderer
        self._params = params
        self._seed = seed
        self._requests: dict[str, tuple[int, int]] = {}
        self._first_prompt: tuple[tuple[Any, Any], list[int]] | None = None
        self.min_policy_version: int | None = None
        self.num_running = 0

    def setup_client(self, config: Any) -> Sampler:
        """Unused: the sampler is given ready-made."""
        raise TypeError("TokenClient takes a sampler, not a ClientConfig.")

    async def to_native_tool(self, tool: vf.Tool) -> dict[str, Any]:
        """A tool as the JSON schema chat templates read."""
        return tool_schema(tool)

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
    ) -> NativeResponse:
        """Sample one completion for the conversation.

        Raises:
            vf.OverlongPromptError: the prompt leaves no room for a completion.
        """
        state = kwargs["state"]
        prompt_ids = self._conversation_ids(prompt, state, tools)
        params = self._params_for(state, prompt_ids)
        images = self._renderer.image_prompt(prompt)
        try:
            if images is None:
                result = await self.client.sample(prompt_ids, params)
            else:
                result = await self.client.sample(prompt_ids, params, images=images)
        except PromptTooLongError as error:
            raise vf.OverlongPromptError(str(error)) from error
        self._note_version(result.policy_version)
        return prompt_ids, result, bool(tools)

    async def raise_from_native_response(self, response: NativeResponse) -> None:
        """An empty completion is the policy's doing, so nothing is raised."""

    async def from_native_response(self, response: NativeResponse) -> Response:
        """The sampled ids as a Verifiers response, with the tool calls in them."""
        prompt_ids, result, has_tools = response
        text, calls = self._renderer.assistant_turn(result.completion_ids, has_tools)
        tokens = ResponseTokens(
            prompt_ids=prompt_ids,
            prompt_mask=[0] * len(prompt_ids),
            completion_ids=result.completion_ids,
            completion_mask=[1] * len(result.completion_ids),
            completion_logprobs=result.logprobs,
        )
        message = ResponseMessage(
            content=text,
            tool_calls=calls or None,
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
        """Ids of the conversation: those of the turn it goes on from, or new ones where the history was rewritten."""
        last = next((step for step in reversed(state["trajectory"]) if _continues(prompt, step)), None)
        if last is None:
            return self._first_prompt_ids(prompt, tools)
        previous_ids = last["tokens"]["prompt_ids"] + last["tokens"]["completion_ids"]
        num_previous = len(last["prompt"]) + len(last["completion"])
        return self._renderer.extend_ids(previous_ids, prompt, num_previous, tools)

    def _first_prompt_ids(self, prompt: vf.Messages, tools: list[dict[str, Any]] | None) -> list[int]:
        """Ids of a prompt that starts a conversation; rendered once for the rollouts of a group, which share it."""
        if self._first_prompt is None or self._first_prompt[0] != (prompt, tools):
            # A copy of the list: environments may append to theirs.
            self._first_prompt = (list(prompt), tools), self._renderer.prompt_ids(prompt, tools)
        return list(self._first_prompt[1])

    def _params_for(self, state: vf.State, prompt_ids: list[int]) -> SamplingParams:
        """The turn's share of `max_tokens`, which is for all turns together, and its seed.

        Raises:
            vf.OverlongPromptError: the turns before have used the tokens up.
        """
        used = len(prompt_ids) - _first_prompt_length(state["trajectory"], prompt_ids)
        if used >= self._params.max_tokens:
            raise vf.OverlongPromptError(
                f"{used} tokens after the first prompt leave no room in max_completion_length="
                f"{self._params.max_tokens}"
            )
        seed = None if self._seed is None else self._next_seed(self._seed, state["trajectory_id"])
        return dataclasses.replace(self._params, max_tokens=self._params.max_tokens - used, seed=seed)

    def _next_seed(self, seed: int, rollout: str) -> int:
        """A seed of the rollout and its request, whatever the other rollouts of the group do meanwhile."""
        index, number = self._requests.get(rollout, (len(self._requests), 0))
        self._requests[rollout] = (index, number + 1)
        return mix_seed(seed, index, number) if number else mix_seed(seed, index)

    def _note_version(self, version: int) -> None:
        known = self.min_policy_version
        self.min_policy_version = version if known is None else min(known, version)


def _continues(prompt: vf.Messages, step: TrajectoryStep) -> bool:
    """Whether the conversation starts with all that was said up to the end of `step`."""
    said = [*step["prompt"], *step["completion"]]
    return len(prompt) > len(said) and prompt[: len(said)] == said


def _first_prompt_length(trajectory: Sequence[TrajectoryStep], prompt_ids: list[int]) -> int:
    """Length of the first prompt that the turns up to `prompt_ids` followed."""
    lengths = (
        len(ids)
        for ids in (step["tokens"]["prompt_ids"] for step in trajectory if step["tokens"])
        if prompt_ids[: len(ids)] == ids
    )
    return next(lengths, len(prompt_ids))


def _usage(prompt_ids: list[int], result: SampleResult) -> Usage:
    prompt, completion = len(prompt_ids), len(result.completion_ids)
    return Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        reasoning_tokens=0,
        total_tokens=prompt + completion,
    )
