"""Rewards by name, from here and from modules of the user."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, overload

from grpo_gym.rewards.base import BaseReward

RewardClass = TypeVar("RewardClass", bound=type[BaseReward])

_REWARDS: dict[str, type[BaseReward]] = {}
_BUILT_IN = "grpo_gym.rewards.built_in"
_loaded_modules: list[str] = []


@overload
def register_reward(name: str) -> Callable[[RewardClass], RewardClass]: ...
@overload
def register_reward(name: str, cls: RewardClass) -> RewardClass: ...
def register_reward(name: str, cls: Any = None) -> Any:
    """Make a reward class known by a name: `register_reward("short", Short)`, or as a decorator.

    Raises:
        TypeError: not a subclass of `BaseReward`.
        ValueError: another class has the name.
    """
    if cls is None:
        return lambda decorated: register_reward(name, decorated)
    if not (isinstance(cls, type) and issubclass(cls, BaseReward)):
        raise TypeError(f"register_reward('{name}'): {cls!r} is not a class derived from BaseReward.")
    known = _REWARDS.get(name)
    if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"reward '{name}' is {known.__module__}.{known.__qualname__} already; choose another name."
        )
    cls.name = name
    _REWARDS[name] = cls
    return cls


def reward_names() -> list[str]:
    """All registered names, sorted."""
    importlib.import_module(_BUILT_IN)
    return sorted(_REWARDS)


class RewardParamError(ValueError):
    """A param that a reward's class does not take."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


def create_reward(
    name: str, params: Mapping[str, Any] | None = None, deadline: float | None = None
) -> BaseReward:
    """The reward called `name`, made with `params`; `deadline` replaces its own.

    Raises:
        ValueError: see `check_reward`.
    """
    reward = check_reward(name, params)(**(params or {}))
    if deadline is not None:
        reward.deadline = deadline
    return reward


def check_reward(name: str, params: Mapping[str, Any] | None = None) -> type[BaseReward]:
    """The class of the reward called `name`, which takes `params`.

    Raises:
        RewardParamError: a param its class does not take (with the nearest).
        ValueError: an unknown name (with the nearest), or a param is missing.
    """
    if name not in reward_names():
        near = difflib.get_close_matches(name, _REWARDS, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"known are {', '.join(sorted(_REWARDS))}."
        raise ValueError(f"unknown reward '{name}'; {hint} Your own come from rewards_module.")
    cls = _REWARDS[name]
    signature = inspect.signature(cls)
    takes = ", ".join(signature.parameters) or "nothing"
    if not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
        for param in params or {}:
            if param not in signature.parameters:
                near = difflib.get_close_matches(param, signature.parameters, n=1, cutoff=0.5)
                hint = f"did you mean '{near[0]}'? It" if near else "it"
                raise RewardParamError(
                    f"reward '{name}' has no param '{param}'; {hint} takes {takes}.", param
                )
    try:
        signature.bind(**(params or {}))
    except TypeError as error:
        raise ValueError(f"params of reward '{name}': {error}; it takes {takes}.") from error
    return cls


def load_rewards_module(path_or_name: str) -> ModuleType:
    """Import a .py file, a package folder or an importable name, so that it registers its rewards.

    Raises:
        ValueError: it cannot be found or imported.
    """
    path = Path(path_or_name).expanduser()
    try:
        module = _import_path(path) if path.exists() else importlib.import_module(path_or_name)
    except Exception as error:
        # Anything may go wrong in code of the user's; the cause stays attached.
        raise ValueError(
            f"rewards_module '{path_or_name}' fails to import: {type(error).__name__}: {error}"
        ) from error
    if path_or_name not in _loaded_modules:
        _loaded_modules.append(path_or_name)
    return module


def loaded_modules() -> list[str]:
    """What `load_rewards_module` was given, for scoring processes to load as well."""
    return list(_loaded_modules)


def _import_path(path: Path) -> ModuleType:
    """Import a file or package folder under a name that its place decides, the same in every process."""
    file = path / "__init__.py" if path.is_dir() else path
    name = f"grpo_gym_rewards_{path.stem}_{hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    locations = [str(path)] if path.is_dir() else None
    spec = importlib.util.spec_from_file_location(name, file, submodule_search_locations=locations)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
