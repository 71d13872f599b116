"""One error message for a setting whose value is not among the valid ones."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    """Raise ValueError, listing `allowed` and naming the nearest, unless `value` is one of them."""
    if value in allowed:
        return
    near = difflib.get_close_matches(str(value).lower(), allowed, n=1, cutoff=0.4)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{name}={value!r} is not one of {', '.join(allowed)}{hint}.")
