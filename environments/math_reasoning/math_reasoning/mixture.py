"""Several sources in one dataset, in the shares of their weights; train and eval share no question."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from datasets import Dataset, concatenate_datasets

from math_reasoning.builtin import make_problems
from math_reasoning.sources import load_rows
from math_reasoning.specs import BUILTIN, SourceSpec

_BUILTIN_TRAIN, _BUILTIN_EVAL = 400, 100
_MAX_HELD_OUT = 500

logger = logging.getLogger(__name__)

Split = tuple[Dataset, Dataset | None]


def build_splits(
    specs: Sequence[SourceSpec],
    num_train: int | None,
    num_eval: int | None,
    eval_fraction: float,
    seed: int,
) -> Split:
    """Train and eval rows (None without eval): `question`, `answer` and `source`.

    Args:
        specs: the members and their weights.
        num_train: rows to train on; None for as many as the shares allow without repeating a row.
        num_eval: rows to evaluate on; 0 for none, None for all eval splits, or the held-out share.
        eval_fraction: share of a source held out for eval (500 rows at most) where it has no eval split.
        seed: of problems that are made, of the hold-out and of the order of a mix.

    Raises:
        ValueError: the data cannot be loaded, or there are fewer rows than asked for.
    """
    if not 0 <= eval_fraction < 1:
        raise ValueError(f"eval_fraction must be at least 0 and below 1, not {eval_fraction}.")
    weights = [spec.weight for spec in specs]
    wanted_train, wanted_eval = _shares(num_train, weights), _shares(num_eval, weights)
    splits = [
        _load(spec, train, held, eval_fraction, seed)
        for spec, train, held in zip(specs, wanted_train, wanted_eval, strict=True)
    ]
    evals = [part for _, part in splits]
    eval_rows = None if num_eval == 0 else _mix(specs, evals, num_eval, weights, seed, "num_eval_examples")
    trains = [_without(train, eval_rows) for train, _ in splits]
    train_rows = _mix(specs, trains, num_train, weights, seed, "num_train_examples")
    assert train_rows is not None
    return train_rows, eval_rows


def _shares(total: int | None, weights: Sequence[float]) -> list[int | None]:
    """Whole numbers in the proportions of the weights that add up to `total` (largest remainders)."""
    if total is None:
        return [None] * len(weights)
    exact = [total * weight / sum(weights) for weight in weights]
    counts: list[int | None] = [math.floor(share) for share in exact]
    by_remainder = sorted(range(len(exact)), key=lambda i: math.floor(exact[i]) - exact[i])
    for i in by_remainder[: total - sum(map(math.floor, exact))]:
        counts[i] = math.floor(exact[i]) + 1
    return counts


def _load(spec: SourceSpec, num_train: int | None, num_eval: int | None, fraction: float, seed: int) -> Split:
    if spec.dataset == BUILTIN:
        train_size = _BUILTIN_TRAIN if num_train is None else num_train
        eval_size = (_BUILTIN_EVAL if fraction else 0) if num_eval is None else num_eval
        return make_problems(train_size, eval_size, seed, spec.tasks)
    train = _rows(spec, spec.split)
    if spec.eval_split is not None:
        return train, _rows(spec, spec.eval_split)
    count = num_eval
    if count is None:
        count = min(_MAX_HELD_OUT, max(1, round(fraction * len(train)))) if fraction else 0
    if not 0 <= count < len(train):
        raise ValueError(
            f"cannot hold {count} of the {len(train)} rows of {spec.label} out for eval and still train; "
            "lower num_eval_examples or name an eval_split."
        )
    shuffled = train.shuffle(seed=seed)
    held_out = shuffled.select(range(count)) if count else None
    return shuffled.select(range(count, len(train))), held_out


def _rows(spec: SourceSpec, split: str) -> Dataset:
    rows, left_out = load_rows(spec.dataset, spec.config, split, spec.fields, spec.answer_regex)
    if left_out:
        logger.warning("%d rows of %s have no question or no answer and are left out.", left_out, spec.label)
    return rows.add_column("source", [spec.label] * len(rows))


def _without(train: Dataset, eval_rows: Dataset | None) -> Dataset:
    """Train rows whose question is not in eval."""
    if eval_rows is None:
        return train
    asked = set(eval_rows["question"])
    kept = [i for i, question in enumerate(train["question"]) if question not in asked]
    return train if len(kept) == len(train) else train.select(kept)


def _mix(
    specs: Sequence[SourceSpec],
    parts: Sequence[Dataset | None],
    total: int | None,
    weights: Sequence[float],
    seed: int,
    argument: str,
) -> Dataset | None:
    """The members in their shares, shuffled together; None when no member has rows."""
    present = [(spec, part, weight) for spec, part, weight in zip(specs, parts, weights, strict=True) if part]
    if not present:
        if total:
            raise ValueError(f"{argument}={total}, but no dataset has rows for it; name an eval_split.")
        return None
    shares = [weight for _, _, weight in present]
    most = _most_without_repeats([len(part) for _, part, _ in present], shares)
    if total is None and len(present) == 1:
        return present[0][1]
    if total is not None and not 1 <= total <= most:
        raise ValueError(
            f"{argument}={total}, but the datasets and weights allow 1 to {most} without repeats."
        )
    counts = _shares(most if total is None else total, shares)
    chosen = [part.select(range(count or 0)) for (_, part, _), count in zip(present, counts, strict=True)]
    mixed = concatenate_datasets(chosen)
    return mixed.shuffle(seed=seed) if len(present) > 1 else mixed


def _most_without_repeats(sizes: Sequence[int], weights: Sequence[float]) -> int:
    """The largest total whose shares no member is too small for."""
    total = (
        math.floor(min(size * sum(weights) / weight for size, weight in zip(sizes, weights, strict=True))) + 1
    )
    while total > 0 and any(
        (count or 0) > size for count, size in zip(_shares(total, weights), sizes, strict=True)
    ):
        total -= 1
    return total
