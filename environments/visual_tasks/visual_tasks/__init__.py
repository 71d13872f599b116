"""Questions about pictures as a Verifiers environment."""

from visual_tasks.environment import VisualTasksEnv, load_environment
from visual_tasks.pictures import data_uri, image_message, read_picture

__all__ = ["VisualTasksEnv", "data_uri", "image_message", "load_environment", "read_picture"]
