"""Held-out accuracy of a run over its steps, for the report."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grpo_gym.evaluation.results import FORMAT
from grpo_gym.reporting.charts import chart, line
from grpo_gym.reporting.run_log import RunLog

EVALUATIONS_DIR = "eval_results"


@dataclass(slots=True)
class Evaluation:
    """One evaluation.

    Attributes:
        step: the optimizer step it was done at; 0 is before the first update.
        accuracy: share of correct samples.
        interval: its 95% interval; None when unknown.
        num_problems: how many problems; None when unknown.
        tasks: accuracy by task.
        task_problems: number of problems by task, where it is known.
        pass_at: pass@k by k.
    """

    step: int
    accuracy: float
    interval: tuple[float, float] | None = None
    num_problems: int | None = None
    tasks: dict[str, float] = field(default_factory=dict)
    task_problems: dict[str, int] = field(default_factory=dict)
    pass_at: dict[int, float] = field(default_factory=dict)


def read_evaluations(output_dir: Path, log: RunLog) -> list[Evaluation]:
    """All evaluations of a run by step: of `eval_results/eval_step_N.json`, and of the log where a file is missing.

    Raises:
        ValueError: a file that is not an evaluation.
    """
    found = {evaluation.step: evaluation for evaluation in evaluations_in_log(log)}
    for path in (output_dir / EVALUATIONS_DIR).glob("eval_step_*.json"):
        evaluation = _read_file(path)
        if evaluation is not None and not _is_left_over(path, evaluation.step, log):
            found[evaluation.step] = evaluation
    return [found[step] for step in sorted(found)]


def evaluations_in_log(log: RunLog) -> list[Evaluation]:
    """The evaluations that a log tells of: `eval_accuracy`, and `eval_accuracy/TASK` of several tasks."""
    prefix = "eval_accuracy/"
    tasks = {
        name.removeprefix(prefix): dict(log.points(name)) for name in log.names() if name.startswith(prefix)
    }
    low, high = dict(log.points("eval_accuracy_low")), dict(log.points("eval_accuracy_high"))
    return [
        Evaluation(
            step,
            accuracy,
            interval=(low[step], high[step]) if step in low and step in high else None,
            tasks={name: at[step] for name, at in tasks.items() if step in at},
        )
        for step, accuracy in log.points("eval_accuracy")
    ]


def _read_file(path: Path) -> Evaluation | None:
    """What a file says; None when not one of its samples could be scored."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise KeyError(FORMAT)
        return _from_summary(int(content["step"]), content["summary"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is not an evaluation of a training ({error!r}); move it out of the folder to go on without it."
        ) from error


def _from_summary(step: int, summary: dict[str, Any]) -> Evaluation | None:
    total = summary["all"]
    accuracy = total["accuracy"]
    if accuracy is None:
        return None
    scored = {name: task for name, task in summary["by_task"].items() if task["accuracy"] is not None}
    return Evaluation(
        step,
        accuracy["mean"],
        interval=(accuracy["low"], accuracy["high"]),
        num_problems=total["num_problems"],
        tasks={name: task["accuracy"]["mean"] for name, task in scored.items()},
        task_problems={name: task["num_problems"] for name, task in scored.items()},
        pass_at={int(k): value["mean"] for k, value in total["pass_at_k"].items()},
    )


def _is_left_over(path: Path, step: int, log: RunLog) -> bool:
    """Whether an earlier run left the file: one of the step where this run resumed is its own."""
    return log.started is not None and step > log.first_step and path.stat().st_mtime < log.started


def read_gain(output_dir: Path, evaluations: list[Evaluation]) -> tuple[float, float] | None:
    """95% interval of the gain in accuracy, paired by problem, that `train_results.json` tells of these evaluations."""
    path = output_dir / "train_results.json"
    if not evaluations or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        gain = content.get("gain")
        if gain is None or [content["baseline"]["step"], content["final"]["step"]] != _ends(evaluations):
            return None
        low, high = gain["accuracy"]["low"], gain["accuracy"]["high"]
        return None if low is None or high is None else (low, high)  # too few problems for an interval
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not what a training writes ({error!r}); move it out of the folder."
        ) from error


def _ends(evaluations: list[Evaluation]) -> list[int]:
    return [evaluations[0].step, evaluations[-1].step]


def evaluation_view(evaluations: list[Evaluation]) -> dict[str, Any]:
    """Charts and the before/after table, as the page wants them."""
    if not evaluations:
        return {"charts": [], "tasks": []}
    return {"charts": [c for c in (_accuracy_chart(evaluations),) if c], "tasks": _task_rows(evaluations)}


def _accuracy_chart(evaluations: list[Evaluation]) -> dict[str, Any] | None:
    known = all(e.interval for e in evaluations)
    low = [(e.step, e.interval[0]) for e in evaluations if e.interval] if known else []
    high = [(e.step, e.interval[1]) for e in evaluations if e.interval] if known else []
    lines = [line("accuracy", [(e.step, e.accuracy) for e in evaluations], low, high)]
    ks = sorted({k for e in evaluations for k in e.pass_at if k > 1})
    lines += [line(f"pass@{k}", [(e.step, e.pass_at[k]) for e in evaluations if k in e.pass_at]) for k in ks]
    return chart("Held-out accuracy", "accuracy", "percent", lines, kind="points")


def _task_rows(evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """One row per task, the largest change first, and one for all of them."""
    last = evaluations[-1]
    first = evaluations[0] if len(evaluations) > 1 else None
    names = [name for name in last.tasks if first is None or name in first.tasks]
    names.sort(key=lambda name: last.tasks[name] - (first.tasks[name] if first else 0.0), reverse=True)
    rows = [
        {
            "name": name,
            "count": last.task_problems.get(name),
            "before": first.tasks[name] if first else None,
            "after": last.tasks[name],
        }
        for name in names
    ]
    total = {
        "count": last.num_problems,
        "before": first.accuracy if first else None,
        "after": last.accuracy,
    }
    if len(rows) == 1:
        return [{**total, "name": rows[0]["name"]}]
    return [*rows, {**total, "name": "all problems", "all": True}]
