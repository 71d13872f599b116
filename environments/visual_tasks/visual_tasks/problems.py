"""Where problems come from, by index: the same index gives the same problem, made when it is asked for."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from datasets import Dataset, Image, load_dataset

from visual_tasks.pictures import read_picture
from visual_tasks.shapes import Problem, colour_problem, count_problem

Split = Literal["train", "eval"]
DRAWN_TASKS = ("colour", "count")
_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}


class Problems(Protocol):
    """Problems by index."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Problem: ...


class DrawnProblems:
    """Problems about drawn shapes.

    Args:
        task: "colour" or "count".
        split: the two splits never share a seed.
        size: how many there are.
        seed: problems of other seeds are others.
        colours: of the shapes.
        image_size: width and height in pixels.
        max_shapes: most shapes in a "count" picture.
    """

    def __init__(
        self,
        task: str,
        split: Split,
        size: int,
        seed: int,
        colours: Sequence[str],
        image_size: int,
        max_shapes: int,
    ) -> None:
        self._task, self._split, self._size, self._seed = task, split, size, seed
        self._colours, self._image_size, self._max_shapes = tuple(colours), image_size, max_shapes

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Problem:
        """Problem `index`, drawn now."""
        if not 0 <= index < self._size:
            raise IndexError(f"problem {index} of {self._size}")
        digest = hashlib.sha256(f"{self._task}/{self._split}/{self._seed}/{index}".encode()).digest()
        rng = random.Random(int.from_bytes(digest[:8], "big"))
        if self._task == "colour":
            return colour_problem(rng, self._colours, self._image_size)
        return count_problem(rng, self._colours, self._image_size, self._max_shapes)


class OwnProblems:
    """Problems of a dataset: a column with pictures, one with questions, one with answers.

    Args:
        data: the rows.
        fields: names of the image, question and answer columns.
        folder: what relative paths of pictures are relative to.

    Raises:
        ValueError: a column is missing.
    """

    def __init__(self, data: Dataset, fields: tuple[str, str, str], folder: str | Path) -> None:
        missing = [name for name in fields if name not in data.column_names]
        if missing:
            raise ValueError(
                f"the dataset has no column {missing[0]!r}; it has {', '.join(data.column_names)}. Name the right "
                "ones with image_field, question_field and answer_field."
            )
        image_field = fields[0]
        if isinstance(data.features[image_field], Image):
            # As bytes: pictures are decoded here, one at a time, with a message that names the row.
            data = data.cast_column(image_field, Image(decode=False))
        self._data, self._fields, self._folder = data, fields, folder

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Problem:
        """Problem `index`; its picture is read now.

        Raises:
            ValueError: the picture cannot be read, or question or answer are empty.
        """
        row = self._data[index]
        image, question, answer = (row[name] for name in self._fields)
        if question in (None, "") or answer in (None, ""):
            raise ValueError(f"row {index} of the dataset has no {self._fields[1]} or no {self._fields[2]}")
        try:
            picture = read_picture(image, self._folder)
        except ValueError as error:
            raise ValueError(f"row {index} of the dataset, column {self._fields[0]!r}: {error}") from error
        return Problem(picture, str(question), str(answer))


def load_own(dataset: str | Path | Dataset, split: str, name: str | None) -> tuple[Dataset, Path]:
    """A dataset and the folder its relative paths start from.

    Args:
        dataset: a .jsonl, .json, .csv or .parquet file, a Hugging Face id or folder, or a `Dataset`.
        split: its split; files have none.
        name: its configuration.

    Raises:
        ValueError: it cannot be read.
    """
    if isinstance(dataset, Dataset):
        return dataset, Path()
    path = Path(dataset)
    try:
        if path.suffix in _READERS:
            data: Any = load_dataset(_READERS[path.suffix], data_files=str(path), split="train")
            return data, path.parent
        return load_dataset(str(dataset), name, split=split), path if path.is_dir() else Path()  # type: ignore[return-value]
    except Exception as error:
        # datasets raises a dozen kinds of exceptions; all of them mean this.
        raise ValueError(f"dataset {str(dataset)!r} cannot be read: {error}") from error
