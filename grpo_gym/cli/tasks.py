"""`grpo-gym tasks`: what can be trained on, read from the installed Reasoning Gym."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import Any

from grpo_gym.cli import fail

_EPILOG = """\
examples:
  grpo-gym tasks                      all tasks by category
  grpo-gym tasks --category logic
  grpo-gym tasks show leg_counting    example, settings, difficulty levels
  grpo-gym tasks show leg_counting --json
"""
# Set by the environment for the whole split.
_NOT_SETTINGS = ("seed", "size")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "words", nargs="*", metavar="show NAME", help="show one task; without it all are listed"
    )
    parser.add_argument("--category", help="list only this category")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the tasks."""
    try:
        if not args.words:
            return _print_list(args.category, args.json)
        if args.words[0] != "show" or len(args.words) != 2:
            return fail(f"'{' '.join(args.words)}' is not understood; write: grpo-gym tasks show NAME")
        return _print_task(args.words[1], args.json)
    except ValueError as error:
        return fail(error)


def categories() -> dict[str, list[str]]:
    """Task names by category, both sorted."""
    from reasoning_gym_tasks import task_names

    by_category: dict[str, list[str]] = {}
    for name in task_names():
        by_category.setdefault(category_of(name), []).append(name)
    return dict(sorted(by_category.items()))


def category_of(name: str) -> str:
    """The part of Reasoning Gym a task lives in."""
    from reasoning_gym.factory import DATASETS

    return DATASETS[name][0].__module__.split(".")[1]


def describe_task(name: str) -> dict[str, Any]:
    """Everything about a task as plain values: name, category, description, example, settings, curriculum.

    Raises:
        ValueError: an unknown task, with near names.
    """
    from reasoning_gym.factory import DATASETS
    from reasoning_gym_tasks import load_environment
    from reasoning_gym_tasks.tasks import parse_gym

    parse_gym(name)
    dataset_class, config_class = DATASETS[name]
    row = load_environment(name, num_train_examples=1, num_eval_examples=0, system_prompt=None).row(0)
    return {
        "name": name,
        "category": category_of(name),
        "description": " ".join((dataset_class.__doc__ or "").split()),
        "example": {"question": row["question"], "answer": row["answer"]},
        "config": [_setting(f) for f in dataclasses.fields(config_class) if f.name not in _NOT_SETTINGS],
        "curriculum": curriculum_of(name),
    }


def curriculum_of(name: str) -> list[dict[str, Any]]:
    """The attributes of a task's difficulty, with their levels; empty where it has no curriculum."""
    from reasoning_gym.factory import CURRICULA

    if name not in CURRICULA:
        return []
    return [
        {
            "attribute": attribute.name,
            "levels": _plain(attribute.levels),
            "description": attribute.description,
        }
        for attribute in CURRICULA[name]().attributes.values()
    ]


def _setting(field: dataclasses.Field) -> dict[str, Any]:
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    kind = field.type if isinstance(field.type, str) else getattr(field.type, "__name__", str(field.type))
    return {
        "name": field.name,
        "type": kind,
        "default": None if default is dataclasses.MISSING else _plain(default),
    }


def _plain(value: Any) -> Any:
    """The value as JSON can hold it."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _print_list(category: str | None, as_json: bool) -> int:
    found = categories()
    if category is not None and category not in found:
        raise ValueError(f"no category '{category}'; there are {', '.join(found)}.")
    chosen = {name: tasks for name, tasks in found.items() if category in (None, name)}
    if as_json:
        print(
            json.dumps(
                [{"name": task, "category": name} for name, tasks in chosen.items() for task in tasks],
                indent=2,
            )
        )
        return 0
    for name, tasks in chosen.items():
        print(f"{name} ({len(tasks)})")
        print("".join(f"  {task}\n" for task in tasks))
    print(f"{sum(map(len, chosen.values()))} tasks; one of them: grpo-gym tasks show NAME")
    return 0


def _print_task(name: str, as_json: bool) -> int:
    task = describe_task(name)
    if as_json:
        print(json.dumps(task, indent=2, ensure_ascii=False))
        return 0
    print(
        f"{name} ({task['category']})\n{task['description']}\n\n"
        f"Example\n{_indent(task['example']['question'])}"
    )
    print(f"\nAnswer\n{_indent(task['example']['answer'])}\n\nSettings (data.tasks.{name}.config)")
    for setting in task["config"]:
        print(f"  {setting['name']}: {json.dumps(setting['default'])[:200]}")
    print("\nDifficulty levels" if task["curriculum"] else "\nNo difficulty levels.")
    for attribute in task["curriculum"]:
        levels = json.dumps(attribute["levels"])[:120]
        print(f"  {attribute['attribute']}: {levels}  {attribute['description'] or ''}")
    return 0


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())
