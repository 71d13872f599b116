"""Questions with their right answer and a worked solution that a two-million-parameter model can follow.

All but the plain sums are Reasoning Gym tasks at small sizes. The worked solutions make one small step
at a time and repeat what the next step needs, since the model has four layers and no other memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import reasoning_gym as rg
from reasoning_gym.arithmetic.leg_counting import ANIMALS

LEG_COUNTING: dict[str, int] = {"min_animals": 1, "max_animals": 3, "min_instances": 1, "max_instances": 5}
EVAL_SEED = 900_000_000
EVAL_SIZE = 1_000


@dataclass(frozen=True, slots=True)
class Problem:
    """A question, its right answer and the steps to it."""

    question: str
    answer: str
    steps: str


def _count_legs(entry: dict[str, Any]) -> Problem:
    steps, total = [], 0
    for position, (animal, count) in enumerate(entry["metadata"]["animals"].items()):
        legs = count * ANIMALS[animal]
        step = f"{count} {animal}{'s' if count > 1 else ''}: {count}*{ANIMALS[animal]}={legs}"
        if position:
            step += f", {total}+{legs}={total + legs}"
        total += legs
        steps.append(step)
    return Problem(entry["question"], entry["answer"], ". ".join(steps))


def _add(first: int, second: int) -> str:
    units, carry = first % 10 + second % 10, (first % 10 + second % 10) // 10
    tens = f"{first // 10}+{second // 10}" + ("+1" if carry else "")
    return f"{first % 10}+{second % 10}={units}, {tens}={first // 10 + second // 10 + carry}"


def _subtract(first: int, second: int) -> str:
    borrow = first % 10 < second % 10
    units = first % 10 + (10 if borrow else 0)
    tens = f"{first // 10}-{second // 10}" + ("-1" if borrow else "")
    result = first // 10 - second // 10 - borrow
    return f"{units}-{second % 10}={units - second % 10}, {tens}={result}"


def work_sum(expression: str) -> str:
    """Steps of a sum or difference of two numbers up to 99, in columns, units first.

    `17 + 25` -> `7+5=12, 1+2+1=4, 42`; `42 - 17` -> `12-7=5, 4-1-1=2, 25`.

    Raises:
        ValueError: the expression is something else, or its result is negative.
    """
    match = re.fullmatch(r"(\d{1,2}) ([+-]) (\d{1,2})", expression)
    if match is None:
        raise ValueError(f"not a sum of two numbers up to 99: {expression!r}")
    first, second = int(match[1]), int(match[3])
    if match[2] == "+":
        return f"{_add(first, second)}, {first + second}"
    if first < second:
        raise ValueError(f"the result is negative: {expression!r}")
    return f"{_subtract(first, second)}, {first - second}"


def _sum_of_terms(entry: dict[str, Any]) -> Problem:
    return Problem(entry["question"], entry["answer"], work_sum(entry["metadata"]["expression"]))


def _count_letters(entry: dict[str, Any]) -> Problem:
    letter = entry["metadata"]["target_letter"]
    steps, total = [], 0
    for word in entry["metadata"]["span"]:
        total += word.lower().count(letter)
        steps.append(f"{'-'.join(word)} {total}")
    return Problem(entry["question"], entry["answer"], ", ".join(steps))


def _spell_backward(entry: dict[str, Any]) -> Problem:
    word = entry["metadata"]["word"]
    return Problem(entry["question"], entry["answer"], f"{'-'.join(word)}, {'-'.join(reversed(word))}")


def plain_sum(rng: Random) -> Problem:
    """A question in the style of `train_minimal.py`: `What is 17 + 25?`. Half are two-digit additions."""
    lowest = rng.choice((1, 10, 10, 10))
    first, second = rng.randint(lowest, 99), rng.randint(lowest, 99)
    if rng.random() < 0.65:
        answer, expression = first + second, f"{first} + {second}"
    else:
        first, second = max(first, second), min(first, second)
        answer, expression = first - second, f"{first} - {second}"
    return Problem(f"What is {expression}?", str(answer), work_sum(expression))


@dataclass(frozen=True, slots=True)
class Family:
    """A Reasoning Gym task at one size, and how to work its entries. `weight`: share of the questions."""

    task: str
    weight: float
    config: dict[str, Any]
    work: Callable[[dict[str, Any]], Problem]


_SUMS: dict[str, Any] = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2}
FAMILIES: tuple[Family, ...] = (
    Family("leg_counting", 0.22, LEG_COUNTING, _count_legs),
    Family("leg_counting", 0.40, {**LEG_COUNTING, "min_animals": 2}, _count_legs),
    Family("chain_sum", 0.05, _SUMS, _sum_of_terms),
    Family(
        "basic_arithmetic",
        0.05,
        {
            **_SUMS,
            "operators": ("+", "-"),
            "allow_parentheses": False,
            "allow_negation": False,
            "format_style": "natural",
        },
        _sum_of_terms,
    ),
    Family("letter_counting", 0.04, {"min_words": 1, "max_words": 3}, _count_letters),
    Family("spell_backward", 0.04, {"min_word_len": 3, "max_word_len": 4}, _spell_backward),
)
PLAIN_SUM_WEIGHT = 0.20


def held_out_leg_counting(size: int = EVAL_SIZE) -> list[Problem]:
    """The leg_counting problems that accuracy is measured on."""
    entries = rg.create_dataset("leg_counting", seed=EVAL_SEED, size=size, **LEG_COUNTING)
    return [_count_legs(entry) for entry in entries]


def _reserved_questions() -> set[str]:
    """Held-out questions kept out of training.

    One animal gives only about 200 different questions, which cannot be kept apart; two or three can.
    """
    questions = (problem.question for problem in held_out_leg_counting())
    return {question for question in questions if "," in question.split(" if ")[-1]}


def _is_in_reach(entry: dict[str, Any]) -> bool:
    """Whether the model's way of adding applies: no negative result, no number above 99."""
    expression = entry["metadata"].get("expression", "")
    return not entry["answer"].startswith("-") and not re.search(r"\d{3}", expression)


def _family_problems(family: Family, count: int, seed: int) -> Iterator[Problem]:
    # Reasoning Gym draws item i from Random(seed + i): widely spaced seeds keep the families' items apart.
    entries = rg.create_dataset(family.task, seed=seed, size=count, **family.config)
    return (family.work(entry) for entry in entries if _is_in_reach(entry))


def training_problems(count: int, seed: int) -> list[Problem]:
    """About `count` problems of all families in random order, the same for the same seed."""
    rng = Random(seed)
    reserved = _reserved_questions()
    problems: list[Problem] = []
    for index, family in enumerate(FAMILIES):
        family_seed = 100_000_000 + 10_000_000 * index + 1_000_000_000 * seed
        drawn = _family_problems(family, round(count * family.weight), family_seed)
        problems += [problem for problem in drawn if problem.question not in reserved]
    problems += [plain_sum(rng) for _ in range(round(count * PLAIN_SUM_WEIGHT))]
    rng.shuffle(problems)
    return problems
