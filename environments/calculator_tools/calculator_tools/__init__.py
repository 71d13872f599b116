"""Arithmetic with a calculator tool, as a Verifiers environment."""

from calculator_tools.calculator import calculate
from calculator_tools.environment import load_environment

__all__ = ["calculate", "load_environment"]
