"""One kind of error for everything that is wrong with an experiment file: where, which key, what to write."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

KeyPath = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value was written: `file` may also be "command line"; `key` is the key as it stands there."""

    file: str
    line: int | None
    key: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.key}"


Origins = Mapping[KeyPath, Origin]


class ConfigError(ValueError):
    """An experiment file, or an override of it, that cannot be used."""

    @classmethod
    def at(cls, origins: Origins, path: KeyPath, message: str) -> ConfigError:
        """An error about the value at `path`, naming the file and line of it or of what it stands in."""
        for length in range(len(path), 0, -1):
            origin = origins.get(path[:length])
            if origin is not None:
                rest = "".join(f".{part}" for part in path[length:])
                return cls(f"{origin}{rest}: {message}")
        inside = [origin for key, origin in origins.items() if path and key[: len(path)] == path]
        name = ".".join(path)
        if inside:
            # A section put together from several places: the last one decided.
            place = str(inside[-1]).removesuffix(inside[-1].key)
            return cls(f"{place}{name}: {message}")
        return cls(f"{name}: {message}" if path else message)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when nothing is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
