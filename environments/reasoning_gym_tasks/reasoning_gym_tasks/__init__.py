"""Any Reasoning Gym task, or a weighted mix of them, as a Verifiers environment."""

from reasoning_gym_tasks.environment import LazyReasoningGymEnv, load_environment
from reasoning_gym_tasks.scoring import UnscorableError
from reasoning_gym_tasks.tasks import TaskSpec, task_names

__all__ = ["LazyReasoningGymEnv", "TaskSpec", "UnscorableError", "load_environment", "task_names"]
