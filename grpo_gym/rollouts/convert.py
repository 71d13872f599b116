"""A finished Verifiers rollout as a `Rollout`: token in, token out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_gym.rollouts.chat import plain_messages
from grpo_gym.rollouts.scoring import SCORER_ERROR_KEY
from grpo_gym.rollouts.types import Branch, Rollout
from grpo_gym.vision.images import image_urls

PROMPT_TOO_LONG = "prompt_too_long"
SCORING_FAILED = "scoring failed"
"""How the error of a completion begins that was sampled but could not be scored."""


def rollout_from_output(output: Mapping[str, Any], policy_version: int) -> Rollout:
    """Build a `Rollout` from a Verifiers `RolloutOutput` that carries its trajectory.

    The turns of a conversation become one completion: what the policy sampled has loss mask 1, what the
    environment wrote between the turns has 0.
    """
    steps = [step for step in output.get("trajectory") or [] if step["tokens"] is not None]
    error = failure_of(output, has_tokens=bool(steps))
    first, *others = join_turns(steps) or [Branch([], [], [], [])]
    images = image_urls(steps[-1].get("prompt") or []) if steps else []
    if others and images and not error:
        error = "images in a conversation whose history the environment rewrote cannot be trained on"
    return Rollout(
        prompt_ids=first.prompt_ids,
        completion_ids=first.completion_ids,
        sampler_logprobs=first.sampler_logprobs,
        loss_mask=first.loss_mask,
        branches=others,
        reward=None if error else float(output["reward"]),
        metrics={}
        if error
        else {name: float(value) for name, value in (output.get("metrics") or {}).items()},
        policy_version=policy_version,
        finish_reason="length" if output.get("is_truncated") else "stop",
        error=error,
        failed_rewards=failed_rewards(output) if (error or "").startswith(SCORING_FAILED) else [],
        completion_text=messages_text(output.get("completion")),
        images=images,
    )


def failure_of(output: Mapping[str, Any], has_tokens: bool) -> str | None:
    """Why the rollout says nothing about the policy, or None when it does.

    Verifiers reports an unreachable server as `error`, a time-out as an empty trajectory without an
    error, an over-long prompt as a stop condition, and a failed scorer not at all; all carry reward 0.
    """
    if output.get("error"):
        return f"generation failed: {output['error']}"
    if output.get("stop_condition") == PROMPT_TOO_LONG and not has_tokens:
        return PROMPT_TOO_LONG
    if not has_tokens:
        return f"no tokens came back (stop condition: {output.get('stop_condition')})"
    if output.get(SCORER_ERROR_KEY):
        messages = [f"{name}: {message}" for name, message in output[SCORER_ERROR_KEY].items()]
        return f"{SCORING_FAILED}: {'; '.join(messages)}"
    if output.get("reward") is None or not math.isfinite(output["reward"]):
        return f"{SCORING_FAILED}: the reward is {output.get('reward')}"
    return None


def failed_rewards(output: Mapping[str, Any]) -> list[str]:
    """Names of the reward functions that raised, or gave a number that is not finite."""
    raised = list(output.get(SCORER_ERROR_KEY) or {})
    metrics = output.get("metrics") or {}
    return raised + [n for n, value in metrics.items() if n not in raised and not math.isfinite(value)]


def join_turns(steps: Sequence[Mapping[str, Any]]) -> list[Branch]:
    """The turns as token sequences: one, unless a turn's prompt does not start with the ids so far.

    A turn belongs to the sequence that its prompt extends: the policy's tokens have loss mask 1, what the
    environment wrote between them 0. A turn whose prompt extends none starts a sequence of its own.
    """
    branches: list[Branch] = []
    for step in steps:
        tokens = step["tokens"]
        prompt_ids, completion_ids = list(tokens["prompt_ids"]), list(tokens["completion_ids"])
        branch = next((b for b in reversed(branches) if _extends(prompt_ids, b)), None)
        if branch is None:
            branch = Branch(prompt_ids, [], [], [])
            branches.append(branch)
        environment_ids = prompt_ids[len(branch.prompt_ids) + len(branch.completion_ids) :]
        branch.completion_ids += environment_ids + completion_ids
        branch.sampler_logprobs += [0.0] * len(environment_ids) + list(tokens["completion_logprobs"])
        branch.loss_mask += [0] * len(environment_ids) + [1] * len(completion_ids)
    return branches


def _extends(prompt_ids: list[int], branch: Branch) -> bool:
    known = len(branch.prompt_ids)
    return (
        prompt_ids[:known] == branch.prompt_ids
        and prompt_ids[known : known + len(branch.completion_ids)] == branch.completion_ids
    )


def messages_text(messages: Any) -> str:
    """Readable text of a conversation."""
    if not messages:
        return ""
    if isinstance(messages, str):
        return messages
    plain = plain_messages(messages)
    if len(plain) == 1:
        return _message_text(plain[0])
    return "\n".join(f"[{m.get('role')}] {_message_text(m)}" for m in plain)


def _message_text(message: Mapping[str, Any]) -> str:
    calls = [json.dumps(call["function"], ensure_ascii=False) for call in message.get("tool_calls") or []]
    return "\n".join(filter(None, [_content_text(message.get("content")), *calls]))


def _content_text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", f"<{part.get('type')}>")) for part in content)
    return str(content or "")
