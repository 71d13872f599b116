"""Your own questions and answers as a Verifiers environment."""

from question_answer.environment import load_environment
from question_answer.matching import answers_match

__all__ = ["answers_match", "load_environment"]
