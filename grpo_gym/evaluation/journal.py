"""Every finished completion on disk as it arrives: what was paid for is never paid for again."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

JOURNAL_FILE = "completions.jsonl"
_FSYNC_SECONDS = 1.0
Key = tuple[str, int, int]
"""Dataset, number of the problem, number of the repeat."""


class Journal:
    """One JSON line per completion; the first line holds the settings they were made with.

    A line reaches the operating system as soon as it is added, so it survives `kill -9` of this process; it
    is forced to the disk once a second and at the end. A last line that a kill tore apart is cut off.

    Args:
        folder: of the evaluation.
        settings: what completions depend on: plain values, in sections. `datasets` is compared by name, so that
            datasets can be added.

    Raises:
        ValueError: the folder holds completions made with other settings, another process writes to it, or a
            line before the last is damaged.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / JOURNAL_FILE
        self.records: dict[Key, dict[str, Any]] = {}
        self._last_fsync = time.monotonic()
        self._file = self.path.open("a+b")
        try:
            self._lock()
            self._load(settings)
        except BaseException:
            self._file.close()
            raise

    def add(self, key: Key, content: Mapping[str, Any]) -> None:
        """Keep one completion."""
        record = {"dataset": key[0], "problem": key[1], "repeat": key[2], **content}
        self.records[key] = record
        self._write(record)

    def close(self) -> None:
        """Force everything to the disk and let others write."""
        if not self._file.closed:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"another evaluation is writing to {self.path}; wait for it, or choose another output_dir."
            ) from error

    def _load(self, settings: Mapping[str, Any]) -> None:
        lines = self._whole_lines()
        if not lines:
            self._write({"settings": settings})
            return
        check_settings(lines[0].get("settings") or {}, _plain(settings), self.path)
        for record in lines[1:]:
            self.records[record["dataset"], record["problem"], record["repeat"]] = record
        new = {n: s for n, s in settings["datasets"].items() if n not in lines[0]["settings"]["datasets"]}
        if new:
            self._rewrite_settings({**settings, "datasets": {**lines[0]["settings"]["datasets"], **new}})

    def _whole_lines(self) -> list[dict[str, Any]]:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        lines = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                lines.append(json.loads(line))
            except ValueError as error:
                raise ValueError(
                    f"{self.path}:{number}: the line is damaged ({error}); delete it, and its completion is made again."
                ) from error
        return lines

    def _rewrite_settings(self, settings: Mapping[str, Any]) -> None:
        """The first line anew, in a file that takes the place of this one whole."""
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        with unfinished.open("wb") as file:
            for record in [{"settings": settings}, *self.records.values()]:
                file.write(_line(record))
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, self.path)
        self._file.close()
        self._file = self.path.open("a+b")
        self._lock()

    def _write(self, record: Mapping[str, Any]) -> None:
        self._file.write(_line(record))
        self._file.flush()
        if time.monotonic() - self._last_fsync > _FSYNC_SECONDS:
            os.fsync(self._file.fileno())
            self._last_fsync = time.monotonic()


def check_settings(before: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Compare the settings of an evaluation with those its completions were made with.

    Raises:
        ValueError: naming the first key that differs, both values, and what to do.
    """
    shared = before.get("datasets", {}).keys() & now["datasets"].keys()
    old = _flat({**before, "datasets": {name: before["datasets"][name] for name in shared}})
    new = _flat({**now, "datasets": {name: now["datasets"][name] for name in shared}})
    different = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    if different:
        key = different[0]
        more = f" (and {len(different) - 1} more)" if len(different) > 1 else ""
        raise ValueError(
            f"{key} is {json.dumps(new.get(key))}, but the completions in {path} were made with "
            f"{json.dumps(old.get(key))}{more}; choose another output_dir, or delete that file to start anew."
        )


def _flat(value: Any, key: str = "") -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {key: value}
    return {
        path: leaf
        for name, inner in value.items()
        for path, leaf in _flat(inner, f"{key}.{name}" if key else str(name)).items()
    }


def _plain(value: Any) -> Any:
    """As it is read back from JSON."""
    return json.loads(json.dumps(value))


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"
