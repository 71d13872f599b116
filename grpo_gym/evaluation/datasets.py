"""The problems of an evaluation: environments and their fixed rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import verifiers as vf

from grpo_gym.config.errors import ConfigError
from grpo_gym.evaluation.config import EvalConfig, EvalDataset
from grpo_gym.evaluation.results import Problem, problem_id
from grpo_gym.evaluation.stable_rows import held_out_rows
from grpo_gym.rollouts.convert import messages_text
from grpo_gym.rollouts.prompts import Row


@dataclass(slots=True)
class LoadedDataset:
    """A dataset that is ready: its rows, and each row as a `Problem` without samples."""

    name: str
    category: str
    env: vf.Environment
    rows: list[Row]
    problems: list[Problem]


def load_datasets(config: EvalConfig) -> list[LoadedDataset]:
    """Every dataset of the evaluation.

    Raises:
        ConfigError: an environment that is not installed, or fails with these arguments.
        ValueError: an environment without problems.
    """
    return [
        load_dataset(config, category, name, entry)
        for category, members in config.categories.items()
        for name, entry in members.items()
    ]


def load_dataset(config: EvalConfig, category: str, name: str, entry: EvalDataset) -> LoadedDataset:
    """One dataset; its problems depend on its own settings alone, not on the other datasets or on `size`."""
    env = _load_environment(name, entry) if entry.environment else _load_task(config, name, entry)
    rows = held_out_rows(env, entry.size or config.default_size)
    problems = [_problem(name, category, row, is_task=entry.environment is None) for row in rows]
    return LoadedDataset(name, category, env, rows, problems)


def _load_task(config: EvalConfig, name: str, entry: EvalDataset) -> vf.Environment:
    from reasoning_gym_tasks import load_environment

    seed = config.default_seed if entry.seed is None else entry.seed
    return load_environment(
        gym=entry.dataset or name,
        config=entry.params,
        num_train_examples=1,
        num_eval_examples=entry.size or config.default_size,
        seed=seed,
        system_prompt=config.system_prompt,
        few_shot=config.few_shot,
        parser_fields=("think", "answer") if config.think else ("answer",),
    )


def _load_environment(name: str, entry: EvalDataset) -> vf.Environment:
    try:
        return vf.load_environment(str(entry.environment), **entry.env_args)
    except (ValueError, RuntimeError, TypeError) as error:
        raise ConfigError(f"dataset {name}: environment '{entry.environment}': {error}") from error


def _problem(name: str, category: str, row: Row, is_task: bool) -> Problem:
    prompt, answer = messages_text(row["prompt"]), str(row.get("answer", ""))
    return Problem(
        id=problem_id(prompt, answer),
        task=name if is_task else _member_name(name, row.get("info")),
        example_id=int(row["example_id"]),
        prompt=prompt,
        answer=answer,
        category=category,
    )


def _member_name(name: str, info: Any) -> str:
    """Environments that mix tasks say which one a row is from."""
    source = info.get("source_dataset") if isinstance(info, dict) else None
    return f"{name}/{source}" if source else name
