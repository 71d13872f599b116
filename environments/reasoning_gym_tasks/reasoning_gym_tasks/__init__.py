"""Any Reasoning Gym task, or a weighted mix of them, as a Verifiers environment."""

from __future__ import annotations

import importlib
from typing import Any

_HOMES = {
    "LazyReasoningGymEnv": "reasoning_gym_tasks.environment",
    "load_environment": "reasoning_gym_tasks.environment",
    "UnscorableError": "reasoning_gym_tasks.scoring",
    "TaskSpec": "reasoning_gym_tasks.tasks",
    "task_names": "reasoning_gym_tasks.tasks",
}

__all__ = ["LazyReasoningGymEnv", "TaskSpec", "UnscorableError", "load_environment", "task_names"]


def __getattr__(name: str) -> Any:
    """Load names when they are used: a process that only scores needs no Verifiers, and starts sooner."""
    if name not in _HOMES:
        raise AttributeError(f"module 'reasoning_gym_tasks' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOMES[name]), name)
