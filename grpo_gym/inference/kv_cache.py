"""Keys and values of a batch whose rows share prompts: each prompt is stored once, each completion once.

The layout is two preallocated blocks per layer, written in place:

- `prompt` block `[num_slots, num_kv_heads, prompt_capacity, head_dim]`: one slot per *different* prompt;
- `completion` block `[num_rows, num_kv_heads, completion_capacity, head_dim]`: one row per running sequence.

Both stay dense: a finished row or slot is overwritten by the last one, so a step reads views, never copies.
Capacities double when they are exceeded; nothing is concatenated per step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Prefill(NamedTuple):
    """Where one new prompt lies in the packed tokens of a step, and the slot that keeps it."""

    start: int
    length: int
    slot: int


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
    """

    counts: Sequence[int]
    layout: RowLayout | None  # None when no row is running
    prefills: list[Prefill]
    _biases: dict[int | None, Tensor | None] = field(default_factory=dict)
    _counts: Tensor | None = None

    @property
    def num_rows(self) -> int:
        """Rows that decode one token."""
        return len(self.counts)

    @property
    def span(self) -> int:
        """Completion positions to read: those of the longest row, this step's included."""
        return max(self.counts) + 1

    @property
    def equal_counts(self) -> bool:
        """Whether all rows are equally far."""
        return min(self.counts) == max(self.counts)

    def counts_tensor(self, device: torch.device) -> Tensor:
        """`counts` as int64 [num_rows]."""
        if self._counts is None:
            self._counts = torch.tensor(self.counts, device=device)
        return self._counts

    def bias(self, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        """What to add to the scores `[num_rows, ..., prompt + completion positions]`; None when all are visible."""
        if window not in self._biases:
            self._biases[window] = self._make_bias(window, dtype, device)
        return self._biases[window]

    def _make_bias(self, window: int | None, dtype: torch.dtype, device: torch.device) -> Tensor | None:
        layout = self.layout
        assert layout is not None
        longest = layout.max_prompt_length + self.span
        if layout.equal_prompt_lengths and self.equal_counts and (window is None or longest <= window):
            return None
        counts, lengths = self.counts_tensor(device)[:, None], layout.prompt_lengths[:, None]
        prompt = torch.arange(layout.max_prompt_length, device=device)
        completion = torch.arange(self.span, device=device)
        visible = torch.cat([prompt < lengths, completion <= counts], dim=1)
        if window is not None:
            distance = torch.cat([lengths + counts - prompt, counts - completion], dim=1)
            visible &= distance < window
        bias = torch.zeros(visible.shape, dtype=dtype, device=device).masked_fill_(~visible, -torch.inf)
        return bias[:, None, None, :]


class Block:
    """One growing buffer `[entries, num_kv_heads, positions, head_dim]` of keys or values."""

    def __init__(self) -> None:
        self.data: Tensor | None = None

    def reserve(self, entries: int, positions: int, like: Tensor) -> Tensor:
        """The buffer, grown (by doubling) to hold `entries` x `positions`; `like` is `[num_kv_heads, _, head_dim]`."""
        old = self.data
        if old is not None and old.shape[0] >= entries and old.shape[2] >= positions:
            return old
        if old is not None:
            entries = _grown(old.shape[0], entries)
            positions = _grown(old.shape[2], positions)
        # Zeros, not garbage: hidden positions have weight 0, and 0 times a stray NaN would be NaN.
        self.data = like.new_zeros(entries, like.shape[0], positions, like.shape[2])
        if old is not None:
            self.data[: old.shape[0], :, : old.shape[2]] = old
        return self.data

    def move(self, sources: Tensor, destinations: Tensor) -> None:
        """Overwrite entries `destinations` by entries `sources` (both int64 [n])."""
        if self.data is not None:
            self.data[destinations] = self.data[sources]


def _grown(current: int, needed: int) -> int:
    return current if needed <= current else max(needed, 2 * current)


class LayerCache:
    """Keys and values of one attention layer."""

    def __init__(self) -> None:
        self.prompt_keys, self.prompt_values = Block(), Block()
        self.completion_keys, self.completion_values = Block(), Block()


class SharedPrefixCache:
    """The cache of all layers, and the plan of the step that is being computed.

    Args:
        initial_positions: completion positions allocated at first; doubled when needed.
    """

    def __init__(self, initial_positions: int = 64) -> None:
        self.initial_positions = initial_positions
        self.layers: dict[int, LayerCache] = {}
        self.plan: StepPlan | None = None
        self.num_slots = 0
        self.max_rows = 0

    def layer(self, index: int) -> LayerCache:
        """The cache of layer `index`."""
        return self.layers.setdefault(index, LayerCache())

    def write_completions(self, index: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store this step's tokens and return all completion keys and values up to them.

        Args:
            index: the layer.
            keys: `[num_kv_heads, num_rows, head_dim]`; values alike (their head_dim may differ).

        Returns:
            Views `[num_rows, num_kv_heads, span, head_dim]`.
        """
        layer = self.layer(index)
        return self._append(layer.completion_keys, keys), self._append(layer.completion_values, values)

    def write_prompt(self, index: int, prefill: Prefill, keys: Tensor, values: Tensor) -> None:
        """Store one new prompt: keys and values `[num_kv_heads, length, head_dim]`."""
        layer = self.layer(index)
        for block, new in ((layer.prompt_keys, keys), (layer.prompt_values, values)):
            data = block.reserve(max(self.num_slots, prefill.slot + 1), prefill.length, new)
            data[prefill.slot, :, : prefill.length] = new

    def prompts(self, index: int) -> tuple[Tensor, Tensor]:
        """Views `[num_slots_in_use, num_kv_heads, max_prompt_length, head_dim]` of keys and values."""
        layer, plan = self.layer(index), self.plan
        assert plan is not None
        assert plan.layout is not None
        keys, values = layer.prompt_keys.data, layer.prompt_values.data
        assert keys is not None
        assert values is not None
        slots, length = plan.layout.grid.shape[0], plan.layout.max_prompt_length
        return keys[:slots, :, :length], values[:slots, :, :length]

    def move_rows(self, sources: list[int], destinations: list[int], device: torch.device) -> None:
        """Put the completions of rows `sources` in the places of finished rows `destinations`."""
        blocks = [b for layer in self.layers.values() for b in (layer.completion_keys, layer.completion_values)]
        _move(blocks, sources, destinations, device)

    def move_slots(self, sources: list[int], destinations: list[int], device: torch.device) -> None:
        """Put the prompts of slots `sources` in the places of unused slots `destinations`."""
        blocks = [b for layer in self.layers.values() for b in (layer.prompt_keys, layer.prompt_values)]
        _move(blocks, sources, destinations, device)

    def _append(self, block: Block, new: Tensor) -> Tensor:
        plan = self.plan
        assert plan is not None
        positions = plan.span if block.data is not None else max(plan.span, self.initial_positions)
        data = block.reserve(max(plan.num_rows, self.max_rows), positions, new)
        rows = plan.num_rows
        if plan.equal_counts:
            data[:rows, :, plan.counts[0]] = new.transpose(0, 1)
        else:
            counts = plan.counts_tensor(new.device)
            data[torch.arange(rows, device=new.device), :, counts] = new.transpose(0, 1)
        return data[:rows, :, : plan.span]


def _move(blocks: list[Block], sources: list[int], destinations: list[int], device: torch.device) -> None:
    if not sources:
        return
    source, destination = torch.tensor(sources, device=device), torch.tensor(destinations, device=device)
    for block in blocks:
        block.move(source, destination)
