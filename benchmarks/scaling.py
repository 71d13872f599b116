"""How the cost of a step grows with group and prompt, and start-up with data set and number of tasks.

python -m benchmarks scaling
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import Result, say
from benchmarks.programs import OurProgram, timed_step
from benchmarks.ready_rollouts import Cell, make_groups
from benchmarks.shapes import MODEL_NAMES, random_model

GROUP_CELLS = [Cell(256, 64, g) for g in (4, 8, 16, 32, 64)]
PROMPT_CELLS = [Cell(p, 64, 8) for p in (64, 128, 256, 512, 1024, 2048)]
DATASET_SIZES = (1_000, 10_000, 100_000, 1_000_000)
TASK_COUNTS = (1, 10, 50, 100)
FIRST_ROWS = 64


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The options of `scaling`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks scaling")
    parser.add_argument("--model", default="tiny", choices=MODEL_NAMES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where result files go")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measure the four curves."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    result = Result("scaling", ["scaling", *argv], notes=_notes(args))
    curves = {
        "group_size": {cell.group_size: step_seconds(cell, args) for cell in GROUP_CELLS},
        "prompt_length": {cell.prompt_length: step_seconds(cell, args) for cell in PROMPT_CELLS},
        "dataset_size": {n: startup_seconds("leg_counting", n, args) for n in DATASET_SIZES},
        "num_tasks": {n: startup_seconds(task_names(n), 1000, args, rows=0) for n in TASK_COUNTS},
    }
    for name, curve in curves.items():
        _add(result, name, curve)
        say(f"{name}: {curve}")
    result.figures["seconds_startup_1M_over_1k"] = (
        curves["dataset_size"][1_000_000] / curves["dataset_size"][1_000]
    )
    result.details = {name: {str(size): s for size, s in curve.items()} for name, curve in curves.items()}
    result.write(lambda axes: _plot(axes, curves), args.folder)


def step_seconds(cell: Cell, args: argparse.Namespace) -> float:
    """Median seconds of loss and backward of one group."""
    model = random_model(args.model)
    program = OurProgram(model, cell.group_size, "float32")
    steps = [make_groups(cell, model.config.vocab_size, 0.5, seed) for seed in range(args.repeats)]
    timed_step(program, steps[0])
    return statistics.median(timed_step(program, step) for step in steps)


def startup_seconds(
    gym: str | list[str], num_examples: int, args: argparse.Namespace, rows: int = FIRST_ROWS
) -> float:
    """Median seconds until the first `rows` prompts of a new environment have been drawn."""
    _startup_once(gym, num_examples, rows)
    return statistics.median(_startup_once(gym, num_examples, rows) for _ in range(args.repeats))


def _startup_once(gym: str | list[str], num_examples: int, rows: int) -> float:
    from reasoning_gym_tasks import load_environment

    from grpo_gym.rollouts.prompts import EnvironmentRows, PromptStream

    start = time.perf_counter()
    env = load_environment(gym=gym, num_train_examples=num_examples, num_eval_examples=100)
    stream = PromptStream(EnvironmentRows(env, "train"), seed=0)
    for _ in range(rows):
        next(stream)
    return time.perf_counter() - start


def task_names(count: int) -> list[str]:
    """The first `count` task names whose entries are quick to make."""
    from reasoning_gym.factory import DATASETS

    slow = {"composite", "knight_swap", "sokoban", "puzzle24", "zebra_puzzles", "quantum_lock", "futoshiki"}
    names = sorted(set(DATASETS) - slow)
    if count == 1:
        return ["leg_counting"]
    return names[:count]


def _add(result: Result, name: str, curve: dict[int, float]) -> None:
    first = next(iter(curve.values()))
    for size, seconds in curve.items():
        result.figures[f"seconds_{name}_{size}"] = seconds
        result.rows.append(
            {"what grows": name, "size": size, "seconds": seconds, "vs first": seconds / first}
        )


def _notes(args: argparse.Namespace) -> list[str]:
    return [
        f"group_size and prompt_length: loss and backward of one group, {args.model} shape, float32, "
        f"{args.threads} thread(s); prompt 256 / mean completion 64, and G 8 / mean completion 64.",
        f"dataset_size: a new leg_counting environment until its first {FIRST_ROWS} prompts are drawn, "
        "shuffled. num_tasks: a composite of that many tasks with 1000 prompts until it is ready to draw "
        "from (what a row then costs is its task's own generator).",
        f"Medians of {args.repeats} runs.",
    ]


def _plot(axes: Any, curves: dict[str, dict[int, float]]) -> None:
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("size")
    axes.set_ylabel("seconds")
    axes.legend()
