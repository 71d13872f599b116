"""Rows from a file, a Hugging Face dataset, or the problems this package makes."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError

from math_reasoning.specs import Fields

_OFFLINE = 'without a network use dataset="builtin" (made on the spot) or a local file'

Columns = Mapping[str, Any]


class UnreachableError(ValueError):
    """A dataset of the Hub that is neither reachable nor in the cache, or does not exist."""


def load_rows(
    source: str | Path | Dataset, config: str | None, split: str, fields: Fields, answer_regex: str | None
) -> tuple[Dataset, int]:
    r"""A dataset with the text columns `question` and `answer`.

    Args:
        source: a .jsonl, .json, .csv, .tsv or .parquet file, a Hugging Face id or folder, a folder written
            by `Dataset.save_to_disk`, or a `Dataset`.
        config: configuration of a Hugging Face dataset.
        split: its split; files have none.
        fields: which columns hold what.
        answer_regex: keep only what its first group finds in an answer, such as `####\s*(.+)`.

    Returns:
        The rows, and how many were left out because they lack a question or an answer.

    Raises:
        ValueError: the source cannot be read, lacks a column, or has no usable row.
    """
    label = "the dataset" if isinstance(source, Dataset) else f"'{source}'"
    columns = _read(source, config, split)
    for argument, column in fields.given():
        _check_column(label, argument, column, columns)
    rows = {
        "question": [_to_text(value) for value in columns[fields.question_field]],
        "answer": [_answer(value, answer_regex) for value in columns[fields.answer_field]],
    }
    kept = [i for i, pair in enumerate(zip(*rows.values(), strict=True)) if all(pair)]
    if not kept:
        raise ValueError(f"{label} has no row with both a question and an answer.")
    usable = {name: [values[i] for i in kept] for name, values in rows.items()}
    return Dataset.from_dict(usable), len(rows["question"]) - len(kept)


def _read(source: str | Path | Dataset, config: str | None, split: str) -> Columns:
    if isinstance(source, Dataset):
        return _columns_of(source)
    path = Path(source).expanduser()
    reader = _READERS.get(path.suffix.lower())
    if reader is not None and path.is_file():
        return _read_file(path, reader)
    if reader is not None and not path.is_dir():
        raise ValueError(f"no file '{source}'; give an existing {', '.join(_READERS)} file or a dataset id.")
    if (path / "dataset_info.json").is_file() and (path / "state.json").is_file():
        return _columns_of(load_from_disk(str(path)))
    return _columns_of(_load_from_hub(str(source), config, split))


def _columns_of(dataset: Dataset) -> Columns:
    return {column: dataset[column] for column in dataset.column_names}


def _load_from_hub(source: str, config: str | None, split: str) -> Dataset:
    try:
        return load_dataset(source, name=config, split=split)
    except (DatasetsError, OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        message = f"cannot load dataset '{source}' (config={config}, split={split}): {reason}"
        if isinstance(error, OSError):  # connections and missing files
            raise UnreachableError(f"{message}; {_OFFLINE}.") from error
        raise ValueError(message) from error  # it is there, but not this split or configuration


def _read_file(path: Path, reader: Callable[[Path], Columns]) -> Columns:
    try:
        return reader(path)
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"cannot read '{path}': {' '.join(str(error).split())}") from error


def _read_json_lines(path: Path) -> Columns:
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return _columns_from([json.loads(line) for line in lines if line.strip()], path)


def _read_json(path: Path) -> Columns:
    data = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(data, dict) and len(data) == 1:
        (data,) = data.values()
    return _columns_from(data, path)


def _columns_from(records: Any, path: Path) -> Columns:
    if not isinstance(records, list) or not all(isinstance(record, dict) for record in records):
        raise ValueError(f"'{path}' must hold objects with named fields: {{'question': ..., 'answer': ...}}.")
    names = dict.fromkeys(key for record in records for key in record)
    return {name: [record.get(name) for record in records] for name in names}


def _read_csv(path: Path) -> Columns:
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        rows = list(reader)
        return {name: [row[name] for row in rows] for name in reader.fieldnames or []}


def _read_parquet(path: Path) -> Columns:
    return pyarrow.parquet.read_table(path).to_pydict()


_READERS: dict[str, Callable[[Path], Columns]] = {
    ".jsonl": _read_json_lines,
    ".ndjson": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
}


def _check_column(label: str, argument: str, column: str, columns: Columns) -> None:
    if column in columns:
        return
    if not columns:
        raise ValueError(f"{label} has no rows.")
    lowered = difflib.get_close_matches(column.lower(), [c.lower() for c in columns], n=3, cutoff=0.4)
    near = [c for c in columns if c.lower() in lowered]
    hint = f"did you mean {' or '.join(map(repr, near))}" if near else "choose one of them"
    raise ValueError(
        f"{label} has no column '{column}'; it has {', '.join(columns)}; {hint}? "
        f"Set it with field_mapping={{'{argument}': ...}}."
    )


def _to_text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _answer(value: Any, pattern: str | None) -> str:
    text = _to_text(value)
    if pattern is None or not text:
        return text
    found = re.search(pattern, text)
    if found is None or not found.groups():
        raise ValueError(
            f"answer_regex {pattern!r} finds no group in the answer {text[:80]!r}; "
            r"write the part to keep in parentheses, such as '####\s*(.+)'."
        )
    return found.group(1).strip()
