"""Mathematics with `<think>` and `<answer>`, scored by math-verify, as a Verifiers environment."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "grade": "math_reasoning.grading",
    "load_environment": "math_reasoning.environment",
    "GraderPool": "math_reasoning.pool",
    "UnscorableError": "math_reasoning.pool",
}

__all__ = ["GraderPool", "UnscorableError", "grade", "load_environment"]


def __getattr__(name: str) -> Any:
    """Load names when they are used: a grading process needs no Verifiers, and starts in a second."""
    if name not in _HOMES:
        raise AttributeError(f"module 'math_reasoning' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
