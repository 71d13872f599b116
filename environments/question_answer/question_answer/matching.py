"""When an answer counts as the right one."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import Literal, get_args

Match = Literal["exact", "normalized", "numeric"]
MATCHES: tuple[str, ...] = get_args(Match)

_SURROUNDING = " \t\n.,;:!?\"'`*()[]{}"
_RELATIVE_TOLERANCE = Fraction(1, 10**6)
_DECIMAL = r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d*)?(?:[eE][-+]?\d{1,3})?"
_NUMBER = re.compile(rf"(?P<numerator>{_DECIMAL})(?:\s*/\s*(?P<denominator>{_DECIMAL}))?")
_MAX_CHARACTERS = 400


def answers_match(given: str, expected: str, match: Match) -> bool:
    """Whether `given` is the answer `expected`.

    Args:
        given: what the model answered.
        expected: the dataset's answer.
        match: "exact": equal but for spaces around. "normalized": equal after Unicode NFKC, lower case,
            single spaces, and without punctuation around. "numeric": equal numbers, as integers, decimals,
            fractions or with thousands separators, a currency or percent sign; relative difference to 1e-6.
    """
    if match == "exact":
        return given.strip() == expected.strip()
    if match == "normalized":
        return normalize(given) == normalize(expected)
    left, right = parse_number(given), parse_number(expected)
    if left is None or right is None:
        return False
    return abs(left - right) <= _RELATIVE_TOLERANCE * abs(right)


def normalize(text: str) -> str:
    """Text without differences of case, width, spacing and surrounding punctuation."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(_SURROUNDING)


def parse_number(text: str) -> Fraction | None:
    """The number a text stands for, exactly; None when it is anything else."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-").strip()
    text = text.removesuffix(".").removesuffix("%").strip()
    sign, text = ("-", text[1:]) if text.startswith("-") else ("", text)
    text = sign + text.lstrip("$€£ ")
    found = _NUMBER.fullmatch(text) if len(text) <= _MAX_CHARACTERS else None
    if found is None:
        return None
    numerator, denominator = _to_fraction(found["numerator"]), _to_fraction(found["denominator"] or "1")
    return numerator / denominator if numerator is not None and denominator else None


def _to_fraction(decimal: str) -> Fraction | None:
    digits = decimal.replace(",", "").removesuffix(".")
    return Fraction(digits) if re.search(r"\d", re.split("[eE]", digits)[0]) else None
