"""The task's own scorer, as rewards ask for it: once per completion, with a deadline where possible."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import verifiers as vf
from verifiers.utils.async_utils import maybe_await

from grpo_gym.rewards.base import RewardError
from grpo_gym.rewards.scoring import call_within
from grpo_gym.rollouts.scoring import leaf_rubrics

_STATE_KEY = "grpo_gym_correctness"


class TaskScorer:
    """Scores a rollout with the reward function of `env` that has the largest weight (the first of several).

    Reasoning Gym's scorers run in worker processes within `deadline` seconds. Those of other environments may
    be closures, which cannot move to another process: they run in place, without a deadline.

    Raises:
        ValueError: the environment has no reward function of single completions.
    """

    def __init__(self, env: vf.Environment, deadline: float) -> None:
        self.rubric, self.function = main_reward(env.rubric)
        self.env = env
        self.deadline = deadline
        self._in_worker = is_reasoning_gym(env)

    async def __call__(self, state: vf.State) -> float:
        """The score; computed once per state, an error too.

        Raises:
            RewardError: the scorer failed or took too long.
        """
        if _STATE_KEY not in state:
            try:
                state[_STATE_KEY] = await self._score(state)
            except Exception as error:
                # Kept, so that a second reward that asks does not wait for the deadline again.
                state[_STATE_KEY] = error
        found = state[_STATE_KEY]
        if isinstance(found, Exception):
            raise RewardError(str(found)) from found
        return found

    async def _score(self, state: vf.State) -> float:
        objects = self.rubric.score_objects(state)
        if self._in_worker:
            arguments = reasoning_gym_arguments(self.env, objects)
            from grpo_gym.rewards.reasoning_gym_scorer import score_reasoning_gym

            return await call_within(score_reasoning_gym, arguments, self.deadline, "correctness")
        parameters = inspect.signature(self.function).parameters
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            objects = {name: value for name, value in objects.items() if name in parameters}
        return float(await maybe_await(self.function, **objects))


def main_reward(rubric: vf.Rubric) -> tuple[vf.Rubric, Any]:
    """The reward function with the largest weight, and the rubric that holds it.

    Raises:
        ValueError: there is none that scores single completions.
    """
    candidates = [
        (weight, leaf, function)
        for leaf in leaf_rubrics(rubric)
        for function, weight in zip(leaf.funcs, leaf.weights, strict=True)
        if weight > 0 and not leaf._is_group_func(function)
    ]
    if not candidates:
        raise ValueError(
            "the environment has no reward function for single completions, which 'correctness' needs; "
            "leave the rewards section empty to use its own rubric."
        )
    _, leaf, function = max(candidates, key=lambda candidate: candidate[0])
    return leaf, function


def is_reasoning_gym(env: vf.Environment) -> bool:
    """Whether `env` is this project's Reasoning Gym environment, whose rows carry what scoring needs."""
    return any(base.__module__.startswith("reasoning_gym_tasks.") for base in type(env).__mro__)


def reasoning_gym_arguments(env: Any, objects: Mapping[str, Any]) -> tuple[Any, ...]:
    """What `score_reasoning_gym` needs, from an environment and the objects of a rollout."""
    info = objects["info"]
    mixture = env.rg_dataset if info["split"] == "train" else env.rg_eval_dataset
    answer = env.parser.parse_answer(objects["completion"])
    place = (mixture.specs, mixture.seed, len(mixture), info["index"])
    return (*place, info["source_dataset"], answer, info["entry"], objects["question"])
