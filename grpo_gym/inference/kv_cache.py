"""Keys and values of a batch whose rows share prompts: each prompt is stored once, each completion once.

Per layer, preallocated and written in place:

- prompts `[num_slots, num_kv_heads, prompt_capacity, head_dim]`: one slot per *different* prompt;
- completions, in chunks of positions `[num_rows, num_kv_heads, chunk_size, head_dim]`: one row per sequence.

Both stay dense: a finished row or slot is overwritten by the last one, so a step reads contiguous views.
Chunks, because a longer completion then needs no copy, and because products over whole contiguous chunks are
several times faster on CPU than over the used part of one long buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor


class Prefill(NamedTuple):
    """Where one new prompt lies in the packed tokens of a step, and the slot that keeps it."""

    start: int
    length: int
    slot: int


class Write(NamedTuple):
    """Rows whose new token goes to the same chunk, and its position there."""

    chunk: int
    rows: Tensor | slice
    offsets: Tensor | int


@dataclass(frozen=True)
class RowLayout:
    """Which prompt each running row continues. It changes only when rows join or leave.

    The rows of slot s are the cells `(s, 0..)` of a grid `[num_slots, max_group_size]`, so that one batched
    product attends all completions of all groups to their prompts.
    """

    slot_of_row: Tensor  # [num_rows] int64
    member_of_row: Tensor  # [num_rows] int64, the column in the grid
    grid: Tensor  # [num_slots, max_group_size] int64 row numbers; unused cells repeat row 0
    prompt_lengths: Tensor  # [num_rows] int64
    is_regular: bool  # row r is simply cell r: the grid is a view
    max_prompt_length: int
    equal_prompt_lengths: bool

    @classmethod
    def build(cls, slots: Sequence[int], prompt_lengths: Sequence[int], device: torch.device) -> RowLayout:
        """Lay out rows whose prompts are in `slots` ([num_rows]) and have `prompt_lengths` ([num_rows])."""
        members: list[list[int]] = [[] for _ in range(max(slots) + 1)]
        column = []
        for row, slot in enumerate(slots):
            column.append(len(members[slot]))
            members[slot].append(row)
        width = max(len(group) for group in members)
        grid = [group + [0] * (width - len(group)) for group in members]
        return cls(
            slot_of_row=torch.tensor(slots, device=device),
            member_of_row=torch.tensor(column, device=device),
            grid=torch.tensor(grid, device=device),
            prompt_lengths=torch.tensor(prompt_lengths, device=device),
            is_regular=[row for group in grid for row in group] == list(range(len(slots))),
            max_prompt_length=max(prompt_lengths),
            equal_prompt_lengths=min(prompt_lengths) == max(prompt_lengths),
        )


@dataclass
class StepPlan:
    """What one forward pass computes: `num_rows` decode tokens, then the packed tokens of new prompts.

    `counts[r]` is how many tokens of row r are cached already: the token of this step goes there.
    `row_capacity` is the most rows that this step or a later one can have.
    """

    counts: Sequence[int]
    layout: RowLayout | None  # None when no row is running
    prefills: list[Prefill]
    row_capacity: int
    _biases: dict[int | None, Tensor | None] = field(default_factory=dict)
    _counts: Tensor | None = None
    _writes: list[Write] | None = None

    @property
    def num_rows(self) -> int:
        """Rows that decode one token."""
        return len(self.counts)

    @cached_property
    def chunks(self) -> list[range]:
        """The chunks of completion positions to read, up to that of this step's token in the longest row."""
        return chunks_covering(max(self.counts) + 1)

    @cached_property
    def equal_counts(self) -> bool:
        """Whether all rows are equally far."""
        return min(self.counts) == max(self.counts)

    def counts_tensor(self, device: torch.device) -> Tensor:
        """`counts` as int64 [num_rows]."""
        if self._counts is None:
            self._counts = torch.tensor(self.counts, device=device)
        return self._counts

    def writes(self, device: torch.device) -> list[Write]:
        """Where the tokens of this step go: chunk, rows, positions in the chunk."""
        if self._writes is None:
            self._writes = self._make_writes(device)
        return self._writes

    def _make_writes(self, device: torch.device) -> list[Write]:
        if self.equal_counts:
            return [
                Write(len(self.chunks) - 1, slice(0, self.num_rows), self.counts[0] - self.chunks[-1].start)
            ]
        writes = []
        for index, positions in enumerate(self.chunks):
            rows = [row for row, count in enumerate(self.counts) if count in positions]
            if rows:
                offsets = [self.counts[row] - positions.start for row in rows]
                writes.append(
                    Write(index, torch.tensor(rows, device=device), torch.tensor(offsets, device=device))
                )
        return writes

    def bias(self, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What to add to the scores `[num_rows, ..., prompt + completion positions]`; None for nothing."""
        if window not in self._biases:
            self._biases[window] = self._make_bias(window, dtype, device)
        return self._biases[window]

    def _make_bias(self, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        layout = self.layout
        assert layout is not None
        positions = self.chunks[-1].stop
        full = layout.equal_prompt_lengths and min(self.counts) + 1 == positions
        if full and (window is None or layout.max_prompt_length + positions <= window):
            return None
        counts, lengths = self.counts_tensor(device)[:, None], layout.prompt_lengths[:, None]
        prompt = torch.arange(layout.max_prompt_length, device=device)
        completion = torch.arange(positions, device=device)
        visible = torch.cat([prompt < lengths, completion <= counts], dim=1)
        if window is not None:
            visible &= torch.cat([lengths + counts - prompt, counts - completion], dim=1) < window
        bias = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, -torch.inf)
        return bias[:, None, None, :]


def chunks_covering(positions: int) -> list[range]:
    """Consecutive chunks that cover `positions`: 16 long at first, later up to a quarter of what precedes."""
    chunks, start = [], 0
    while start < positions:
        size = 16 * max(1, start // 64)
        chunks.append(range(start, start + size))
        start += size
    return chunks


class LayerCache:
    """Keys and values of one attention layer; made with the shapes of its first tokens.

    Args:
        keys: any `[num_kv_heads, _, head_dim]` of the layer; values alike (their head_dim may differ).
        max_slots, max_prompt_length: capacity for prompts.
    """

    def __init__(self, keys: Tensor, values: Tensor, max_slots: int, max_prompt_length: int) -> None:
        # Zeros, not garbage: hidden positions have weight 0, and 0 times a stray NaN would be NaN.
        self.prompts = [_zeros(x, max_slots, max_prompt_length) for x in (keys, values)]
        self.completions: list[list[Tensor]] = [[], []]

    def write_prompt(self, prefill: Prefill, keys: Tensor, values: Tensor) -> None:
        """Store one new prompt: keys and values `[num_kv_heads, length, head_dim]`."""
        for buffer, new in zip(self.prompts, (keys, values), strict=True):
            buffer[prefill.slot, :, : prefill.length] = new

    def write_completions(
        self, plan: StepPlan, keys: Tensor, values: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Store this step's tokens; return all chunks up to them.

        Args:
            keys, values: `[num_kv_heads, num_rows, head_dim]`.

        Returns:
            Keys and values, each as contiguous views `[num_rows, num_kv_heads, chunk_size, head_dim]`.
        """
        return self._append(plan, 0, keys), self._append(plan, 1, values)

    def read_prompts(self, plan: StepPlan) -> tuple[Tensor, Tensor]:
        """Keys and values of the slots in use, `[num_slots, num_kv_heads, longest_prompt, head_dim]`."""
        assert plan.layout is not None
        slots, length = plan.layout.grid.shape[0], plan.layout.max_prompt_length
        keys, values = (buffer[:slots, :, :length] for buffer in self.prompts)
        return keys, values

    def move_rows(self, sources: Tensor, destinations: Tensor) -> None:
        """Put the completions of rows `sources` in the places of `destinations` (int64 [n])."""
        for chunk in (*self.completions[0], *self.completions[1]):
            chunk[destinations] = chunk[sources]

    def move_slots(self, sources: Tensor, destinations: Tensor) -> None:
        """Put the prompts of slots `sources` in the places of `destinations` (int64 [n])."""
        for buffer in self.prompts:
            buffer[destinations] = buffer[sources]

    def _append(self, plan: StepPlan, which: int, new: Tensor) -> list[Tensor]:
        chunks = self.completions[which]
        for positions in plan.chunks[len(chunks) :]:
            chunks.append(_zeros(new, plan.row_capacity, len(positions)))
        by_row = new.transpose(0, 1)
        for index, rows, offsets in plan.writes(new.device):
            chunks[index][rows, :, offsets] = by_row[rows]
        return [chunk[: plan.num_rows] for chunk in chunks[: len(plan.chunks)]]


def _zeros(like: Tensor, entries: int, positions: int) -> Tensor:
    return like.new_zeros(entries, like.shape[0], positions, like.shape[2])


class SharedPrefixCache:
    """The cache of all layers, and the plan of the step that is being computed.

    Args:
        max_slots: most different prompts at once.
        max_prompt_length: the longest prompt, in tokens.
    """

    def __init__(self, max_slots: int, max_prompt_length: int) -> None:
        self.max_slots, self.max_prompt_length = max_slots, max_prompt_length
        self.layers: dict[int, LayerCache] = {}
        self.plan: StepPlan | None = None

    def layer(self, index: int, keys: Tensor, values: Tensor) -> LayerCache:
        """The cache of layer `index`; its first keys and values say which shapes to allocate."""
        if index not in self.layers:
            self.layers[index] = LayerCache(keys, values, self.max_slots, self.max_prompt_length)
        return self.layers[index]

    def move_rows(self, sources: list[int], destinations: list[int], device: torch.device) -> None:
        """Put the completions of rows `sources` in the places of finished rows `destinations`."""
        if sources:
            moved = torch.tensor(sources, device=device), torch.tensor(destinations, device=device)
            for layer in self.layers.values():
                layer.move_rows(*moved)

    def move_slots(self, sources: list[int], destinations: list[int], device: torch.device) -> None:
        """Put the prompts of slots `sources` in the places of unused slots `destinations`."""
        if sources:
            moved = torch.tensor(sources, device=device), torch.tensor(destinations, device=device)
            for layer in self.layers.values():
                layer.move_slots(*moved)
