"""Which tasks, with which weights and settings: reading and checking what the user asked for."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import reasoning_gym  # noqa: F401  (importing it registers the tasks)
from reasoning_gym.factory import DATASETS

from reasoning_gym_tasks.levels import Level, stages

GymSpec = str | Mapping[str, Any] | Sequence[str | Mapping[str, Any]]

# `composite` is Reasoning Gym's own mix and needs members; here a list of tasks is the mix.
_NOT_TASKS = frozenset({"composite"})

# Names people write for tasks that are called something else. An empty tuple: nothing alike exists.
_MEANT = {
    "arithmetic_basic": ("basic_arithmetic",),
    "algebra_linear_1var": ("simple_equations",),
    "game_of_24": ("puzzle24",),
    "missing_letter": ("letter_counting",),
    "chess_notation": ("n_queens", "knight_swap"),
    "fizzbuzz": (),
}
# Set by the environment's own arguments, so that train and eval stay apart.
_RESERVED_FIELDS = {"seed": "seed / eval_seed", "size": "num_train_examples / num_eval_examples"}


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One member of a mix: a task, how often it is drawn, its own settings, and its difficulty."""

    name: str
    weight: float = 1.0
    config: dict[str, Any] = field(default_factory=dict)
    level: Level = None

    def stages(self) -> tuple[dict[str, Any], ...]:
        """Its settings along a split: one, or as many as there are levels.

        Raises:
            ValueError: the task does not have this level.
        """
        return stages(self.name, self.level, self.config)


def task_names() -> list[str]:
    """All task names, sorted."""
    return sorted(set(DATASETS) - _NOT_TASKS)


def parse_gym(gym: GymSpec, config: Mapping[str, Any] | None = None) -> tuple[TaskSpec, ...]:
    """The checked members of a mix.

    Args:
        gym: a task name, a `{name, weight, config}` mapping, or a list of either.
        config: settings of the task, when `gym` is a single name.

    Raises:
        ValueError: an unknown task, setting or key, a bad weight, or `config` beside more than one task.
    """
    if isinstance(gym, str):
        return (_checked(TaskSpec(gym, config=dict(config or {}))),)
    if config:
        raise ValueError(
            "config belongs to a single task name; in a list give each task its own: "
            "[{'name': ..., 'weight': ..., 'config': {...}}]."
        )
    members = [gym] if isinstance(gym, Mapping) else list(gym)
    if not members:
        raise ValueError("gym is an empty list; name at least one Reasoning Gym task.")
    return tuple(_checked(_parse_member(member)) for member in members)


def _parse_member(member: str | Mapping[str, Any]) -> TaskSpec:
    if isinstance(member, str):
        return TaskSpec(member)
    if not isinstance(member, Mapping) or "name" not in member:
        raise ValueError(
            f"each task is a name or {{'name': ..., 'weight': ..., 'config': ..., 'level': ...}}, not {member!r}."
        )
    known = [f.name for f in dataclasses.fields(TaskSpec)]
    for key in member:
        if key not in known:
            raise ValueError(f"unknown key '{key}' beside task '{member['name']}'{_hint(key, known)}.")
    config = dict(member.get("config") or {})
    return TaskSpec(member["name"], member.get("weight", 1.0), config, member.get("level"))


def _checked(spec: TaskSpec) -> TaskSpec:
    _check_name(spec.name)
    is_number = isinstance(spec.weight, int | float) and not isinstance(spec.weight, bool)
    if not is_number or not math.isfinite(spec.weight) or spec.weight <= 0:
        raise ValueError(f"the weight of task '{spec.name}' must be a number above 0, not {spec.weight!r}.")
    _check_config(spec)
    return spec


def _check_name(name: str) -> None:
    names = task_names()
    if name in names:
        return
    if name in _NOT_TASKS:
        raise ValueError(f"'{name}' is not a task by itself; pass a list of task names as gym instead.")
    meant = _MEANT.get(name)
    if meant is None:
        meant = tuple(difflib.get_close_matches(str(name), names, n=3, cutoff=0.6))
    if meant:
        raise ValueError(f"unknown Reasoning Gym task '{name}'; did you mean {_quoted(meant)}?")
    raise ValueError(
        f"unknown Reasoning Gym task '{name}', and none is called anything like it; all names: "
        'python -c "import reasoning_gym_tasks as t; print(*t.task_names())"'
    )


def _check_config(spec: TaskSpec) -> None:
    """Check the settings as Reasoning Gym does, without making the dataset."""
    config_class = DATASETS[spec.name][1]
    fields = [f.name for f in dataclasses.fields(config_class) if f.name not in _RESERVED_FIELDS]
    for key in spec.config:
        if key in _RESERVED_FIELDS:
            raise ValueError(f"'{key}' is not a setting of a task here; use {_RESERVED_FIELDS[key]}.")
        if key not in fields:
            raise ValueError(f"Reasoning Gym task '{spec.name}' has no setting '{key}'{_hint(key, fields)}.")
    for settings in spec.stages():
        try:
            config = config_class(**settings)
            if hasattr(config, "validate"):
                config.validate()
        except (AssertionError, TypeError, ValueError) as error:
            raise ValueError(
                f"Reasoning Gym task '{spec.name}' refuses its config {settings}: {error}"
            ) from error


def _hint(word: str, known: Iterable[str]) -> str:
    known = list(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {_quoted(near)}?"
    return f"; it has {', '.join(known)}" if known else "; it has none"


def _quoted(words: Iterable[str]) -> str:
    return " or ".join(f"'{word}'" for word in words)
