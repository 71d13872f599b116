"""Problems made on the spot from Reasoning Gym's algebra, arithmetic and calculus tasks, answers in LaTeX.

Reasoning Gym asks some of these for a Python expression or a rounded decimal. Here the same entries are
asked as mathematics, with one exact answer each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import reasoning_gym
import sympy
from datasets import Dataset

Entry = dict[str, Any]
Problem = tuple[str, str]
Tasks = Sequence[str] | Mapping[str, Mapping[str, Any]]

# Seeds of the two streams lie far apart; what they still share is dropped from train.
_EVAL_SEED_OFFSET = 2**40
_ENTRIES_PER_SEED = 10**6
_MAX_MISSES = 2000


@dataclass(frozen=True, slots=True)
class BuiltinTask:
    """A Reasoning Gym task, its settings here, and how an entry becomes a question and an answer."""

    name: str
    to_problem: Callable[[Entry], Problem | None]
    config: dict[str, Any] = field(default_factory=dict)


def make_problems(
    num_train: int, num_eval: int, seed: int = 0, tasks: Tasks | None = None
) -> tuple[Dataset, Dataset | None]:
    """Train and eval problems: columns `question`, `answer` (LaTeX) and `source` (the task's name).

    The tasks take turns. The same seed gives the same problems; eval does not depend on `num_train`, train
    only grows with it, and no question is in both.

    Args:
        num_train: rows to train on.
        num_eval: rows to evaluate on; 0 for None.
        seed: of both streams.
        tasks: names out of `TASKS`, or a mapping from names to Reasoning Gym settings; None for all.

    Raises:
        ValueError: an unknown task, settings that Reasoning Gym refuses, or tasks too small for so many rows.
    """
    chosen = _chosen(tasks)
    seen: set[str] = set()
    eval_rows = _take(chosen, seed * _ENTRIES_PER_SEED + _EVAL_SEED_OFFSET, num_eval, seen)
    train_rows = _take(chosen, seed * _ENTRIES_PER_SEED, num_train, seen)
    return Dataset.from_list(train_rows), Dataset.from_list(eval_rows) if num_eval else None


def _chosen(tasks: Tasks | None) -> list[BuiltinTask]:
    wanted = list(TASKS) if tasks is None else tasks
    settings = wanted if isinstance(wanted, Mapping) else {name: {} for name in wanted}
    unknown = [name for name in settings if name not in TASKS]
    if unknown or not settings:
        raise ValueError(f"no builtin task {', '.join(unknown) or 'given'}; choose from {', '.join(TASKS)}.")
    return [
        BuiltinTask(name, TASKS[name].to_problem, {**TASKS[name].config, **extra})
        for name, extra in settings.items()
    ]


def _take(tasks: Sequence[BuiltinTask], seed: int, count: int, seen: set[str]) -> list[dict[str, str]]:
    """The next `count` problems whose question is not in `seen`, which learns them."""
    streams = itertools.cycle([(task, _entries(task, seed)) for task in tasks])
    rows: list[dict[str, str]] = []
    misses = 0
    while len(rows) < count:
        task, entries = next(streams)
        problem = task.to_problem(next(entries))
        if problem is None or problem[0] in seen:
            misses += 1
            if misses > _MAX_MISSES:
                raise ValueError(
                    f"the builtin tasks {', '.join(t.name for t in tasks)} have too few different problems "
                    f"for the rows asked for ({len(rows)} of {count} found); ask for fewer or add tasks."
                )
            continue
        misses = 0
        seen.add(problem[0])
        rows.append({"question": problem[0], "answer": problem[1], "source": task.name})
    return rows


def _entries(task: BuiltinTask, seed: int) -> Iterator[Entry]:
    try:
        dataset = reasoning_gym.create_dataset(task.name, seed=seed, size=_ENTRIES_PER_SEED, **task.config)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"Reasoning Gym task '{task.name}' refuses {task.config}: {error}") from error
    return (dataset[index] for index in itertools.count())


def _latex(expression: sympy.Basic) -> str:
    return sympy.latex(expression)


def _as_asked(entry: Entry) -> Problem:
    """Question and answer as Reasoning Gym gives them."""
    question = entry["question"].replace(" Give only the result as your final answer.", "")
    return question.strip(), str(entry["answer"]).strip("$")


def _sum(entry: Entry) -> Problem:
    return f"Calculate ${entry['metadata']['expression']}$.", str(entry["answer"])


def _decimal_sum(entry: Entry) -> Problem:
    answer = entry["answer"]
    return _sum(entry)[0], answer.rstrip("0").rstrip(".") if "." in answer else answer


def _product(entry: Entry) -> Problem:
    expression = entry["metadata"]["expression"].replace("*", r"\cdot")
    return f"Calculate ${expression}$.", str(entry["answer"])


def _fraction(entry: Entry) -> Problem:
    numbers = entry["metadata"]
    question = rf"\frac{{{numbers['numerator']}}}{{{numbers['denominator']}}}"
    top, bottom = numbers["simplified_numerator"], numbers["simplified_denominator"]
    answer = str(top) if bottom == 1 else rf"\frac{{{top}}}{{{bottom}}}"
    return f"Simplify ${question}$ to its lowest terms.", answer


def _divisor(entry: Entry) -> Problem:
    numbers = ", ".join(map(str, entry["metadata"]["numbers"]))
    return f"What is the greatest common divisor of {numbers}?", str(entry["answer"])


def _multiple(entry: Entry) -> Problem:
    numbers = ", ".join(map(str, entry["metadata"]["numbers"]))
    return f"What is the least common multiple of {numbers}?", str(entry["answer"])


def _linear_equation(entry: Entry) -> Problem:
    variable = entry["metadata"]["variable"]
    equation = entry["metadata"]["equation"].replace("*", " ")
    return f"Solve ${equation}$ for ${variable}$.", rf"{variable} = {entry['answer']}"


def _quadratic_equation(entry: Entry) -> Problem | None:
    """All real roots, exactly; None where there are none, or nothing to solve."""
    variable = sympy.Symbol(entry["metadata"]["variable"], real=True)
    left = sympy.sympify(entry["metadata"]["polynomial_expr"], {variable.name: variable})
    if sympy.degree(left, variable) < 1:
        return None
    roots = sorted(sympy.roots(left, variable, filter="R"), key=float)
    if not roots:
        return None
    question = f"Find all real solutions of ${_latex(left)} = 0$. Separate them by commas."
    return question, ", ".join(map(_latex, roots))


def _polynomial_product(entry: Entry) -> Problem | None:
    product = sympy.sympify(entry["metadata"]["polynomial_expr"], evaluate=False)
    expanded = sympy.expand(product)
    if str(expanded) == entry["metadata"]["polynomial_expr"]:
        return None  # nothing to multiply: the question would be its own answer
    return f"Expand ${_latex(product)}$.", _latex(expanded)


def _complex_number(entry: Entry) -> Problem:
    numbers = entry["metadata"]
    left, right = (complex(*numbers[key]) for key in ("num1", "num2"))
    sign = r"\cdot" if numbers["operation"] == "*" else numbers["operation"]
    question = f"Calculate $({_complex_text(left)}) {sign} ({_complex_text(right)})$."
    return question, _complex_text(complex(*numbers["result"]))


def _complex_text(number: complex) -> str:
    return _latex(sympy.Integer(round(number.real)) + sympy.Integer(round(number.imag)) * sympy.I)


def _antiderivative(entry: Entry) -> Problem:
    """The one antiderivative through the origin: no constant to argue about."""
    x = sympy.Symbol(entry["metadata"]["variable"])
    integrand = sympy.sympify(entry["metadata"]["integrand"], {x.name: x})
    question = f"Find the antiderivative $F({x})$ of ${_latex(integrand)}$ with $F(0) = 0$."
    return question, _latex(sympy.integrate(integrand, x))


TASKS: dict[str, BuiltinTask] = {
    task.name: task
    for task in (
        BuiltinTask("chain_sum", _sum, {"max_terms": 4, "max_digits": 3}),
        BuiltinTask(
            "decimal_chain_sum", _decimal_sum, {"max_terms": 3, "max_digits": 2, "max_decimal_places": 2}
        ),
        BuiltinTask("products", _product, {"max_digits": 2}),
        BuiltinTask("basic_arithmetic", _as_asked, {"max_terms": 4, "max_digits": 2}),
        BuiltinTask("fraction_simplification", _fraction, {"max_value": 50, "max_factor": 12}),
        BuiltinTask("gcd", _divisor, {"max_value": 200}),
        BuiltinTask("lcm", _multiple, {"max_value": 40}),
        BuiltinTask("simple_equations", _linear_equation, {"max_value": 20}),
        BuiltinTask("polynomial_equations", _quadratic_equation, {"max_value": 12, "max_degree": 2}),
        BuiltinTask(
            "polynomial_multiplication",
            _polynomial_product,
            {"max_value": 9, "max_degree": 2, "max_terms": 2, "max_polynomials": 2, "variables": ("x",)},
        ),
        BuiltinTask(
            "complex_arithmetic",
            _complex_number,
            {"operations": ("+", "-", "*"), "operations_weights": [0.4, 0.3, 0.3]},
        ),
        BuiltinTask(
            "simple_integration",
            _antiderivative,
            {"max_terms": 3, "max_degree": 4, "symbols": ("x",)},
        ),
    )
}
