"""From a file and overrides to a checked `Experiment`."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from grpo_gym.config.compose import compose
from grpo_gym.config.errors import ConfigError, KeyPath, nearest
from grpo_gym.config.normalize import keys_of_section
from grpo_gym.config.schema import (
    DatasetEntry,
    Experiment,
    FieldMapping,
    RewardSpec,
    TaskEntry,
    experiment_model,
    section_fields,
)
from grpo_gym.config.tree import Tree

_INNER_KEYS: dict[KeyPath, type] = {
    ("rewards", "*"): RewardSpec,
    ("data", "tasks", "*"): TaskEntry,
    ("data", "datasets", "*"): DatasetEntry,
    ("data", "field_mapping"): FieldMapping,
}


def load_experiment(path: str | Path, overrides: Sequence[str] = ()) -> Experiment:
    """The experiment of a YAML file, with `key=value` overrides.

    `run_name` (and with it `output_dir`, outputs/<run_name>) defaults to the name of the file.

    Raises:
        ConfigError: with file, line, key and what to write instead, one line per problem.
    """
    tree = compose(Path(path), overrides)
    training = tree.values.setdefault("training", {})
    if isinstance(training, dict) and not training.get("run_name") and not training.get("output_dir"):
        training["run_name"] = Path(path).stem
    experiment = validate(tree)
    check_tasks(experiment, tree)
    experiment.remember(tree.origins)
    return experiment


def validate(tree: Tree) -> Experiment:
    """Check the tree against the schema.

    Raises:
        ConfigError: unknown keys, wrong types and impossible values, one line each.
    """
    try:
        return experiment_model().model_validate(tree.values)
    except ValidationError as error:
        raise validation_error(error, tree) from error


def validation_error(
    error: ValidationError, tree: Tree, suggestion: Callable[[KeyPath], str] | None = None
) -> ConfigError:
    """Pydantic's findings, one line each, with file and line.

    Args:
        error: what pydantic raised for `tree.values`.
        tree: where the values come from.
        suggestion: of an unknown key, what may have been meant ("; did you mean ...?", or "").
    """
    lines: dict[KeyPath, str] = {}
    for problem in error.errors():
        path = tuple(str(part) for part in problem["loc"])
        known = _longest_known(path, tree)
        message = _message(path, problem, suggestion or _suggestion)
        # A union reports one problem per member, for the same key: the first says it.
        lines.setdefault(known, str(ConfigError.at(tree.origins, known, message)))
    return ConfigError("\n".join(lines.values()))


def check_tasks(experiment: Experiment, tree: Tree) -> None:
    """Check task names and their settings with the environment package that knows them.

    Raises:
        ConfigError: an unknown task, or a setting or level it does not have, with the nearest one.
    """
    if not experiment.data.tasks:
        return
    from reasoning_gym_tasks.tasks import parse_gym

    for name, entry in experiment.data.tasks.items():
        try:
            parse_gym([{"name": name, **entry.model_dump()}])
        except ValueError as error:
            raise ConfigError.at(tree.origins, ("data", "tasks", name), str(error)) from error


def _longest_known(path: KeyPath, tree: Tree) -> KeyPath:
    """The path without the union members pydantic adds to it."""
    value: Any = tree.values
    for depth, part in enumerate(path):
        if isinstance(value, dict) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return path[:depth]
    return path


def _message(path: KeyPath, problem: Any, suggestion: Callable[[KeyPath], str]) -> str:
    if problem["type"] == "extra_forbidden":
        return f"unknown setting{suggestion(path)}"
    if problem["type"] == "missing":
        return f"'{path[-1]}' is missing"
    if problem["type"] in ("model_type", "dict_type"):
        return f"must be a mapping, not {problem['input']!r}"
    text = problem["msg"].removeprefix("Value error, ")
    text = textwrap.shorten(text[0].lower() + text[1:], 200)
    given = problem["input"]
    return (
        text
        if isinstance(given, dict | list) or problem["type"] == "value_error"
        else f"{text}, not {given!r}"
    )


def _suggestion(path: KeyPath) -> str:
    """The section that has a key of this name; else the nearest key of the same section, or of any."""
    parent, key = path[:-1], path[-1]
    siblings = _keys_of(parent)
    everywhere = {name: section for section, names in section_fields().items() for name in names}
    if key not in everywhere and (near := nearest(key, siblings)):
        return near
    found = [key] if key in everywhere else difflib.get_close_matches(key, list(everywhere), n=1, cutoff=0.8)
    if found:
        return f"; did you mean '{everywhere[found[0]]}.{found[0]}'?"
    return f"; {'.'.join(parent)} has {', '.join(siblings)}" if 0 < len(siblings) < 30 else ""


def _keys_of(parent: KeyPath) -> tuple[str, ...]:
    if len(parent) == 1:
        return keys_of_section(parent[0])
    for pattern, model in _INNER_KEYS.items():
        if len(pattern) == len(parent) and all(p in ("*", q) for p, q in zip(pattern, parent, strict=True)):
            return tuple(model.model_fields)  # type: ignore[attr-defined]
    return ()
