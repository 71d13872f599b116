"""GRPO-Gym: a Verifiers environment in, a better model out."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpo_gym.models import default_model as default_model
    from grpo_gym.training.config import GRPOConfig as GRPOConfig
    from grpo_gym.training.trainer import GRPOTrainer as GRPOTrainer

__version__ = "0.1.0"

# Loaded on first use: `import grpo_gym` must not import torch.
_LAZY = {
    "GRPOConfig": "grpo_gym.training.config",
    "GRPOTrainer": "grpo_gym.training.trainer",
    "default_model": "grpo_gym.models",
}

__all__ = [*_LAZY, "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'grpo_gym' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)
