"""Runs one benchmark: `python -m benchmarks NAME [options]`."""

from __future__ import annotations

import sys
from importlib import import_module

NAMES = (
    "train_step",
    "end_to_end",
    "overlap",
    "rollout_overhead",
    "weight_sync",
    "scaling",
    "startup",
    "plan_check",
    "parts",
)


def main(argv: list[str]) -> None:
    """Dispatch to `benchmarks.NAME.main`."""
    if not argv or argv[0] not in NAMES:
        raise SystemExit(f"usage: python -m benchmarks {{{','.join(NAMES)}}} [options]")
    import_module(f"benchmarks.{argv[0]}").main(argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
