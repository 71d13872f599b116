r"""Whether an answer is the reference answer: math-verify, with the doors closed that it leaves open.

What it does differently from `math_verify.verify(parse(gold), parse(answer))`:
the whole answer is parsed, never a number picked out of it; units must agree where both sides have one;
`3 1/2` is 7/2; (1, 2), [1, 2] and {1, 2} stay apart; 50% is 1/2 and 0.09 is not 9%; numbers are compared
exactly, however large or small, and a decimal stands for an unending number only with six correct digits;
1/0 equals nothing; what is left to compute is no answer. Runs in a process of its own: see
`math_reasoning.pool`.
"""

from __future__ import annotations

import functools
import logging
import re
import zlib
from decimal import Decimal
from fractions import Fraction

import sympy
from latex2sympy2_extended import NormalizationConfig
from latex2sympy2_extended.sets import FiniteSet
from math_verify import LatexExtractionConfig, parse, verify

from math_reasoning.answers import Answer, read_answer
from math_reasoning.effort import MAX_CHARACTERS, is_affordable
from math_reasoning.forms import has_asked_form, is_worked_out

# math-verify warns once per process that its own time limit is off; the pool's deadline replaces it.
logging.getLogger("math_verify").setLevel(logging.ERROR)

_EXTRACTION = [
    LatexExtractionConfig(
        boxed_match_priority=0,
        normalization_config=NormalizationConfig(
            basic_latex=True, units=False, malformed_operators=True, nits=False, boxed="last"
        ),
    )
]
_MIN_SIGNIFICANT_DIGITS = 6
_RELATIVE_TOLERANCE = sympy.Rational(1, 10**12)
_DECIMAL = re.compile(r"-?\d+\.\d+")
_CLOCK = re.compile(r"\d{1,2}\s*:\s*\d{2}")
_PERCENT_ASKED = re.compile(r"%|per\s?cent|pct", re.IGNORECASE)
_INTERVAL_ONLY = re.compile(r"\\infty|\\cup|\\cap|^\s*\[.*\)\s*$|^\s*\(.*\]\s*$")


def grade(gold: str, answer: str, question: str = "") -> bool:
    """Whether `answer` is the reference answer `gold`; see the README for the conventions.

    Args:
        gold: the reference answer: LaTeX, plain mathematics or words, `boxed` or not.
        answer: what stood between the answer tags. Anything that cannot be parsed is wrong.
        question: what was asked; an answer that only repeats its formula is wrong, and "50%" is 50 only where it
            speaks of percent.

    Raises:
        Exception: whatever sympy raises when the reference answer itself cannot be handled.
    """
    if not answer.strip() or len(answer) > max(MAX_CHARACTERS, len(gold)):
        return False
    if _squeeze(gold) == _squeeze(answer):
        return True
    expected, given = read_answer(gold), read_answer(answer)
    if expected.words is not None:
        return expected.words == given.words or _letters_match(expected, given)
    if not (is_affordable(expected.whole) and is_affordable(given.whole)):
        return _squeeze(expected.whole) == _squeeze(given.whole) and expected.unit == given.unit
    if expected.unit != given.unit and None not in (expected.unit, given.unit):
        return False
    if not is_worked_out(question, expected, given):
        return False
    try:
        pairs = _comparisons(expected, given, question)
        return any(_same(*pair) for pair in pairs) and _has_form(question, given)
    except Exception:
        # sympy raises all sorts on nonsense. The answer is at fault if the reference alone causes no error.
        _check_comparable(expected.value)
        return False


def _squeeze(text: str) -> str:
    return "".join(text.split())


def _letters_match(expected: Answer, given: Answer) -> bool:
    r"""`\text{(A)}` and `A`: a choice, set as text on one side only."""
    return len(expected.words or "") == 1 and given.whole.strip("() .").casefold() == expected.words


def _has_form(question: str, given: Answer) -> bool:
    expression = _parse(given.value)
    return expression is None or has_asked_form(question, expression)


