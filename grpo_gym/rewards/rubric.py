"""Rewards chosen in an experiment, put in the place of an environment's own."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import verifiers as vf

from grpo_gym.rewards.base import BaseReward, message_text, scoring_info
from grpo_gym.rewards.correctness import SCORER_DEADLINE, TaskScorer
from grpo_gym.rewards.registry import create_reward
from grpo_gym.rewards.scoring import score
from grpo_gym.rollouts.scoring import leaf_rubrics

CORRECTNESS = "correctness"
STRICT_FORMAT = "strict_format"


class RewardChoice(Protocol):
    """One reward of an experiment."""

    name: str
    weight: float
    params: dict[str, Any]
    deadline: float | None


def use_rewards(env: vf.Environment, choices: Sequence[RewardChoice]) -> None:
    """Replace the rewards of `env` by `choices`; its metrics (all functions of weight 0) stay.

    Correctness comes first, with weight 0 if it is not chosen: accuracy is read from the first function.

    Raises:
        ValueError: an unknown reward, wrong params, or a reward that is listed twice.
    """
    names = [choice.name for choice in choices]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"reward '{repeated[0]}' is listed twice; list it once with the sum of the weights.")
    weights = {CORRECTNESS: 0.0, **{choice.name: choice.weight for choice in choices}}
    rewards = {
        choice.name: create_reward(choice.name, params_for(env, choice), choice.deadline)
        for choice in choices
    }
    rewards.setdefault(CORRECTNESS, create_reward(CORRECTNESS))
    deadline = next((c.deadline for c in choices if c.name == CORRECTNESS and c.deadline), SCORER_DEADLINE)
    scorer = TaskScorer(env, deadline)
    functions = [
        WithCorrectness(rewards[name], scorer) if rewards[name].uses_correctness else rewards[name]
        for name in weights
    ]
    rubric = vf.Rubric(funcs=list(functions), weights=list(weights.values()), parser=env.parser)
    metrics = [metrics_of(leaf, weights) for leaf in leaf_rubrics(env.rubric)]
    env.rubric = vf.RubricGroup([rubric, *(leaf for leaf in metrics if leaf.funcs)])


def params_for(env: vf.Environment, choice: RewardChoice) -> dict[str, Any]:
    """The params of a choice, with what depends on the environment: the tags of `strict_format`."""
    if choice.name == STRICT_FORMAT and isinstance(env.parser, vf.XMLParser):
        return {"tags": env.parser.get_fields(), **choice.params}
    return choice.params


def metrics_of(rubric: vf.Rubric, taken: Collection[str]) -> vf.Rubric:
    """A copy of `rubric` with its functions of weight 0 only.

    Args:
        rubric: one that holds functions.
        taken: names to leave out; Verifiers adds up what functions of the same name give.
    """
    metrics = copy.copy(rubric)
    weighted = zip(rubric.funcs, rubric.weights, strict=True)
    metrics.funcs = [func for func, weight in weighted if not weight and func.__name__ not in taken]
    metrics.weights = [0.0] * len(metrics.funcs)
    return metrics


class WithCorrectness:
    """A reward function whose reward is told what the task's own scorer says."""

    def __init__(self, reward: BaseReward, scorer: TaskScorer) -> None:
        self.reward = reward
        self.scorer = scorer
        self.__name__ = reward.__name__
        if reward.name == CORRECTNESS:
            # Its deadline is the scorer's; reading the score needs none.
            reward.deadline = None

    async def __call__(
        self, prompt: Any, completion: Any, answer: str, info: Mapping[str, Any] | None, state: vf.State
    ) -> float:
        """Score as Verifiers calls it.

        Raises:
            RewardError: the task's scorer or the reward failed, or took too long.
        """
        extended = {**scoring_info(info, state), "correctness": await self.scorer(state)}
        return await score(
            self.reward, (message_text(prompt), message_text(completion), str(answer), extended)
        )
