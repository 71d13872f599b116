"""An experiment as data: YAML files that build on each other, checked, and saved with the run."""

from __future__ import annotations

from grpo_gym.config.errors import ConfigError
from grpo_gym.config.load import load_experiment
from grpo_gym.config.schema import Experiment

__all__ = ["ConfigError", "Experiment", "load_experiment"]
