"""Reasoning Gym tasks whose questions are pictures of text: the model has to read before it can reason."""

from __future__ import annotations

from typing import Any

from visual_tasks.pictures import image_message
from visual_tasks.text_pictures import draw_text

try:
    from reasoning_gym_tasks import LazyReasoningGymEnv
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "Reasoning Gym tasks as pictures need the package reasoning_gym_tasks: "
        "pip install ./environments/reasoning_gym_tasks"
    ) from error

INSTRUCTION = "Solve the task in the picture."


class RenderedGymEnv(LazyReasoningGymEnv):
    """`LazyReasoningGymEnv` with the question as a picture, and an instruction to read it.

    Args:
        image_width: of the pictures, in pixels.
        **arguments: those of `LazyReasoningGymEnv`.
    """

    def __init__(self, image_width: int = 448, **arguments: Any) -> None:
        self._image_width = image_width
        super().__init__(**arguments)

    def row(self, index: int, split: Any = "train") -> dict[str, Any]:
        """Row `index` of the split, its question drawn now."""
        row = super().row(index, split)
        *before, question = row["prompt"]
        picture = draw_text(question["content"], self._image_width)
        parts = [_with_parts(message) for message in before]
        return {**row, "prompt": [*parts, image_message(INSTRUCTION, [picture])]}


def rendered_gym(think: bool, system_prompt: str | None, **arguments: Any) -> RenderedGymEnv:
    """The environment, with the arguments that visual tasks share under Reasoning Gym's names."""
    fields = ("think", "answer") if think else ("answer",)
    return RenderedGymEnv(parser_fields=fields, system_prompt=system_prompt, **arguments)


def _with_parts(message: dict[str, Any]) -> dict[str, Any]:
    # Arrow wants one type per column, so text alone is a part, too.
    return {**message, "content": [{"type": "text", "text": message["content"]}]}
