"""Telling "the scorer failed" from "the answer is wrong".

Verifiers scores a rollout whose reward function raised as 0.0, without a trace. Trained on, a broken
scorer looks like a wrong answer. `record_scorer_errors` wraps the reward functions of an environment so
that the exceptions are kept in the rollout's state, where the rollout engine finds them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import verifiers as vf
from verifiers.utils.async_utils import maybe_await

SCORER_ERROR_KEY = "grpo_gym_scorer_error"
"""In a rollout's state: what went wrong, by the name of the reward function; absent when nothing did."""
_WRAPPED = "_grpo_gym_records_errors"


def leaf_rubrics(rubric: vf.Rubric) -> Iterator[vf.Rubric]:
    """The rubrics that hold reward functions, through nested rubric groups."""
    members = getattr(rubric, "rubrics", None)
    if members is None:
        yield rubric
        return
    for member in members:
        yield from leaf_rubrics(member)


def record_scorer_errors(env: vf.Environment) -> None:
    """Wrap every reward function of `env` (once) to note what it raises in `state[SCORER_ERROR_KEY]`.

    A single score that is not a number counts as raised: Verifiers would record 0.0 for it, too.
    """
    for rubric in leaf_rubrics(env.rubric):
        rubric.funcs = [_recording(func, rubric._is_group_func(func)) for func in rubric.funcs]


def _recording(func: Callable[..., Any], is_group: bool) -> Callable[..., Any]:
    if getattr(func, _WRAPPED, False):
        return func
    signature = inspect.signature(func)
    state_name = "states" if is_group else "state"

    @functools.wraps(func)
    async def recording(**kwargs: Any) -> Any:
        try:
            scores = await maybe_await(func, **_accepted(signature, kwargs))
            return scores if is_group else float(scores)
        except Exception as error:
            # Noted and raised again: Verifiers still logs it; the engine leaves the rollout out.
            states = kwargs[state_name] if is_group else [kwargs[state_name]]
            for state in states:
                errors = state.setdefault(SCORER_ERROR_KEY, {})
                errors[recording.__name__] = f"{type(error).__name__}: {error}"
            raise

    recording.__signature__ = _with_parameter(signature, state_name)  # type: ignore[attr-defined]
    setattr(recording, _WRAPPED, True)
    return recording


def _accepted(signature: inspect.Signature, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments the wrapped function asks for."""
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
        return kwargs
    return {name: value for name, value in kwargs.items() if name in signature.parameters}


def _with_parameter(signature: inspect.Signature, name: str) -> inspect.Signature:
    """The signature with a keyword-only parameter `name`, so that Verifiers passes it."""
    if name in signature.parameters:
        return signature
    parameters = list(signature.parameters.values())
    added = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
    has_var_keyword = parameters and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
    position = len(parameters) - 1 if has_var_keyword else len(parameters)
    return signature.replace(parameters=[*parameters[:position], added, *parameters[position:]])
