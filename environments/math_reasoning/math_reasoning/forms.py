r"""Whether an answer is worked out, or only another way to write the question.

math-verify computes whatever it is given: `15-43-75` would be a right answer to "Calculate 15-43-75", and
a policy finds that before it learns to subtract. So a number must be given as a number, nothing may be left
to integrate or sum, and where the question asks for a form, the answer has that form.
"""

from __future__ import annotations

import re

import sympy

from math_reasoning.answers import Answer

_INTEGER = r"[+-]?\s*\d+"
_REAL = (
    rf"(?:{_INTEGER}(?:\.\d+)?|{_INTEGER}\s*/\s*\d+|[+-]?\s*\\frac\s*\{{{_INTEGER}\}}\s*\{{\d+\}}"
    rf"|[+-]?\s*\\frac\s*\d\s*\d|-?\(\d+\+\\frac\{{\d+\}}\{{\d+\}}\)|[+-]?\\infty"
    rf"|{_INTEGER}(?:\.\d+)?\s*\\(?:cdot|times)\s*10\s*\^\s*\{{{_INTEGER}\}}|{_INTEGER}\s*:\s*\d+)"
)
_IMAGINARY = rf"(?:{_REAL}|[+-]?)\s*\\imath"
_LITERAL = re.compile(
    rf"\s*(?:{_REAL}|{_IMAGINARY}|{_REAL}\s*[+-]\s*(?:{_REAL})?\s*\\imath|{_IMAGINARY}\s*[+-]\s*{_REAL})\s*"
)
_PENDING = re.compile(
    r"\\(?:int|iint|oint|sum|prod|lim|det)(?![A-Za-z])|\\frac\s*\{d|\\gcd|\\lcm|\\max|\\min"
)
_LOWEST_TERMS = re.compile(r"lowest terms|simplest form|simplify the fraction", re.IGNORECASE)
_EXPAND = re.compile(r"\bexpand", re.IGNORECASE)
_FACTOR = re.compile(r"\bfactor(?:i[sz])?e?\b(?! of)", re.IGNORECASE)


def is_literal(latex: str) -> bool:
    r"""Whether a text is a number, or a list or point of numbers, with nothing left to compute.

    Numbers are `7`, `-0.5`, `3/4`, `\frac{3}{4}`, `2+\frac{1}{2}` as made from `2 1/2`, `2 \cdot 10^{3}`,
    `3:4`, `\infty`, `1-2\imath`.
    """
    ends = r"^\s*(?:\\\{|[(\[{])|(?:\\\}|[)\]}])\s*$" if "," in latex else r"^\s*\\?\{|\\?\}\s*$"
    inner = re.sub(ends, "", latex) if re.match(r"\s*(?:\\\{|[(\[{])", latex) else latex
    return all(_LITERAL.fullmatch(part) for part in inner.split(","))


def is_worked_out(question: str, gold: Answer, answer: Answer) -> bool:
    """Whether the answer is in a form that a question with this reference answer asks for."""
    is_relation = re.search(r"[<>]|\\[lg]e(?![a-z])", answer.value) is not None  # x > 3 for (3, oo)
    if is_literal(gold.value) and not is_literal(answer.value) and not is_relation:
        return False
    if _PENDING.search(answer.value) and not _PENDING.search(gold.value):
        return False
    if _LOWEST_TERMS.search(question) and not _in_lowest_terms(answer.value):
        return False
    return not _is_echo(question, gold, answer)


def has_asked_form(question: str, expression: sympy.Basic | sympy.MatrixBase) -> bool:
    """Whether it is expanded where the question says "expand", a product where it says "factor"."""
    if not isinstance(expression, sympy.Expr):
        return True
    if _EXPAND.search(question):
        return not any(_is_product_of_sums(part) for part in sympy.preorder_traversal(expression))
    return not (_FACTOR.search(question) and expression.is_Add and expression.free_symbols)


def _is_product_of_sums(part: sympy.Basic) -> bool:
    return isinstance(part, sympy.Mul | sympy.Pow) and any(
        arg.is_Add and arg.free_symbols for arg in part.args
    )


def _in_lowest_terms(latex: str) -> bool:
    numbers = re.fullmatch(r"\s*[+-]?\s*(?:\\frac\s*\{)?\s*-?(\d+)\s*(?:/|\}\s*\{)\s*(\d+)\s*\}?\s*", latex)
    if numbers is None:
        return is_literal(latex) or re.search(r"[A-Za-z]", latex) is not None
    return sympy.igcd(int(numbers[1]), int(numbers[2])) == 1 and int(numbers[2]) != 1


def _is_echo(question: str, gold: Answer, answer: Answer) -> bool:
    """Whether the answer is a formula copied out of the question that is not how the reference puts it."""
    copied = _squeeze(answer.value)
    if is_literal(answer.value) or copied == _squeeze(gold.value):
        return False
    return len(copied) > 2 and copied in _squeeze(question)


def _squeeze(text: str) -> str:
    return re.sub(r"\\(?:left|right|cdot|times|d?frac)(?![A-Za-z])|[\s{}*$]", "", text)
