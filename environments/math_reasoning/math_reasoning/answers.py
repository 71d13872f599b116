r"""What an answer says once `\boxed`, `$`, units, names and habits of typing are off."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass

from math_reasoning.units import split_unit

_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("−–—‐‑﹣－", "-"),
        **{"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/"},
        **{"π": r"\pi ", "∞": r"\infty ", "≤": r"\le ", "≥": r"\ge ", "∪": r"\cup ", "∩": r"\cap "},
        **{"∈": r"\in ", "∅": r"\emptyset ", "±": r"\pm ", "°": r"^\circ ", "≈": r"\approx "},
        **{"½": r"\frac{1}{2}", "¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}", "⅓": r"\frac{1}{3}"},
        **{"⅔": r"\frac{2}{3}", "％": "%", "，": ",", "′": "'", "’": "'"},
    }
)
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_FUNCTIONS = "arcsin|arccos|arctan|sinh|cosh|tanh|sin|cos|tan|sec|csc|cot|ln|log|exp|sqrt|pi|infty"
_REWRITES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\(?:left|right|big|Big|bigg|Bigg)[lr]?(?![A-Za-z])\s*", ""),
        (r"\\(?:displaystyle|textstyle|limits)(?![A-Za-z])\s*", ""),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:geqslant|geq)(?![A-Za-z])", r"\\ge"),
        (r"\\(?:leqslant|leq)(?![A-Za-z])", r"\\le"),
        (r"\\(?:varnothing|empty)(?![A-Za-z])|\\\{\s*\\\}", r"\\emptyset"),
        (r"\\(?:quad|qquad)(?![A-Za-z])|\\[,;:! ]|~", " "),
        (r"\*\*", "^"),
        (r"√\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"√\s*(\w)", r"\\sqrt{\1}"),
        (rf"(?<![\\A-Za-z])({_FUNCTIONS})(?![A-Za-z])", r"\\\1 "),
        (r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}"),
        (r"(?<![\\A-Za-z])(?:infinity|oo)(?![A-Za-z])", r"\\infty "),
        (r"\^\s*\(([^()]*)\)", r"^{\1}"),
        (r"\^\s*(-?\d+)", r"^{\1}"),
        (r"\s*\{,\}\s*", ","),
        (r"(?<![\\A-Za-z])i(?![A-Za-z])", r"\\imath "),
    )
)
_LEAD_IN = re.compile(
    r"(?:(?:so|thus|hence|therefore),?\s+)?(?:the\s+)?(?:final\s+)?(?:answer|result|solution|value)"
    r"(?:\s+is|\s*:)+\s*",
    re.IGNORECASE,
)
_OR = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*,?\s*(?:and|or)\s*\}|(?<![A-Za-z\\])(?:and|or)(?![A-Za-z]))\s*")
_NAMED = re.compile(
    r"(?P<name>[A-Za-z](?:_\{?\w\}?)?|\\[a-z]+|[A-Za-z]\([A-Za-z]\))\s*(?:=|\\in(?![a-z]))\s*(?P<value>[^=<>]+)"
)
_THOUSANDS = re.compile(r"-?\d{1,3}(?:[, ]\d{3})+(?:\.\d+)?")
_SCIENTIFIC = re.compile(r"(-?\d+(?:\.\d+)?)[eE]([+-]?\d{1,4})")
_MIXED = re.compile(r"(-?)(\d+)\s+(\d+)\s*/\s*(\d+)|(-?)(\d+)\s*\\frac\s*\{?(\d+)\}?\s*\{?(\d+)\}?")
_REPEATING = re.compile(r"(-?)(\d+)\.(\d*)\\(?:overline|bar|dot)\s*\{(\d+)\}")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|textit|mathrm|mathbf|mbox|textrm)\s*\{([^{}]*)\}")
_WORDS = re.compile(r"[A-Za-z][A-Za-z' ,-]*")


@dataclass(frozen=True, slots=True)
class Answer:
    r"""An answer taken apart.

    Attributes:
        whole: LaTeX of everything but the unit: `x=5`.
        value: LaTeX of what it comes to: `5`.
        name: what it is the value of (`x`), where that is said.
        unit: the unit's one name ("cm", "%", "degree", "base 2"), or None.
        words: the answer in lower case when it is words and no formula ("no solution"), or None.
    """

    whole: str
    value: str
    name: str | None
    unit: str | None
    words: str | None


def read_answer(text: str) -> Answer:
    """Take an answer apart; any text will do."""
    text = _unwrap(unbox(text).strip())
    words = _as_words(text)
    text = _rewrite(text)
    bare, unit = split_unit(text)
    name, value = _split_name(bare)
    if unit is None:
        value, unit = split_unit(value)
    return Answer(_as_number(bare), _as_number(value), name, unit, words)


def unbox(text: str) -> str:
    r"""The contents of the `\boxed{}`s, joined by commas; the text itself when it has none.

    The same box twice is one answer. Two different ones are a list: right only when the answer is that list.
    """
    boxes, position = [], 0
    while found := re.compile(r"\\f?box(?:ed)?\s*\{").search(text, position):
        end = closing_brace(text, found.end())
        if end is None:
            return text
        boxes.append(unbox(text[found.end() : end]).strip())
        position = end
    return ", ".join(dict.fromkeys(boxes)) if boxes else text


def closing_brace(text: str, start: int) -> int | None:
    """Where the group ends whose content starts at `start`; None when it does not end."""
    depth = 1
    for index in range(start, len(text)):
        escaped = index > 0 and text[index - 1] == "\\"
        depth += 0 if escaped else (text[index] == "{") - (text[index] == "}")
        if depth == 0:
            return index
    return None


def _unwrap(text: str) -> str:
    """Without what surrounds mathematics: dollars, bold, a lead-in, a final full stop."""
    text = _LEAD_IN.sub("", text, count=1) if _LEAD_IN.match(text) else text
    text = text.strip().removesuffix(".").strip()
    for opening, closing in (("**", "**"), ("$$", "$$"), (r"\[", r"\]"), (r"\(", r"\)"), ("`", "`")):
        if len(text) > len(opening + closing) and text.startswith(opening) and text.endswith(closing):
            text = text[len(opening) : -len(closing)].strip()
    if len(re.findall(r"(?<!\\)\$", text)) % 2 == 0:
        text = re.sub(r"(?<!\\)\$", "", text)
    text = text.strip().removesuffix(".").strip()
    return re.sub(r"^\\approx\s*", "", text)


def _rewrite(text: str) -> str:
    """The same mathematics in the LaTeX that the parser reads best."""
    text = re.sub(r"[⁻⁰¹²³⁴-⁹]+", lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}", text)
    text = unicodedata.normalize("NFKC", text.translate(_CHARACTERS))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    return " ".join(_OR.sub(", ", text).split())


def _as_words(text: str) -> str | None:
    plain = _TEXT_COMMAND.sub(r"\1", text).strip().strip("().").strip()
    set_as_text = _TEXT_COMMAND.fullmatch(text) is not None
    if not _WORDS.fullmatch(plain) or (not set_as_text and not re.search(r"[A-Za-z]{3}", plain)):
        return None
    return " ".join(plain.casefold().replace("-", " ").split())


def _split_name(text: str) -> tuple[str | None, str]:
    """`x=5` -> ("x", "5"); `x=1, x=2` -> ("x", "1, 2"); anything else -> (None, text)."""
    found = _NAMED.fullmatch(text)
    if found is not None:
        return found["name"], found["value"]
    parts = [_NAMED.fullmatch(part.strip()) for part in text.split(",")]
    if len(parts) > 1 and all(parts) and len({part["name"] for part in parts if part}) == 1:
        return parts[0]["name"] if parts[0] else None, ", ".join(part["value"] for part in parts if part)
    return None, text


def _as_number(text: str) -> str:
    """Numbers as the parser would misread them: `1,234`, `1.5e3`, `3 1/2` (which is no product)."""
    text = text.strip()
    if _THOUSANDS.fullmatch(text):
        return re.sub("[, ]", "", text)
    if found := _SCIENTIFIC.fullmatch(text):
        return rf"{found[1]} \cdot 10^{{{int(found[2])}}}"
    if found := _MIXED.fullmatch(text):
        sign, whole, top, bottom = (g for g in found.groups() if g is not None)
        return rf"{sign}({whole}+\frac{{{top}}}{{{bottom}}})"
    if found := _REPEATING.fullmatch(text):
        sign, whole, fixed, period = found.groups()
        scale = 10 ** len(fixed)
        top = int(whole + fixed) * (10 ** len(period) - 1) + int(period)
        return rf"{sign}\frac{{{top}}}{{{scale * (10 ** len(period) - 1)}}}"
    if re.fullmatch(r"-?\.\d+", text):
        return text.replace(".", "0.")
    return text.removesuffix(".") if re.fullmatch(r"-?\d+\.", text) else text
