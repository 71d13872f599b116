"""Packing: the completions of a group behind one copy of their prompt, several groups to a row, no padding.

A group of G completions is laid out as `prompt c1 c2 ... cG` on one row of T tokens. The positions of every
completion continue those of the prompt, and attention (`attention.py`) lets it see the prompt and itself
only, so each token's hidden state is the one it has in `prompt + completion` alone. The last token of a
completion predicts nothing and is left out of the row.

With `shared_prefix=False` every completion gets its own copy of the prompt: padding-free rows for models
whose attention cannot branch.
"""

from __future__ import annotations

import dataclasses
import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grpo_gym.vision.model_inputs import VisionInputs

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class PackInput:
    """A prompt and its completions.

    Attributes:
        prompt_ids: token ids of the prompt, at least one.
        completions: (rollout id, token ids) of each completion, at least one token each.
    """

    prompt_ids: list[int]
    completions: list[tuple[int, list[int]]]

    def num_tokens(self, shared_prefix: bool = True) -> int:
        """Tokens that the packed group runs through the model, with its prompt once or once per completion."""
        num_prompts = 1 if shared_prefix else len(self.completions)
        return num_prompts * len(self.prompt_ids) + sum(len(ids) - 1 for _, ids in self.completions)


@dataclass(frozen=True, slots=True)
class GroupLayout:
    """Where one group lies in the row, as half-open [start, end) spans.

    Attributes:
        trunk: the causal segment that every branch sees: the prompt (or one whole sequence without branches).
        branches: the inputs of the completions; empty spans are completions of one token.
    """

    trunk: Span
    branches: tuple[Span, ...] = ()


@dataclass(slots=True)
class PackLayout:
    """What attention needs to know about a row. `cache` holds tables made from it once, by device."""

    groups: tuple[GroupLayout, ...]
    cache: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)

    def sequences(self) -> Iterator[tuple[Span, ...]]:
        """The spans that make up the input of each sequence, in row order."""
        for group in self.groups:
            if not group.branches:
                yield (group.trunk,)
            for branch in group.branches:
                yield (group.trunk, branch)


