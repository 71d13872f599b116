"""Questions and answers from a file or a Hugging Face dataset, as two columns of text."""

from __future__ import annotations

import csv
import difflib
import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from datasets import Dataset, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError


def load_pairs(
    source: str | Path | Dataset,
    split: str,
    name: str | None,
    question_field: str,
    answer_field: str,
    answer_regex: str | None = None,
) -> Dataset:
    """A dataset with the columns `question` and `answer`, both text.

    Args:
        source: a .jsonl, .json, .csv, .tsv or .parquet file, a folder or id that `datasets.load_dataset`
            knows, a folder written by `Dataset.save_to_disk`, or a `Dataset`.
        split: split of a folder or Hugging Face dataset; files have none.
        name: configuration of a Hugging Face dataset.
        question_field: the column with the questions.
        answer_field: the column with the answers.
        answer_regex: keep only what its first group matches in each answer.

    Raises:
        ValueError: the source cannot be read, lacks a column, is empty, or holds rows without text.
    """
    columns = _read(source, split, name)
    label = "the dataset" if isinstance(source, Dataset) else f"'{source}'"
    for argument, field in (("question_field", question_field), ("answer_field", answer_field)):
        _check_column(label, argument, field, columns)
    questions = [_to_text(value, label, question_field, i) for i, value in enumerate(columns[question_field])]
    answers = [_to_text(value, label, answer_field, i) for i, value in enumerate(columns[answer_field])]
    if not questions:
        raise ValueError(f"{label} has no rows.")
    if answer_regex is not None:
        answers = [_extract(answer, answer_regex, i) for i, answer in enumerate(answers)]
    return Dataset.from_dict({"question": questions, "answer": answers})


Columns = dict[str, Iterable[Any]]


def _read(source: str | Path | Dataset, split: str, name: str | None) -> Columns:
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
    return _columns_of(_load_from_hub(str(source), split, name))


def _columns_of(dataset: Dataset) -> Columns:
    return {column: dataset[column] for column in dataset.column_names}


def _load_from_hub(source: str, split: str, name: str | None) -> Dataset:
    try:
        return load_dataset(source, name=name, split=split)
    except (DatasetsError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"cannot load dataset '{source}' (name={name}, split={split}): {reason}") from error


def _read_file(path: Path, reader: Callable[[Path], Columns]) -> Columns:
    try:
        return reader(path)
    except (json.JSONDecodeError, UnicodeDecodeError, csv.Error, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"cannot read '{path}': {' '.join(str(error).split())}") from error


def _read_json_lines(path: Path) -> Columns:
    with path.open(encoding="utf-8-sig") as lines:
        records = [_json_line(line, path, n) for n, line in enumerate(lines, start=1) if line.strip()]
    return _columns_from_records(records)


def _json_line(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        return _record(json.loads(line), path, f"line {number}")
    except json.JSONDecodeError as error:
        raise ValueError(
            f"'{path}', line {number} is not JSON: {error.msg} at column {error.colno}."
        ) from error


def _read_json(path: Path) -> Columns:
    data = json.loads(path.read_text(encoding="utf-8-sig"))
    if isinstance(data, dict) and len(data) == 1:
        (data,) = data.values()
    if not isinstance(data, list):
        raise ValueError(f"'{path}' must hold a list of objects: [{{'question': ..., 'answer': ...}}, ...].")
    return _columns_from_records([_record(item, path, f"item {i}") for i, item in enumerate(data)])


def _record(value: Any, path: Path, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"'{path}', {place}: expected an object with named fields, found {value!r:.60}.")
    return value


def _columns_from_records(records: list[dict[str, Any]]) -> Columns:
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


def _check_column(label: str, argument: str, field: str, columns: Columns) -> None:
    if field in columns:
        return
    if not columns:
        raise ValueError(f"{label} has no rows.")
    near = difflib.get_close_matches(field.lower(), [column.lower() for column in columns], n=3, cutoff=0.5)
    near = [column for column in columns if column.lower() in near]
    hint = f"set {argument} to one of them"
    if near:
        hint = f"did you mean {argument}={' or '.join(map(repr, near))}"
    raise ValueError(f"{label} has no column '{field}'; it has {', '.join(columns)}; {hint}.")


def _to_text(value: Any, label: str, field: str, row: int) -> str:
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError(f"{label}, row {row}: '{field}' is empty; fill it or drop the row.")
    if not isinstance(value, str | int | float):
        found = f"{type(value).__name__} {value!r:.60}"
        raise ValueError(f"{label}, row {row}: '{field}' holds {found}; it must be text or a number.")
    return str(value)


def _extract(answer: str, pattern: str, row: int) -> str:
    found = re.search(pattern, answer)
    if found is None or not found.groups():
        raise ValueError(
            f"answer_regex {pattern!r} finds no group in the answer of row {row}: {answer[:80]!r}; "
            r"write the part to keep in parentheses, such as '####\s*(.+)'."
        )
    return found.group(1).strip()
