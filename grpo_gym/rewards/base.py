"""`BaseReward`: a class with one method is a reward function."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar


class RewardError(RuntimeError):
    """A completion cannot be scored. It is counted, and left out of the advantages: never a score of 0."""


class BaseReward(ABC):
    """A reward function. Instances are ordinary Verifiers reward functions: `vf.Rubric(funcs=[MyReward()])`.

        @register_reward("short")
        class Short(BaseReward):
            def compute(self, prompt, completion, answer, info):
                return 1.0 if len(completion) < 100 else 0.0

    Attributes:
        name: what it is called in logs; `register_reward` sets it.
        deadline: seconds one score may take. Such rewards run in processes of their own, which are killed
            when the time is up; a class of a script or notebook travels there with the globals it uses. None:
            it runs in the trainer's process, where it must be quick.
        uses_correctness: whether `info["correctness"]` is wanted: the score of the task's own scorer.
    """

    name: str = ""
    deadline: float | None = 10.0
    uses_correctness: ClassVar[bool] = False

    @abstractmethod
    def compute(self, prompt: str, completion: str, answer: str, info: dict[str, Any]) -> float:
        """Score one completion.

        Args:
            prompt: text of the last message of the prompt.
            completion: text of the model's last message.
            answer: the dataset's answer.
            info: the row's `info`, and `num_completion_tokens` where the sampler counts tokens.

        Raises:
            Exception: whatever is raised makes the completion unscorable.
        """

    def prepare(self) -> None:  # noqa: B027  (a hook that may stay empty)
        """Slow imports and the like; in the scoring process, before the deadline begins to count."""

    @property
    def __name__(self) -> str:
        """What Verifiers logs the score under."""
        return self.name or type(self).__qualname__

    async def __call__(
        self,
        prompt: Any,
        completion: Any,
        answer: str = "",
        info: Mapping[str, Any] | None = None,
        state: Mapping[str, Any] | None = None,
    ) -> float:
        """Score as Verifiers calls it, within the deadline.

        Raises:
            RewardError: it raised, took too long, or gave no finite number.
        """
        from grpo_gym.rewards.scoring import score

        arguments = (message_text(prompt), message_text(completion), str(answer), scoring_info(info, state))
        return await score(self, arguments)


def message_text(messages: Any) -> str:
    """Text of the last message of a conversation, or the string itself."""
    if isinstance(messages, str):
        return messages
    if not messages:
        return ""
    last = messages[-1]
    content = last.get("content") if isinstance(last, Mapping) else getattr(last, "content", None)
    if isinstance(content, Sequence) and not isinstance(content, str):
        return " ".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return str(content or "")


def scoring_info(info: Mapping[str, Any] | None, state: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the row's info, with `num_completion_tokens` when the sampler counted them."""
    extended = dict(info or {})
    steps = (state or {}).get("trajectory") or []
    tokens = [step.get("tokens") for step in steps]
    if tokens and all(tokens):
        extended["num_completion_tokens"] = sum(len(step["completion_ids"]) for step in tokens)
    return extended