@dataclass(slots=True)
class PackedBatch:
    """One micro-batch: T tokens through the model, N completion tokens to score.

    Attributes:
        input_ids: [1, T] long.
        position_ids: [1, T] long.
        layout: which tokens see which.
        predict_index: [N] long, the place in T whose hidden state predicts each completion token.
        target_ids: [N] long, the completion tokens.
        sequence_index: [N] long, index into `rollout_ids`.
        rollout_ids: the rollouts of this micro-batch; tokens in [N] follow their order.
        vision: the pictures of the sequences, for vision-language models.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: PackLayout
    predict_index: Tensor
    target_ids: Tensor
    sequence_index: Tensor
    rollout_ids: list[int]
    vision: VisionInputs | None = None

    @property
    def completion_lengths(self) -> list[int]:
        """Completion tokens of each rollout."""
        return torch.bincount(self.sequence_index, minlength=len(self.rollout_ids)).tolist()

    def to(self, device: torch.device | str) -> PackedBatch:
        """A copy with its tensors on `device`."""
        names = ("input_ids", "position_ids", "predict_index", "target_ids", "sequence_index")
        moved: dict[str, Any] = {name: getattr(self, name).to(device) for name in names}
        if self.vision is not None:
            moved["vision"] = self.vision.to(device)
        return dataclasses.replace(self, **moved)


def pack_groups(
    groups: Sequence[PackInput], max_tokens: int, shared_prefix: bool = True, padded: bool = False
) -> list[PackedBatch]:
    """The micro-batches of `plan_micro_batches`, laid out."""
    plan = plan_micro_batches(groups, max_tokens, shared_prefix, padded)
    return [lay_out(chosen, shared_prefix) for chosen in plan]


def plan_micro_batches(
    groups: Sequence[PackInput], max_tokens: int, shared_prefix: bool = True, padded: bool = False
) -> list[list[PackInput]]:
    """Divide groups into as few micro-batches of `max_tokens` tokens as first-fit decreasing finds.

    A group above the budget is split and its prompt repeated. A single sequence above the budget gets a
    micro-batch of its own: nothing shorter would be exact. The result depends on the arguments alone.

    Args:
        groups: prompts with their completions.
        max_tokens: budget of a micro-batch.
        shared_prefix: a prompt is in the row once, not once per completion.
        padded: the forward turns rows into right-padded batches, so the budget bounds sequences * longest.

    Raises:
        ValueError: an empty prompt or completion, `max_tokens` below 1, or `padded` with `shared_prefix`.
    """
    if max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, got {max_tokens}.")
    if padded and shared_prefix:
        raise ValueError("a padded batch repeats prompts: pass shared_prefix=False with padded=True.")
    for group in groups:
        _check(group)
    pieces = [piece for group in groups for piece in _split(group, max_tokens, shared_prefix)]
    fill = _fill_padded if padded else _first_fit_decreasing
    bins = fill([piece.num_tokens(shared_prefix) for piece in pieces], max_tokens)
    return [[pieces[i] for i in chosen] for chosen in bins]


def lay_out(groups: Sequence[PackInput], shared_prefix: bool = True) -> PackedBatch:
    """One micro-batch of these groups, in order."""
    row = _Row()
    for group in groups:
        row.add_branching(group) if shared_prefix else row.add_whole(group)
    return row.finish()


def pad_packs(packs: Sequence[PackedBatch], count: int) -> list[PackedBatch]:
    """Append micro-batches with N = 0 up to `count`, so that every rank runs the same number of passes.

    Raises:
        ValueError: there are more than `count` micro-batches already.
    """
    if len(packs) > count:
        raise ValueError(
            f"{len(packs)} micro-batches are more than {count}: count is the maximum over ranks."
        )
    return [*packs, *(empty_pack() for _ in range(count - len(packs)))]


def empty_pack() -> PackedBatch:
    """A micro-batch of two tokens and nothing to score: a forward and backward with zero gradients."""
    none = torch.zeros(0, dtype=torch.long)
    return PackedBatch(
        input_ids=torch.zeros((1, 2), dtype=torch.long),
        position_ids=torch.arange(2).unsqueeze(0),
        layout=PackLayout((GroupLayout(trunk=(0, 2)),)),
        predict_index=none,
        target_ids=none,
        sequence_index=none,
        rollout_ids=[],
    )


def balance_over_ranks(
    groups: Sequence[PackInput], num_ranks: int, shared_prefix: bool = True
) -> list[list[int]]:
    """Indices of `groups` for each rank, longest first to the least loaded; each list is in ascending order.

    Loads differ by at most the largest group; `split_for_ranks` first makes that small.
    """
    shares = _balance([group.num_tokens(shared_prefix) for group in groups], num_ranks)
    return [sorted(share) for share in shares]


def split_for_ranks(
    groups: Sequence[PackInput], num_ranks: int, shared_prefix: bool = True
) -> list[PackInput]:
    """Halve heavy groups where that makes the heaviest rank lighter, so that few groups still fill every rank.

    Each half computes a shared prompt again, so halving can make a step slower. Groups above a rank's fair share
    are halved one after the other (a single halving may help only together with the next), and the split whose
    heaviest rank is lightest is taken; of equal ones, that with the fewest pieces.
    """
    pieces = best = list(groups)
    costs = [piece.num_tokens(shared_prefix) for piece in pieces]
    heaviest = _heaviest_load(costs, num_ranks)
    # Splitting only adds tokens: once a fair share is as heavy as the best split, no other can be better.
    while (fair := sum(costs) / num_ranks) < heaviest:
        heavy = [i for i, piece in enumerate(pieces) if costs[i] > fair and len(piece.completions) > 1]
        if not heavy:
            break
        largest = max(heavy, key=costs.__getitem__)
        halves = _halve(pieces[largest])
        pieces = [*pieces[:largest], *halves, *pieces[largest + 1 :]]
        costs[largest : largest + 1] = [half.num_tokens(shared_prefix) for half in halves]
        if (load := _heaviest_load(costs, num_ranks)) < heaviest:
            best, heaviest = pieces, load
    return best


def _balance(costs: Sequence[int], num_ranks: int) -> list[list[int]]:
    loads = [(0, rank) for rank in range(num_ranks)]  # a heap: the least loaded, lowest rank first
    shares: list[list[int]] = [[] for _ in range(num_ranks)]
    for index in _longest_first(costs):
        load, rank = loads[0]
        shares[rank].append(index)
        heapq.heapreplace(loads, (load + costs[index], rank))
    return shares


def _heaviest_load(costs: Sequence[int], num_ranks: int) -> int:
    return max(sum(costs[i] for i in share) for share in _balance(costs, num_ranks))


def _halve(group: PackInput) -> list[PackInput]:
    by_length = sorted(group.completions, key=lambda completion: len(completion[1]), reverse=True)
    return [PackInput(group.prompt_ids, sorted(half)) for half in (by_length[::2], by_length[1::2])]


def _check(group: PackInput) -> None:
    if not group.prompt_ids:
        raise ValueError("a prompt has no tokens: nothing predicts the first token of its completions.")
    for rollout_id, ids in group.completions:
        if not ids:
            raise ValueError(f"rollout {rollout_id} has an empty completion: leave it out of the batch.")


def _split(group: PackInput, max_tokens: int, shared_prefix: bool) -> list[PackInput]:
    """Parts of a group within the budget; single sequences when the prefix is not shared."""
    if not shared_prefix:
        return [PackInput(group.prompt_ids, [completion]) for completion in group.completions]
    if group.num_tokens() <= max_tokens:
        return [group] if group.completions else []
    room = max(0, max_tokens - len(group.prompt_ids))
    bins = _first_fit_decreasing([len(ids) - 1 for _, ids in group.completions], room)
    return [PackInput(group.prompt_ids, [group.completions[i] for i in chosen]) for chosen in bins]


def _first_fit_decreasing(costs: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices by bin; a cost above the capacity gets a bin of its own. Ties keep their order."""
    bins: list[list[int]] = []
    loads: list[int] = []
    for index in _longest_first(costs):
        fits = (b for b, load in enumerate(loads) if load + costs[index] <= capacity)
        chosen = next(fits, len(bins))
        if chosen == len(bins):
            bins.append([])
            loads.append(0)
        bins[chosen].append(index)
        loads[chosen] += costs[index]
    return [sorted(chosen) for chosen in bins]


