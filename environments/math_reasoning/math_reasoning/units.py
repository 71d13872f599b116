"""Units, percent signs and currencies around a value, under one name each."""

from __future__ import annotations

import re

# One line per unit: its name here, then what people write.
_ALIASES = """
mm millimeter millimetre; cm centimeter centimetre; dm decimeter decimetre; m meter metre
km kilometer kilometre kms; in inch inches; ft foot feet; yd yard; mi mile
g gram gm; kg kilogram kilo kgs; mg milligram; lb pound lbs; oz ounce; ton tonne
s second sec secs; min minute mins; h hour hr hrs; day; week; month; year yr yrs
l liter litre; ml milliliter millilitre; gal gallon; acre; hectare
dollar usd buck; cent; euro eur; rupee rs; yuan
degree deg; radian rad; unit; mph; kmph kph; ohm; volt; watt; joule; newton
person people; student; child children; man men; woman women; boy; girl; apple; book; coin; marble; ball
card; page; problem; question; point; piece; way; time; number; digit; solution; ticket; box boxes; egg
tree; animal; car; game; cookie; pencil; toy; row; side; edge; face; triangle; square; cube; tile; step
"""
_EXPANDED = {"mph": "mi/h", "kmph": "km/h"}
_POWERS = {"square": "^2", "sq": "^2", "squared": "^2", "cubic": "^3", "cubed": "^3"}
_CURRENCIES = {"$": "dollar", "€": "euro", "£": "pound sterling", "¥": "yen"}
# As an answer's last word these scale or negate it: never a unit, wherever they stand.
_NOT_UNITS = frozenset(
    (
        *("hundred", "thousand", "million", "billion", "trillion", "dozen", "half", "halves", "third"),
        *("quarter", "times", "over", "squared", "cubed", "factorial", "pi", "not", "negative", "minus"),
        *("plus", "or", "and", "mod", "modulo"),
    )
)


def _alias_table() -> dict[str, str]:
    table = {}
    for entry in _ALIASES.replace("\n", ";").split(";"):
        for word in entry.split():
            table[word] = table[f"{word}s"] = entry.split()[0]
    return table


_CANONICAL = _alias_table()
_GAP = r"(?:\s|\\[ ,;!]|~)*"
_TEXT_UNIT = re.compile(
    rf"(?P<value>.*\S){_GAP}\\(?:text|mathrm|mbox|textrm|rm)\s*\{{(?P<unit>[^{{}}]*)\}}"
    r"(?P<power>\s*\^\s*\{?[23]\}?)?",
    re.DOTALL,
)
_WORD_UNIT = re.compile(
    r"(?P<value>.*?(?:(?<=[\d})\]])(?P<gap>\s*)|(?P<space>\s+)))"
    r"(?P<unit>[A-Za-z][A-Za-z/. ]*(?:\^\{?[23]\}?)?)",
    re.DOTALL,
)
_PERCENT = re.compile(
    rf"(?P<value>.*?\S){_GAP}(?:\\?%|\\text\{{\s*(?:percent|\\?%)\s*\}}|(?<![A-Za-z])percent|(?<=\s)pct)",
    re.DOTALL,
)
_DEGREE = re.compile(r"(?P<value>.*\S)\s*\^\s*(?:\{\s*\\circ\s*\}|\\circ)\s*(?:\\text\{)?(?P<scale>[CF]?)\}?")
_CURRENCY = re.compile(
    r"(?P<sign>-?)\s*\\?(?P<mark>[$€£¥])\s*(?P<sign2>-?)\s*(?P<value>[\d.\\(].*)", re.DOTALL
)
_BASE = re.compile(r"(?P<value>\d+)_\s*\{?(?:\\text\{)?\s*(?P<base>\w+)\s*\}?\}?")


def split_unit(text: str) -> tuple[str, str | None]:
    r"""A value and its unit's name: `5\text{ cm}` -> ("5", "cm"), `50\%` -> ("50", "%"), `7` -> ("7", None).

    A number's base is treated as its unit: `101_2` -> ("101", "base 2").
    """
    for reader in (_currency, _percent, _degree, _base, _text_unit, _word_unit):
        found = reader(text)
        if found is not None and found[0].strip():
            return found[0].strip(), found[1]
    return text, None


def canonical_unit(text: str) -> str | None:
    """One name for a unit however it is written; None when a word of it is not known."""
    text = re.sub(r"\bper\b", "/", text.replace(".", "").casefold()).strip()
    parts = [_canonical_part(part) for part in text.split("/")]
    return None if None in parts or not text else "/".join(filter(None, parts))


def _canonical_part(text: str) -> str | None:
    power = "".join(re.findall(r"\^\{?([23])\}?", text))
    words = re.sub(r"\^\{?[23]\}?", "", text).split()
    if len(words) > 1:
        power = power or "".join(_POWERS.get(word, "") for word in words).removeprefix("^")
        words = [word for word in words if word not in _POWERS]
    names = [_CANONICAL.get(word) for word in words]
    if len(names) != 1 or names[0] is None:
        return None
    name = _EXPANDED.get(names[0], names[0])
    return f"{name}^{power}" if power else name


def _text_unit(text: str) -> tuple[str, str] | None:
    r"""`5\text{ apples}`: what is set as text is a unit, known or not, unless it scales the value."""
    found = _TEXT_UNIT.fullmatch(text)
    if found is None:
        return None
    words = found["unit"].strip().casefold()
    if not re.fullmatch(r"[a-z][a-z/ .^\d-]{0,40}", words) or _NOT_UNITS & set(re.findall("[a-z]+", words)):
        return None
    written = words + "".join(re.findall(r"\^|\d", found["power"] or ""))
    return found["value"], canonical_unit(written) or written


def _word_unit(text: str) -> tuple[str, str] | None:
    """`5 apples`, `5cm`: plain words are a unit only when they are known; one letter needs a space."""
    found = _WORD_UNIT.fullmatch(text)
    if found is None or (len(found["unit"]) == 1 and not (found["gap"] or found["space"])):
        return None
    unit = canonical_unit(found["unit"])
    return None if unit is None else (found["value"], unit)


def _currency(text: str) -> tuple[str, str] | None:
    found = _CURRENCY.fullmatch(text)
    if found is None or (found["sign"] and found["sign2"]):
        return None
    return found["sign"] + found["sign2"] + found["value"], _CURRENCIES[found["mark"]]


def _percent(text: str) -> tuple[str, str] | None:
    found = _PERCENT.fullmatch(text)
    return None if found is None else (found["value"], "%")


def _degree(text: str) -> tuple[str, str] | None:
    found = _DEGREE.fullmatch(text)
    return None if found is None else (found["value"], f"degree {found['scale']}".strip())


def _base(text: str) -> tuple[str, str] | None:
    found = _BASE.fullmatch(text)
    return None if found is None else (found["value"], f"base {found['base']}")
