"""A Reasoning Gym entry as text, and back, without loss.

A handful of tasks (word_ladder, ransom_note, knight_swap, ...) iterate over sets of strings while they
generate, so another process makes a *different* entry from the same seed and index. `vf-eval` scores in
another process. Each row therefore carries the entry it was made from, and that entry is scored.
"""

from __future__ import annotations

import json
from fractions import Fraction
from typing import Any

import numpy as np

_TUPLE, _SET, _PAIRS, _FRACTION = "__tuple__", "__set__", "__pairs__", "__fraction__"

Entry = dict[str, Any]


def encode_entry(entry: Entry) -> str:
    """The answer and metadata of an entry as JSON; tuples, sets, fractions and non-string keys are tagged.

    Raises:
        TypeError: the metadata holds something that is not plain data.
    """
    return json.dumps(_encode({"answer": entry["answer"], "metadata": entry["metadata"]}))


def decode_entry(text: str, question: str) -> Entry:
    """The entry that `encode_entry` was given."""
    return {"question": question, **_decode(json.loads(text))}


def difficulty_of(entry: Entry) -> str:
    """The task's own difficulty settings as plain JSON ("{}" where a task reports none)."""
    return json.dumps(_plain(entry["metadata"].get("difficulty") or {}))


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic | np.ndarray):
        return _encode(value.tolist())
    if isinstance(value, Fraction):
        return {_FRACTION: str(value)}
    if isinstance(value, list):
        return [_encode(item) for item in value]
    if isinstance(value, tuple):
        return {_TUPLE: [_encode(item) for item in value]}
    if isinstance(value, set | frozenset):
        return {_SET: [_encode(item) for item in sorted(value, key=repr)]}
    if isinstance(value, dict):
        return _encode_dict(value)
    raise TypeError(
        f"a Reasoning Gym entry holds a {type(value).__name__}, which cannot travel with its row."
    )


def _encode_dict(value: dict[Any, Any]) -> dict[str, Any]:
    if all(isinstance(key, str) for key in value) and not {_TUPLE, _SET, _PAIRS, _FRACTION} & value.keys():
        return {key: _encode(item) for key, item in value.items()}
    return {_PAIRS: [[_encode(key), _encode(item)] for key, item in value.items()]}


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    if _TUPLE in value:
        return tuple(_decode(value[_TUPLE]))
    if _SET in value:
        return set(_decode(value[_SET]))
    if _FRACTION in value:
        return Fraction(value[_FRACTION])
    if _PAIRS in value:
        return {_decode(key): _decode(item) for key, item in value[_PAIRS]}
    return {key: _decode(item) for key, item in value.items()}


def _plain(value: Any) -> Any:
    """Readable JSON: tuples become lists, keys become strings."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | bool | int | float) else str(value)
