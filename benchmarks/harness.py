"""Shared by the benchmarks: interleaved pairs, ratios, and the JSON, Markdown and PNG of a result."""

from __future__ import annotations

import json
import shlex
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.provenance import git_commit, machine, versions

RESULTS = Path(__file__).resolve().parent / "results"
Plot = Callable[[Any], None]


@dataclass(frozen=True, slots=True)
class Spread:
    """Minimum, median and maximum of repeated measurements."""

    min: float
    median: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return cls(min(values), statistics.median(values), max(values))

    def figures(self, name: str) -> dict[str, float]:
        """Flat figures: the median under `name`, and `name_min`, `name_max`."""
        return {name: self.median, f"{name}_min": self.min, f"{name}_max": self.max}

    def __str__(self) -> str:
        return f"{self.median:.3g} ({self.min:.3g} - {self.max:.3g})"


@dataclass(slots=True)
class Pairs:
    """Seconds of interleaved runs of two programs, pair by pair."""

    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def speed_ratio(self) -> Spread:
        """How many times faster ours is, pair by pair: a busy machine slows both sides of a pair."""
        return Spread.of([b / a for a, b in zip(self.ours, self.theirs, strict=True)])


def interleave(
    ours: Callable[[int], float], theirs: Callable[[int], float], num_pairs: int, warmup: int = 1
) -> Pairs:
    """Call `ours(i)` and `theirs(i)` in turn; the order within a pair alternates. Both return seconds.

    Warm-up pairs run first and are dropped.
    """
    for index in range(warmup):
        ours(index), theirs(index)
    pairs = Pairs()
    for index in range(num_pairs):
        runs = [(pairs.ours, ours), (pairs.theirs, theirs)]
        for seconds, run in runs if index % 2 == 0 else runs[::-1]:
            seconds.append(run(index))
    return pairs


@dataclass(slots=True)
class Result:
    """One benchmark's outcome.

    Attributes:
        name: file name without extension.
        figures: flat name -> number.
        rows: rows of the Markdown table, all with the same keys.
        notes: what a reader must know to believe the figures.
        argv: the command after `python -m`.
        details: raw measurements.
    """

    name: str
    argv: Sequence[str]
    figures: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """The command that makes this result again."""
        return "python -m benchmarks " + shlex.join(self.argv)

    def write(self, plot: Plot, folder: Path | None = None) -> None:
        """Write NAME.json, NAME.md and NAME.png to `folder` (`benchmarks/results` by default)."""
        folder = folder or RESULTS
        folder.mkdir(parents=True, exist_ok=True)
        record = {
            "name": self.name,
            "command": self.command,
            "git_commit": git_commit(),
            "machine": machine(),
            "versions": versions(),
            "figures": {name: round_figure(value) for name, value in self.figures.items()},
            "notes": self.notes,
            "details": self.details,
        }
        (folder / f"{self.name}.json").write_text(json.dumps(record, indent=2) + "\n")
        (folder / f"{self.name}.md").write_text(self._markdown(record))
        save_plot(plot, folder / f"{self.name}.png")

    def _markdown(self, record: Mapping[str, Any]) -> str:
        facts = record["machine"]
        versions_line = ", ".join(f"{name} {number}" for name, number in record["versions"].items())
        return "\n".join(
            [
                f"# {self.name}",
                "",
                f"`{self.command}` at {record['git_commit']}; {facts['cpu']}, {facts['cores']} cores, "
                f"{facts['memory_gib']} GiB, {facts['torch_threads']} torch threads; {versions_line}.",
                "",
                *markdown_table(self.rows),
                "",
                *(f"- {note}" for note in self.notes),
                "",
            ]
        )


def round_figure(value: float) -> float:
    """Four significant digits: more would pretend."""
    return float(f"{value:.4g}")


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table; columns are the keys of the first row."""
    if not rows:
        return []
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
    return lines + ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]


def _cell(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def save_plot(plot: Plot, path: Path) -> None:
    """Draw on one pair of axes and save it as PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    plot(axes)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def say(message: str) -> None:
    """Progress, on standard error at once."""
    print(message, file=sys.stderr, flush=True)
