"""The order in which prompts are used: shuffled epochs, resumable to the exact prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol, runtime_checkable

import verifiers as vf

from grpo_gym.rollouts.permutation import permuted

Row = dict[str, Any]
Split = Literal["train", "eval"]


@runtime_checkable
class LazyRows(Protocol):
    """An environment that makes rows when they are asked for, so that a million prompts cost nothing at start-up."""

    def num_rows(self, split: Split) -> int:
        """Number of rows of the split."""
        ...

    def row(self, index: int, split: Split) -> Row:
        """Row `index` of the split, with at least `prompt` and `example_id`."""
        ...


class EnvironmentRows:
    """The rows of an environment's split, by index, lazily where the environment can.

    Raises:
        ValueError: the environment has no such rows, or they lack a prompt.
    """

    def __init__(self, env: vf.Environment, split: Split) -> None:
        self._lazy = env if isinstance(env, LazyRows) else None
        self._split: Split = split
        if self._lazy is None:
            self._dataset = env.get_dataset() if split == "train" else env.get_eval_dataset()
            _check_columns(self._dataset.column_names, split)
        if len(self) == 0:
            raise ValueError(f"the environment's {split} dataset is empty; give it at least one example.")

    def __len__(self) -> int:
        return self._lazy.num_rows(self._split) if self._lazy else len(self._dataset)

    def __getitem__(self, index: int) -> Row:
        return self._lazy.row(index, self._split) if self._lazy else self._dataset[index]


def _check_columns(columns: list[str], split: str) -> None:
    if "prompt" not in columns:
        raise ValueError(
            f"the environment's {split} dataset has columns {', '.join(columns)}, but no 'prompt' (or 'question'); "
            "rename the column that holds the question."
        )


def select_eval_rows(rows: EnvironmentRows, count: int) -> list[Row]:
    """The first `count` rows: the same held-out problems at every evaluation."""
    return [rows[index] for index in range(min(count, len(rows)))]


class PromptStream:
    """An endless stream of rows in shuffled epochs.

    Args:
        rows: where rows come from.
        seed: seed of the order; epoch `e` uses `seed + e`.
        shuffle: whether to shuffle.
        accepts: rows for which it is False are left out and counted in `num_skipped` (over-long prompts).
    """

    def __init__(
        self,
        rows: EnvironmentRows,
        seed: int,
        shuffle: bool = True,
        accepts: Callable[[Row], bool] | None = None,
    ) -> None:
        self._rows = rows
        self._seed = seed
        self._shuffle = shuffle
        self._accepts = accepts or (lambda row: True)
        self._position = 0
        self.num_skipped = 0

    def __iter__(self) -> Iterator[tuple[int, Row]]:
        return self

    def __next__(self) -> tuple[int, Row]:
        """The next accepted row with its ticket: its position in the stream, unique over all epochs.

        Raises:
            ValueError: a whole epoch has no accepted row.
        """
        for _ in range(len(self._rows)):
            ticket = self._position
            row = self._rows[self._index_at(ticket)]
            self._position += 1
            if self._accepts(row):
                return ticket, row
            self.num_skipped += 1
        raise ValueError(
            f"none of the {len(self._rows)} prompts fits: all are longer than the model, the server or "
            "max_prompt_length allows; raise max_prompt_length, lower max_completion_length or shorten the prompts."
        )

    @property
    def epochs(self) -> float:
        """Passes over the rows so far."""
        return self._position / len(self._rows)

    def row_at(self, ticket: int) -> Row:
        """The row a ticket stands for."""
        return self._rows[self._index_at(ticket)]

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint needs to go on with the next prompt."""
        return {"position": self._position, "num_skipped": self.num_skipped}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on where `state_dict` was taken."""
        self._position = state["position"]
        self.num_skipped = state["num_skipped"]

    def _index_at(self, position: int) -> int:
        epoch, offset = divmod(position, len(self._rows))
        return permuted(offset, len(self._rows), self._seed + epoch) if self._shuffle else offset
