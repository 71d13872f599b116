"""The task's own scorer: with a deadline where possible, and as rewards ask for it, once per completion."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import verifiers as vf
from verifiers.utils.async_utils import maybe_await

from grpo_gym.rewards.base import RewardError
from grpo_gym.rewards.scoring import call_within
from grpo_gym.rollouts.scoring import leaf_rubrics

SCORER_DEADLINE = 10.0
"""Seconds a task's own scorer may take where nothing else is said."""
_STATE_KEY = "grpo_gym_correctness"
_GYM_SCORER = ("reasoning_gym_tasks.environment", "check_answer_reward_func")


def score_in_workers(env: vf.Environment, deadline: float = SCORER_DEADLINE) -> None:
    """Let Reasoning Gym's scorers, where `env` has them, run in worker processes within `deadline` seconds.

    Some never end on odd answers, and a policy finds such answers. Reward functions of other environments may
    be closures, which cannot move to another process: they stay as they are.
    """
    for leaf in leaf_rubrics(env.rubric):
        leaf.funcs = [
            in_worker(func, deadline, func.__name__) if is_gym_scorer(func) else func for func in leaf.funcs
        ]


class TaskScorer:
    """Scores a rollout with the reward function of `env` that has the largest weight (the first of several).

    Reasoning Gym's scorers run in worker processes within `deadline` seconds, those of other environments in
    place, without a deadline: see `score_in_workers`.

    Raises:
        ValueError: the environment has no reward function of single completions.
    """

    def __init__(self, env: vf.Environment, deadline: float) -> None:
        self.rubric, function = main_reward(env.rubric)
        self.function = in_worker(function, deadline, "correctness") if is_gym_scorer(function) else function

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


def is_gym_scorer(function: Any) -> bool:
    """Whether it is the scorer of this project's Reasoning Gym environment, not one that a subclass put there."""
    method = getattr(function, "__func__", None)
    return (getattr(method, "__module__", None), getattr(method, "__name__", None)) == _GYM_SCORER


def in_worker(scorer: Any, deadline: float, name: str) -> Callable[..., Any]:
    """A reward function that does in a worker process what `scorer` does in place.

    Args:
        scorer: see `is_gym_scorer`; the rows of its environment carry all that scoring needs.
        deadline: seconds one score may take.
        name: what errors call it.
    """
    env = scorer.__self__

    @functools.wraps(scorer)
    async def scored(completion: Any, info: Mapping[str, Any], question: str) -> float:
        answer = env.parser.parse_answer(completion)
        if answer is None:
            return 0.0
        from grpo_gym.rewards.reasoning_gym_scorer import score_reasoning_gym

        mixture = env.rg_dataset if info["split"] == "train" else env.rg_eval_dataset
        place = (mixture.specs, mixture.seed, len(mixture), info["index"])
        arguments = (*place, info["source_dataset"], answer, info["entry"], question)
        return await call_within(score_reasoning_gym, arguments, deadline, name)

    return scored
