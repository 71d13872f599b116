"""A summary as tables (terminal and Markdown) and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpo_gym.evaluation.compare import ComparedResults, Comparison
from grpo_gym.evaluation.config import EvalConfig
from grpo_gym.evaluation.statistics import MIN_PROBLEMS, Difference
from grpo_gym.evaluation.summary import Summary

REPORT_FILE = "report.md"
PICTURE_FILE = "accuracy.png"
_INTERVALS = (
    "Intervals are 95%. Accuracy and format: Wilson's interval with the effective number of samples, since the "
    "repeats of one problem are not independent. Reward and pass@k: bootstrapped over problems, or, where all are "
    "equal, how far a kind of problem not seen could move them. Accuracy counts "
    "samples whose score reaches the environment's pass threshold; failed completions are left out of every rate."
)


def write_report(
    folder: Path, config: EvalConfig, model: str, summary: Summary, tasks: Mapping[str, str]
) -> None:
    """Write `report.md` and `accuracy.png`.

    Args:
        folder: of the evaluation.
        config: its settings.
        model: the model as it was named.
        summary: see `summarize_all`.
        tasks: the category of each task.
    """
    (folder / REPORT_FILE).write_text(markdown(config, model, summary, tasks), encoding="utf-8")
    draw(folder / PICTURE_FILE, model, summary, tasks)


def markdown(config: EvalConfig, model: str, summary: Summary, tasks: Mapping[str, str]) -> str:
    """The report as Markdown."""
    total = summary["all"]
    head = [
        f"# Evaluation of {model}",
        "",
        f"{total['num_problems']} problems x {config.repeats} samples, temperature {config.temperature:g}, top_p "
        f"{config.top_p:g}, at most {config.max_tokens} tokens; {total['num_failed']} failed.",
        "",
        f"![accuracy]({PICTURE_FILE})",
    ]
    by_task = {f"{name} ({tasks.get(name, '')})": of_task for name, of_task in summary["by_task"].items()}
    return "\n".join(
        [
            *head,
            *_section("All", {"all": total}),
            *_section("By category", summary["by_category"]),
            *_section("By task", by_task),
            "",
            _INTERVALS,
            "",
        ]
    )


def _section(title: str, rows: Mapping[str, Summary]) -> list[str]:
    ks = sorted({int(k) for row in rows.values() for k in row["pass_at_k"]} - {1})
    names = ["", "problems", "samples", "accuracy", "format", "reward", *[f"pass@{k}" for k in ks]]
    lines = ["", f"## {title}", "", _line(names), _line(["---"] + ["---:"] * (len(names) - 1))]
    for name, row in rows.items():
        cells = [name, str(row["num_problems"]), str(row["num_samples"])]
        cells += [percent(row["accuracy"]), percent(row["format_rate"]), number(row["reward"])]
        cells += [percent(row["pass_at_k"].get(str(k))) for k in ks]
        lines.append(_line(cells))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def percent(estimate: Mapping[str, float] | None) -> str:
    """`62.5% (50.1-73.4)`."""
    if estimate is None:
        return "-"
    return f"{estimate['mean']:.1%} ({100 * estimate['low']:.1f}-{100 * estimate['high']:.1f})"


def number(estimate: Mapping[str, float] | None) -> str:
    """`0.625 (0.501-0.734)`."""
    return (
        "-" if estimate is None else f"{estimate['mean']:.3f} ({estimate['low']:.3f}-{estimate['high']:.3f})"
    )


def draw(path: Path, model: str, summary: Summary, tasks: Mapping[str, str]) -> None:
    """Accuracy of every task with its interval, in the colour of its category."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [(name, row["accuracy"]) for name, row in summary["by_task"].items() if row["accuracy"]]
    figure = Figure(figsize=(8, 1.2 + 0.32 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    categories = list(dict.fromkeys(tasks.get(name, "") for name, _ in rows))
    for position, (name, accuracy) in enumerate(rows):
        category = tasks.get(name, "")
        first = all(tasks.get(other, "") != category for other, _ in rows[:position])
        axes.barh(
            position,
            accuracy["mean"],
            xerr=[[accuracy["mean"] - accuracy["low"]], [accuracy["high"] - accuracy["mean"]]],
            color=f"C{categories.index(category) % 10}",
            ecolor="0.3",
            capsize=3,
            label=category if first else None,
        )
    _decorate(axes, model, summary, [name for name, _ in rows])
    figure.savefig(path, dpi=120)


def _decorate(axes: Any, model: str, summary: Summary, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axes.set_xlabel("accuracy, 95% interval")
    axes.set_title(f"{model}: {percent(summary['all']['accuracy'])}")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(loc="best", fontsize="small")


def comparison_table(compared: ComparedResults) -> str:
    """B against A as Markdown: by task, then in all; a dash is explained below."""
    names = ["", "problems", "accuracy A", "accuracy B", "B - A", "95% interval", "p", "reward B - A", "p"]
    rows = compared.by_task if len(compared.by_task) > 1 else []
    body = [_line(_comparison_cells(row)) for row in [*rows, compared.total]]
    shown = [each for row in [*rows, compared.total] for each in (row.accuracy, row.reward)]
    note = f"\n\n-: too few problems to tell: fewer than {MIN_PROBLEMS}, or fewer that differ."
    table = "\n".join([_line(names), _line(["---"] + ["---:"] * (len(names) - 1)), *body])
    return table + (note if any(None in (each.low, each.p) for each in shown) else "")


def _comparison_cells(row: Comparison) -> list[str]:
    return [
        row.name,
        str(row.num_problems),
        f"{row.accuracy_a:.1%}",
        f"{row.accuracy_b:.1%}",
        f"{100 * row.accuracy.mean:+.1f} points",
        _range(row.accuracy, 100, 1),
        _p(row.accuracy),
        f"{row.reward.mean:+.3f} ({_range(row.reward, 1, 3)})",
        _p(row.reward),
    ]


def _range(difference: Difference, scale: float, digits: int) -> str:
    """`+5.0 to +7.5`, or a dash where there were too few problems."""
    if difference.low is None or difference.high is None:
        return "-"
    return f"{scale * difference.low:+.{digits}f} to {scale * difference.high:+.{digits}f}"


def _p(difference: Difference) -> str:
    return "-" if difference.p is None else f"{difference.p:.4f}"
