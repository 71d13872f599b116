"""What a run has logged, read back from its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOG_FILE = "log_history.jsonl"
STATE_FILE = "trainer_state.json"


@dataclass(slots=True)
class RunLog:
    """What a run has logged.

    Attributes:
        entries: one dict per log, each with its "step"; in the order they were written.
        max_steps: how many optimizer steps the run is to have; 0 when unknown.
        first_step: the step the run started or was resumed at.
        started: when it did, in seconds since 1970; None when unknown.
        updated: when the log was last written, likewise.
    """

    entries: list[dict[str, Any]] = field(default_factory=list)
    max_steps: int = 0
    first_step: int = 0
    started: float | None = None
    updated: float | None = None

    @property
    def last_step(self) -> int:
        """The newest step in the log; 0 when it is empty."""
        return max((int(entry["step"]) for entry in self.entries), default=0)

    def points(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of a metric by step; of several values at a step the newest, never NaN or infinite."""
        found = {
            int(entry["step"]): float(entry[name])
            for entry in self.entries
            if isinstance(entry.get(name), int | float) and abs(float(entry[name])) < float("inf")
        }
        return sorted(found.items())

    def names(self) -> list[str]:
        """Every metric name, in order of appearance."""
        return list(dict.fromkeys(name for entry in self.entries for name in entry))


def read_log(output_dir: Path) -> RunLog:
    """The log of a run: of `log_history.jsonl`, else of the newest `trainer_state.json`, else empty.

    Raises:
        ValueError: a file that is not what it should be.
    """
    path = output_dir / LOG_FILE
    if path.is_file():
        return _read_lines(path)
    state = find_trainer_state(output_dir)
    return _read_state(state) if state else RunLog()


def find_trainer_state(output_dir: Path) -> Path | None:
    """The newest `trainer_state.json`: the run's own (written at its end), or its last checkpoint's."""
    if (output_dir / STATE_FILE).is_file():
        return output_dir / STATE_FILE
    found = {
        int(path.parent.name.removeprefix("checkpoint-")): path
        for path in output_dir.glob(f"checkpoint-*/{STATE_FILE}")
        if path.parent.name.removeprefix("checkpoint-").isdigit()
    }
    return found[max(found)] if found else None


def _read_lines(path: Path) -> RunLog:
    lines = path.read_text(encoding="utf-8").splitlines()
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number == len(lines):
                break  # being written right now
            raise ValueError(f"line {number} of {path} is not JSON: {error}.") from error
    header = records.pop(0) if records and "first_step" in records[0] else {}
    return RunLog(
        entries=[record for record in records if "step" in record],
        max_steps=int(header.get("max_steps", 0)),
        first_step=int(header.get("first_step", 0)),
        started=header.get("started"),
        updated=path.stat().st_mtime,
    )


def _read_state(path: Path) -> RunLog:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        entries = [entry for entry in state["log_history"] if "step" in entry]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not a trainer state: {error!r}.") from error
    return RunLog(entries, int(state.get("max_steps") or 0), updated=path.stat().st_mtime)
