r"""Keeping a few characters from costing hours: `9^{9^9}`, `(10!)!`, a thousand braces.

A policy under reinforcement learning writes all of these. They are wrong answers, not broken scoring, so
they are recognised from their text; the deadline is for what is not.
"""

from __future__ import annotations

import math
import re

from math_reasoning.answers import closing_brace

MAX_CHARACTERS = 2000
_MAX_DEPTH = 16
_MAX_DIGITS = 400
_MAX_SIGNS = 4
_MAX_LETTERS = 40
_MAX_EXPONENT = 5_000
_MAX_POWER_OF_NUMBERS = 50_000
_MAX_FACTORIAL = 500
_MAX_POLYNOMIAL_EXPONENT = 60


def is_affordable(latex: str) -> bool:
    """Whether the parser and the comparison can be given this text."""
    return (
        len(latex) <= MAX_CHARACTERS
        and _depth(latex) <= _MAX_DEPTH
        and max(map(len, re.findall(r"\d+", latex)), default=0) <= _MAX_DIGITS
        and not re.search(rf"(?:[+-]\s*){{{_MAX_SIGNS + 1}}}|(?:[A-Za-z]\s*){{{_MAX_LETTERS + 1}}}", latex)
        and _factorials_are_small(latex)
        and _exponents_are_small(latex)
    )


def _depth(latex: str) -> int:
    depth = deepest = 0
    for character in latex:
        depth += (character in "{([") - (character in "})]")
        deepest = max(deepest, depth)
    return deepest


def _factorials_are_small(latex: str) -> bool:
    # \binom and n! of anything but a plain number may grow without bound.
    numbers = [int(n) for n in re.findall(r"(\d+)\s*!", latex)]
    numbers += [int(n) for n in re.findall(r"\\[dt]?binom\s*\{?\s*(\d+)", latex)]
    computed = re.search(r"[)\]}!]\s*!|\\[dt]?binom(?!\s*\{\s*\w{1,4}\s*\}\s*\{\s*\w{1,4}\s*\})", latex)
    return max(numbers, default=0) <= _MAX_FACTORIAL and computed is None


def _exponents_are_small(latex: str) -> bool:
    total = 1
    for caret in re.finditer(r"\^", latex):
        exponent = _group_after(latex, caret.end())
        literals = [max(1, int(n)) for n in re.findall(r"\d+", exponent)]
        size = math.prod(literals)
        has_variable = re.search(r"[A-Za-df-z]", re.sub(r"\\[A-Za-z]+", "", exponent)) is not None
        if size > _MAX_EXPONENT or "!" in exponent or ("^" in exponent and not has_variable):
            return False
        base = latex[: caret.start()].rstrip()[-1:]
        if base in (")", "]", "}") and re.search(r"[A-Za-z]", latex) and size > _MAX_POLYNOMIAL_EXPONENT:
            return False
        total *= 1 if base.isalpha() else size
    return total <= _MAX_POWER_OF_NUMBERS


def _group_after(latex: str, start: int) -> str:
    rest = latex[start:].lstrip()
    if not rest.startswith("{"):
        return rest[:1]
    end = closing_brace(rest, 1)
    return rest[1:end] if end is not None else rest[1:]
