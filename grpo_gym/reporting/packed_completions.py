"""The completions of a run as the report carries them: small columns, and texts in compressed chunks.

The page reads the columns at once and inflates a chunk when one of its texts is shown or searched.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grpo_gym.reporting.completions import COMPLETIONS_DIR
from grpo_gym.reporting.run_log import RunLog

CHUNK_CHARACTERS = 400_000
"""A chunk is closed when its texts are this long: inflated in a few milliseconds."""


@dataclass(slots=True)
class PackedCompletions:
    """Completions by group (the completions of one prompt in one step), in the order they were trained on.

    Attributes:
        total: completions that the run has on disk.
        groups: columns with one value per group: step, task (index into `tasks`), example, chunk, position in
            the chunk, first row.
        rows: columns with one value per completion: group, position in the chunk, reward, tokens, ...
        tasks: task names.
        metrics: names of the reward functions.
        chunks: texts, as base64 of gzipped JSON with the lists `prompts`, `answers`, `completions`.
    """

    total: int = 0
    groups: dict[str, list[Any]] = field(default_factory=dict)
    rows: dict[str, list[Any]] = field(default_factory=dict)
    tasks: list[str] = field(default_factory=list)
    metrics: list[str] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)

    @property
    def reward_range(self) -> tuple[float, float] | None:
        """The smallest and the largest reward; None without any."""
        rewards = [reward for reward in self.rows.get("reward", ()) if reward is not None]
        return (min(rewards), max(rewards)) if rewards else None

    def columns(self) -> dict[str, Any]:
        """Everything but the texts."""
        return {
            "total": self.total,
            "groups": self.groups,
            "rows": self.rows,
            "tasks": self.tasks,
            "metrics": self.metrics,
        }


def pack_completions(output_dir: Path, log: RunLog, limit: int) -> PackedCompletions:
    """Read at most `limit` completions, whole groups spread evenly over the run.

    Raises:
        ValueError: a file that is not Parquet, or not of completions.
    """
    files = completion_files(output_dir, log)
    total = sum(_num_rows(path) for path in files)
    packer = _Packer(total)
    seen = 0
    for path in files:
        for group in _groups(path):
            # Of every `total` rows `limit` are taken: a group when the quota crosses a whole group.
            wanted = (seen + len(group)) * limit // max(total, 1) if total > limit else total
            seen += len(group)
            room = limit - packer.num_rows
            if packer.num_rows + len(group) <= wanted or (packer.num_rows == 0 and room > 0):
                packer.add(group[:room])
    return packer.finish()


def completion_files(output_dir: Path, log: RunLog) -> list[Path]:
    """One file per step, in order, without what an earlier run left in the same folder."""
    paths = sorted((output_dir / COMPLETIONS_DIR).glob("step_*.parquet"))
    return [path for path in paths if not is_left_over(path, _step_of(path), log)]


def is_left_over(path: Path, step: int, log: RunLog) -> bool:
    """Whether the file is older than the run, of a step that this run does itself."""
    return log.started is not None and step >= log.first_step and path.stat().st_mtime < log.started


def encode(values: Any) -> str:
    """Base64 of gzipped JSON; the same bytes for the same values."""
    text = json.dumps(values, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 6, mtime=0)).decode("ascii")


class _Packer:
    """Collects groups; closes chunks."""

    def __init__(self, total: int) -> None:
        self.packed = PackedCompletions(total)
        self.num_rows = 0
        self._groups: dict[str, list[Any]] = {
            name: [] for name in ("step", "task", "example", "chunk", "place")
        }
        row_names = ("group", "place", "reward", "tokens", "finish", "version", "error")
        self._rows: dict[str, list[Any]] = {name: [] for name in row_names}
        self._metrics: dict[str, list[float | None]] = {}
        self._tasks: dict[str, int] = {}
        self._new_chunk()

    def _new_chunk(self) -> None:
        self._texts: dict[str, list[str]] = {"prompts": [], "answers": [], "completions": []}
        self._characters = 0

    def add(self, group: Sequence[dict[str, Any]]) -> None:
        """Add a group's rows."""
        first = group[0]
        values = (
            first["step"],
            self._tasks.setdefault(first["task"] or "", len(self._tasks)),
            first["example_id"],
            len(self.packed.chunks),
            len(self._texts["prompts"]),
        )
        for column, value in zip(self._groups.values(), values, strict=True):
            column.append(value)
        self._texts["prompts"].append(first["prompt"] or "")
        self._texts["answers"].append(first["answer"] or "")
        self._characters += len(first["prompt"] or "")
        for row in group:
            self._add_row(row)
        if self._characters >= CHUNK_CHARACTERS:
            self._close_chunk()

    def _add_row(self, row: dict[str, Any]) -> None:
        values = (
            len(self._groups["step"]) - 1,
            len(self._texts["completions"]),
            _number(row["reward"]),
            row["num_tokens"],
            row["finish_reason"],
            row["policy_version"],
            row["error"],
        )
        for column, value in zip(self._rows.values(), values, strict=True):
            column.append(value)
        for name, value in row["metrics"] or ():
            if name not in self._metrics:
                self._metrics[name] = [None] * self.num_rows
            self._metrics[name].append(_number(value))
        self.num_rows += 1
        for column in self._metrics.values():
            column.extend([None] * (self.num_rows - len(column)))
        self._texts["completions"].append(row["completion"] or "")
        self._characters += len(row["completion"] or "")

    def _close_chunk(self) -> None:
        self.packed.chunks.append(encode(self._texts))
        self._new_chunk()

    def finish(self) -> PackedCompletions:
        """Close the last chunk."""
        if self._texts["prompts"]:
            self._close_chunk()
        self.packed.groups = self._groups
        self.packed.rows = {**self._rows, "metrics": list(self._metrics.values())}
        self.packed.metrics, self.packed.tasks = list(self._metrics), list(self._tasks)
        return self.packed


def _groups(path: Path) -> Iterator[list[dict[str, Any]]]:
    """The rows of a file, group by group."""
    try:
        rows = pq.read_table(path).to_pylist()
        for _, group in groupby(rows, key=lambda row: (row["example_id"], row["task"], row["prompt"])):
            yield list(group)
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(_unreadable(path, error)) from error


def _num_rows(path: Path) -> int:
    try:
        return pq.read_metadata(path).num_rows
    except pa.ArrowException as error:
        raise ValueError(_unreadable(path, error)) from error


def _unreadable(path: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())
    return f"{path} cannot be read as completions ({reason}); move it out of the folder to go on without it."


def _step_of(path: Path) -> int:
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdigit() else 0


def _number(value: float | None) -> float | None:
    """Six digits; None for what JSON cannot hold."""
    if value is None or value != value or abs(value) == float("inf"):
        return None
    return float(f"{value:.6g}")
