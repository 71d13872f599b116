"""A finished Verifiers rollout as a `Rollout`: token in, token out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from grpo_gym.rollouts.chat import plain_messages
from grpo_gym.rollouts.scoring import SCORER_ERROR_KEY
from grpo_gym.rollouts.types import Rollout

PROMPT_TOO_LONG = "prompt_too_long"


def rollout_from_output(output: Mapping[str, Any], policy_version: int) -> Rollout:
    """Build a `Rollout` from a Verifiers `RolloutOutput` that carries its trajectory.

    The turns of a conversation become one completion: what the policy sampled has loss mask 1, what the
    environment wrote between the turns has 0.
    """
    steps = [step for step in output.get("trajectory") or [] if step["tokens"] is not None]
    error = failure_of(output, has_tokens=bool(steps))
    ids, logprobs, mask = join_turns(steps)
    return Rollout(
        prompt_ids=list(steps[0]["tokens"]["prompt_ids"]) if steps else [],
        completion_ids=ids,
        sampler_logprobs=logprobs,
        loss_mask=mask,
        reward=None if error else float(output["reward"]),
        metrics={}
        if error
        else {name: float(value) for name, value in (output.get("metrics") or {}).items()},
        policy_version=policy_version,
        finish_reason="length" if output.get("is_truncated") else "stop",
        error=error,
        completion_text=messages_text(output.get("completion")),
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
        return f"scoring failed: {output[SCORER_ERROR_KEY]}"
    if output.get("reward") is None or not math.isfinite(output["reward"]):
        return f"scoring failed: the reward is {output.get('reward')}"
    return None


def join_turns(steps: Sequence[Mapping[str, Any]]) -> tuple[list[int], list[float], list[int]]:
    """Completion ids, sampler log-probs and loss mask over all turns after the first prompt."""
    ids: list[int] = []
    logprobs: list[float] = []
    mask: list[int] = []
    known = len(steps[0]["tokens"]["prompt_ids"]) if steps else 0
    for step in steps:
        tokens = step["tokens"]
        environment_ids = list(tokens["prompt_ids"][known:])
        completion_ids = list(tokens["completion_ids"])
        ids += environment_ids + completion_ids
        logprobs += [0.0] * len(environment_ids) + list(tokens["completion_logprobs"])
        mask += [0] * len(environment_ids) + [1] * len(completion_ids)
        known = len(tokens["prompt_ids"]) + len(completion_ids)
    return ids, logprobs, mask


def messages_text(messages: Any) -> str:
    """Readable text of a conversation."""
    if not messages:
        return ""
    if isinstance(messages, str):
        return messages
    plain = plain_messages(messages)
    if len(plain) == 1:
        return _content_text(plain[0].get("content"))
    return "\n".join(f"[{m.get('role')}] {_content_text(m.get('content'))}" for m in plain)


def _content_text(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(str(part.get("text", f"<{part.get('type')}>")) for part in content)
    return str(content or "")