def _fill_padded(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Indices by bin with count * longest within the capacity: neighbours in length, so that little is padding."""
    bins: list[list[int]] = []
    room = 0
    for index in _longest_first(lengths):
        if not room:
            bins.append([])
            room = max(1, capacity // lengths[index])
        bins[-1].append(index)
        room -= 1
    return [sorted(chosen) for chosen in bins]


def _longest_first(costs: Sequence[int]) -> list[int]:
    return sorted(range(len(costs)), key=lambda index: -costs[index])


class _Row:
    """The growing lists behind a `PackedBatch`."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.groups: list[GroupLayout] = []
        self.predict: list[int] = []
        self.targets: list[int] = []
        self.sequences: list[int] = []
        self.rollout_ids: list[int] = []

    def append(self, ids: Sequence[int], first_position: int) -> Span:
        start = len(self.ids)
        self.ids.extend(ids)
        self.positions.extend(range(first_position, first_position + len(ids)))
        return start, len(self.ids)

    def score(self, rollout_id: int, targets: Sequence[int], predictors: Sequence[int]) -> None:
        self.predict.extend(predictors)
        self.targets.extend(targets)
        self.sequences.extend([len(self.rollout_ids)] * len(targets))
        self.rollout_ids.append(rollout_id)

    def add_branching(self, group: PackInput) -> None:
        trunk = self.append(group.prompt_ids, 0)
        branches = []
        for rollout_id, ids in group.completions:
            start, end = self.append(ids[:-1], len(group.prompt_ids))
            self.score(rollout_id, ids, [trunk[1] - 1, *range(start, end)])
            branches.append((start, end))
        self.groups.append(GroupLayout(trunk, tuple(branches)))

    def add_whole(self, group: PackInput) -> None:
        for rollout_id, ids in group.completions:
            start, end = self.append([*group.prompt_ids, *ids[:-1]], 0)
            self.score(rollout_id, ids, range(end - len(ids), end))
            self.groups.append(GroupLayout((start, end)))

    def finish(self) -> PackedBatch:
        return PackedBatch(
            input_ids=torch.tensor([self.ids], dtype=torch.long),
            position_ids=torch.tensor([self.positions], dtype=torch.long),
            layout=PackLayout(tuple(self.groups)),
            predict_index=torch.tensor(self.predict, dtype=torch.long),
            target_ids=torch.tensor(self.targets, dtype=torch.long),
            sequence_index=torch.tensor(self.sequences, dtype=torch.long),
            rollout_ids=self.rollout_ids,
        )