def _comparisons(expected: Answer, given: Answer, question: str) -> list[tuple[str, str]]:
    """The pairs of LaTeX of which one must be equal."""
    left, right = _paired(expected, given)
    if left is None or right is None:
        return []
    if (expected.unit == "%") == (given.unit == "%"):
        return [(left, right)]
    if expected.unit == "%":  # 50%: "50" leaves the sign to the question, "1/2" is the number
        return [(left, right), (_per_cent(left), right)]
    # 1/2: "50%" is the number. 50: "50%" writes the sign where the question asks for it; but 0.5 is not 0.5%.
    as_number = (left, _per_cent(right))
    is_per_cent = _is_above_one(left) and _PERCENT_ASKED.search(question)
    return [as_number, (left, right)] if is_per_cent else [as_number]


def _paired(expected: Answer, given: Answer) -> tuple[str | None, str | None]:
    """Values beside values, equations beside equations; (None, None) when they answer different things."""
    if expected.name and given.name:
        same = _squeeze(expected.name).casefold() == _squeeze(given.name).casefold()
        return (expected.value, given.value) if same else (None, None)
    is_equation = "=" in (given.whole if expected.name else expected.whole)
    if is_equation:
        return expected.whole, given.whole
    if "=" in given.value:  # "3+4=7", "5=x=6": which side would be the answer?
        return None, None
    return expected.value, given.value


def _per_cent(latex: str) -> str:
    return rf"\frac{{{latex}}}{{100}}"


def _is_above_one(latex: str) -> bool:
    number = _evaluate(_parse(latex))
    return number is not None and bool(abs(number) > 1)


def _check_comparable(gold: str) -> None:
    expression = _parse(gold)
    if expression is not None:
        _differ_at_a_point(expression, expression)
        verify(expression, expression, timeout_seconds=None)


def _same(gold: str, answer: str) -> bool:
    if _squeeze(gold) == _squeeze(answer):
        return True
    if _CLOCK.fullmatch(gold.strip()) or _CLOCK.fullmatch(answer.strip()):
        return False  # 12:30 is not 6:15; other colons are ratios
    left, right = _parse(gold), _parse(answer)
    if left is None or right is None or _is_undefined(left) or _is_undefined(right):
        return False
    if not _same_brackets(gold, answer, left, right):
        return False
    decimals = _decimal_comparison(gold, answer, left, right)
    if decimals is not None:
        return decimals
    sets_for_relations = bool(_INTERVAL_ONLY.search(gold))
    if _differ_at_a_point(left, right):
        return False
    return bool(verify(left, right, timeout_seconds=None, allow_set_relation_comp=sets_for_relations))


@functools.lru_cache(maxsize=256)
def _parse(latex: str) -> sympy.Basic | sympy.MatrixBase | None:
    found = parse(
        rf"\boxed{{{latex}}}",
        extraction_config=_EXTRACTION,
        fallback_mode="no_fallback",
        extraction_mode="first_match",
        parsing_timeout=None,
    )
    return _exact(found[0]) if found and not isinstance(found[0], str) else None


def _exact(expression: sympy.Basic | sympy.MatrixBase) -> sympy.Basic | sympy.MatrixBase:
    """Decimals as the fractions they are, and the imaginary unit as itself."""
    changes = {number: sympy.Rational(str(number)) for number in expression.atoms(sympy.Float)}
    changes.update({symbol: sympy.I for symbol in expression.atoms(sympy.Symbol) if symbol.name == "imath"})
    return expression.xreplace(changes)


def _is_undefined(expression: sympy.Basic | sympy.MatrixBase) -> bool:
    return bool(expression.has(sympy.zoo, sympy.nan))


