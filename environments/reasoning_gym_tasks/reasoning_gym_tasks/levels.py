"""Difficulty: Reasoning Gym's curricula as levels 0, 1, 2, ... of a task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import reasoning_gym  # noqa: F401  (importing it registers the curricula)
from reasoning_gym.coaching.attributes import RangeAttributeDefinition
from reasoning_gym.factory import CURRICULA

Level = int | Sequence[int] | None


def stages(task: str, level: Level, config: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """The settings of a task, one after the other along a split.

    Args:
        task: its name.
        level: one level, several (the split goes through them in equal parts), or None for the task's defaults.
        config: settings that go before those of the level.

    Raises:
        ValueError: the task has no levels, or not this one.
    """
    if level is None:
        return (dict(config),)
    levels = [level] if isinstance(level, int) else list(level)
    if not levels:
        raise ValueError(f"the level of task '{task}' is an empty list; give at least one number, or none.")
    return tuple({**level_config(task, number), **config} for number in levels)


def level_config(task: str, level: int) -> dict[str, Any]:
    """The settings of a level; settings with fewer levels stay at their hardest.

    Raises:
        ValueError: the task has no levels, or not this one.
    """
    highest = max_level(task)
    if isinstance(level, bool) or not isinstance(level, int) or not 0 <= level <= highest:
        raise ValueError(f"task '{task}' has the levels 0 to {highest}, not {level!r}.")
    curriculum = CURRICULA[task]()
    curriculum.set_global_level(level)
    config = curriculum.generate_configuration()
    names = [name for attribute in curriculum.attributes.values() for name in _fields(attribute)]
    return {name: getattr(config, name) for name in names}


def max_level(task: str) -> int:
    """The hardest level.

    Raises:
        ValueError: the task has no levels.
    """
    if task not in CURRICULA:
        raise ValueError(f"Reasoning Gym task '{task}' has no difficulty levels; set its config instead.")
    return max(len(attribute.levels) for attribute in CURRICULA[task]().attributes.values()) - 1


def _fields(attribute: Any) -> tuple[str, ...]:
    """The settings that an attribute of a curriculum sets."""
    if isinstance(attribute, RangeAttributeDefinition):
        return attribute.lower_field_name, attribute.upper_field_name
    return (attribute.field_name,)
