"""The few figures a reader wants first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_gym.reporting.eval_results import Evaluation
from grpo_gym.reporting.packed_completions import PackedCompletions
from grpo_gym.reporting.run_log import RunLog


@dataclass(slots=True)
class Fact:
    """One figure: what it is, its value, and a remark."""

    label: str
    value: str
    detail: str = ""


@dataclass(slots=True)
class RunDescription:
    """The head of the report."""

    name: str
    folder: str
    subtitle: list[str] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def describe_run(
    folder: Path,
    log: RunLog,
    evaluations: Sequence[Evaluation],
    completions: PackedCompletions,
    config: dict[str, Any],
    gain: tuple[float, float] | None = None,
) -> RunDescription:
    """Name, facts and notices of a run; `gain` is the 95% interval of the gain in accuracy."""
    training = config.get("training") or {}
    facts = (
        _accuracy(evaluations, gain),
        _reward(log),
        _steps(log),
        _completions(completions),
        _throughput(log),
        _wall_time(log),
    )
    return RunDescription(
        name=str(training.get("run_name") or folder.resolve().name),
        folder=str(folder),
        subtitle=_subtitle(config, completions),
        facts=[fact for fact in facts if fact is not None],
        notices=_notices(log),
    )


def duration(seconds: float) -> str:
    """Seconds in the two largest units: "45 s", "2 min 5 s", "3 h 20 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _subtitle(config: dict[str, Any], completions: PackedCompletions) -> list[str]:
    model = (config.get("model") or {}).get("model_name_or_path")
    tasks = [task for task in completions.tasks if task]
    shown = ", ".join(tasks[:4]) + (f" and {len(tasks) - 4} more tasks" if len(tasks) > 4 else "")
    loss = (config.get("training") or {}).get("loss_type")
    return [text for text in (model, shown, f"{loss} loss" if loss else None) if text]


def _notices(log: RunLog) -> list[str]:
    if not log.entries:
        return ["No log was found, so there are no curves; what follows is read from the other files."]
    if log.max_steps and log.last_step < log.max_steps:
        when = time.strftime(", logged %Y-%m-%d %H:%M", time.localtime(log.updated)) if log.updated else ""
        return [f"The run stands at step {log.last_step:,} of {log.max_steps:,}{when}."]
    return []


def _accuracy(evaluations: Sequence[Evaluation], interval: tuple[float, float] | None) -> Fact | None:
    if not evaluations:
        return None
    first, last = evaluations[0], evaluations[-1]
    if first.step == last.step:
        return Fact("Held-out accuracy", f"{last.accuracy:.1%}", f"at step {last.step}")
    gain = f"{100 * (last.accuracy - first.accuracy):+.1f} points"
    certain = f"95%: {100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}" if interval else ""
    return Fact(
        "Held-out accuracy",
        f"{first.accuracy:.1%} → {last.accuracy:.1%}",
        f"{gain} ({certain})" if certain else gain,
    )


def _reward(log: RunLog) -> Fact | None:
    values = [value for _, value in log.points("reward")]
    if not values:
        return None
    tenth = max(1, len(values) // 10)
    first, last = sum(values[:tenth]) / tenth, sum(values[-tenth:]) / tenth
    return Fact("Training reward", f"{first:.3f} → {last:.3f}", "first and last tenth of steps")


def _steps(log: RunLog) -> Fact | None:
    if not log.entries:
        return None
    of = f"of {log.max_steps:,}" if log.max_steps else ""
    return Fact("Optimizer steps", f"{log.last_step:,}", of)


def _completions(completions: PackedCompletions) -> Fact | None:
    if not completions.total:
        return None
    carried = len(completions.rows.get("group", ()))
    detail = "all of them below" if carried == completions.total else f"{carried:,} of them below"
    return Fact("Completions", f"{completions.total:,}", detail)


def _throughput(log: RunLog) -> Fact | None:
    values = [value for _, value in log.points("tokens_per_second")]
    return (
        Fact("Throughput", f"{sum(values) / len(values):,.0f}", "tokens per second, mean") if values else None
    )


def _wall_time(log: RunLog) -> Fact | None:
    """Rollouts, training and weight sync; a log entry is the mean of the steps since the one before it."""
    points = [log.points(f"time/{part}") for part in ("rollout", "train", "sync")]
    total, previous = 0.0, 0
    by_step: dict[int, float] = {}
    for step, value in (pair for part in points for pair in part):
        by_step[step] = by_step.get(step, 0.0) + value
    for step in sorted(by_step):
        total += by_step[step] * (step - previous)
        previous = step
    return Fact("Time in steps", duration(total), "rollouts, training, sync") if by_step else None
