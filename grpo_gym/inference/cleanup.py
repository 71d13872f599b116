"""Giving back what was taken when something goes wrong half-way."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def closed_on_error(close: Callable[[], None]) -> Iterator[None]:
    """Call `close` when the block raises, whatever it raises.

    Trouble with closing becomes a note on the error that came first: that one says what went wrong.
    """
    try:
        yield
    except BaseException as error:
        try:
            close()
        except Exception as trouble:
            error.add_note(f"Cleaning up after it failed, too: {type(trouble).__name__}: {trouble}")
        raise
