"""Arithmetic problems made on the spot: the same seed gives the same ones, and eval shares none with train."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from datasets import Dataset

from calculator_tools.calculator import calculate

OPERATORS = ("+", "-", "*")
_MAX_MISSES = 10_000


def make_problems(
    num_train: int,
    num_eval: int,
    seed: int = 0,
    num_terms: int = 2,
    max_digits: int = 2,
    operators: Sequence[str] = OPERATORS,
) -> tuple[Dataset, Dataset | None]:
    """Train and eval problems with the columns `question` and `answer`; None for eval when `num_eval` is 0.

    Args:
        num_train: rows to train on.
        num_eval: rows to evaluate on; they do not depend on `num_train`.
        seed: of all problems.
        num_terms: numbers in a problem.
        max_digits: digits of a number.
        operators: out of `+ - *`.

    Raises:
        ValueError: an impossible setting, or too few different problems for so many rows.
    """
    _check(num_train, num_terms, max_digits, operators)
    expressions = _different(_expressions(Random(seed), num_terms, max_digits, operators))
    held_out = [_row(next(expressions)) for _ in range(num_eval)]
    train = [_row(next(expressions)) for _ in range(num_train)]
    return Dataset.from_list(train), Dataset.from_list(held_out) if held_out else None


def _expressions(rng: Random, num_terms: int, max_digits: int, operators: Sequence[str]) -> Iterator[str]:
    while True:
        expression = str(_number(rng, max_digits))
        for _ in range(num_terms - 1):
            expression += f" {rng.choice(operators)} {_number(rng, max_digits)}"
        yield expression


def _number(rng: Random, max_digits: int) -> int:
    """Numbers of every length are equally likely."""
    digits = rng.randint(1, max_digits)
    return rng.randint(10 ** (digits - 1), 10**digits - 1)


def _different(expressions: Iterator[str]) -> Iterator[str]:
    seen: set[str] = set()
    misses = 0
    for expression in expressions:
        if expression not in seen:
            seen.add(expression)
            misses = 0
            yield expression
        misses += 1
        if misses > _MAX_MISSES:
            raise ValueError(
                f"there are only about {len(seen)} such problems; ask for fewer rows, or raise max_digits or num_terms."
            )


def _row(expression: str) -> dict[str, str]:
    return {"question": f"What is {expression}?", "answer": calculate(expression)}


def _check(num_train: int, num_terms: int, max_digits: int, operators: Sequence[str]) -> None:
    if num_train < 1 or num_terms < 2 or max_digits < 1:
        raise ValueError("num_train_examples and max_digits must be at least 1, num_terms at least 2.")
    unknown = [name for name in operators if name not in OPERATORS]
    if unknown or not operators:
        raise ValueError(
            f"operators must be out of {' '.join(OPERATORS)}, not {' '.join(unknown) or 'none'}."
        )