def _same_brackets(gold: str, answer: str, left: sympy.Basic, right: sympy.Basic) -> bool:
    """Points, closed intervals and sets are told apart by their brackets, which the parser may drop."""
    collections = (sympy.Set, sympy.Tuple, FiniteSet)
    relations = (sympy.core.relational.Relational, sympy.logic.boolalg.Boolean)
    if not isinstance(left, collections) and not isinstance(right, collections):
        return True
    if isinstance(left, relations) or isinstance(right, relations):
        return True
    if sympy.S.EmptySet in (left, right) and r"\emptyset" not in gold:
        return False  # (1, 1) is read as an empty interval
    return _brackets(gold) == _brackets(answer)


def _brackets(latex: str) -> str:
    text = latex.strip()
    ends = text[:1] + text[-1:]
    return ends if ends in ("()", "[]", "(]", "[)") else ""


def _decimal_comparison(gold: str, answer: str, left: sympy.Basic, right: sympy.Basic) -> bool | None:
    """Compare where exactly one side is written as a decimal and the other is a number; None elsewhere.

    A decimal is exactly itself. For a number that has no end (1/3, sqrt(2)) it stands when it is that number
    rounded to its own decimals, with at least six significant digits.
    """
    gold_decimal, answer_decimal = _DECIMAL.fullmatch(gold.strip()), _DECIMAL.fullmatch(answer.strip())
    if (gold_decimal is None) == (answer_decimal is None):
        return None
    written, exact = (gold, right) if gold_decimal else (answer, left)
    value = _evaluate(exact)
    if value is None:
        return None
    decimal = Decimal(written.strip())
    gap = abs(sympy.Rational(Fraction(decimal)) - value)
    if _terminates(exact):
        return bool(gap <= _RELATIVE_TOLERANCE * abs(value))
    digits = len(decimal.as_tuple().digits)
    half_a_unit = sympy.Rational(1, 2) * sympy.Rational(10) ** int(decimal.as_tuple().exponent)
    return digits >= _MIN_SIGNIFICANT_DIGITS and bool(gap <= half_a_unit)


def _terminates(number: sympy.Basic) -> bool:
    """Whether a finite decimal can be this number."""
    number = number.doit()
    if not number.is_Rational:
        return False
    denominator = int(number.q)
    for prime in (2, 5):
        while denominator % prime == 0:
            denominator //= prime
    return denominator == 1


def _evaluate(expression: sympy.Basic | sympy.MatrixBase | None) -> sympy.Expr | None:
    """A real number's value to 40 digits; None for anything that is not one."""
    if not isinstance(expression, sympy.Expr) or expression.free_symbols:
        return None
    value = expression.doit()
    value = value if value.is_Rational else value.evalf(40)
    return value if value.is_Number and value.is_finite else None


def _differ_at_a_point(left: sympy.Basic, right: sympy.Basic) -> bool:
    """Whether two formulas have different values where every symbol stands for some fixed number.

    Sure and fast where `simplify` may take minutes to fail, and strict where math-verify is not: it takes
    10^{-20} and 2*10^{-20} for equal, both being near 0. False also means "not known".
    """
    if not isinstance(left, sympy.Expr) or not isinstance(right, sympy.Expr):
        return False
    if isinstance(left, sympy.Symbol) or isinstance(right, sympy.Symbol):
        return False  # math-verify compares names: "abc" may be a*b*c
    points = [_at_a_point(side) for side in (left, right)]
    sizes = [abs(number).evalf(20) for number in (points[0] - points[1], *points)]
    if not all(size.is_Number and size.is_finite for size in sizes):
        return False
    return bool(sizes[0] > _RELATIVE_TOLERANCE * max(sizes))


def _at_a_point(expression: sympy.Expr) -> sympy.Expr:
    values = {symbol: _number_for(symbol.name) for symbol in expression.free_symbols}
    value = expression.xreplace(values).doit()
    return value if value.is_Rational else value.evalf(40)


def _number_for(name: str) -> sympy.Rational:
    """A number in (1, 2) that belongs to the name."""
    return 1 + sympy.Rational(zlib.crc32(name.casefold().encode()) | 1, 2**33)
