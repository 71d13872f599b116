"""Drawn shapes, and questions about them that have one right answer."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

COLOURS = {
    "red": (220, 30, 30),
    "green": (20, 150, 50),
    "blue": (30, 60, 220),
    "yellow": (240, 210, 20),
    "purple": (140, 40, 170),
    "orange": (245, 130, 20),
    "black": (20, 20, 20),
    "grey": (130, 130, 130),
}
SHAPES = ("circle", "square", "triangle")
MAX_SHAPES = 9


@dataclass(frozen=True, slots=True)
class Problem:
    """A picture, a question about it and the answer."""

    picture: Image.Image
    question: str
    answer: str


def colour_problem(rng: random.Random, colours: Sequence[str], image_size: int) -> Problem:
    """One shape, and the question which colour it has."""
    colour, shape = rng.choice(list(colours)), rng.choice(SHAPES)
    picture = _blank(image_size)
    side = rng.uniform(0.55, 0.85) * image_size
    corner = [rng.uniform(0, image_size - side) for _ in range(2)]
    _draw(picture, shape, colour, corner[0], corner[1], side)
    return Problem(picture, f"Which colour is the {shape}? One of: {', '.join(colours)}.", colour)


def count_problem(rng: random.Random, colours: Sequence[str], image_size: int, max_shapes: int) -> Problem:
    """Several shapes on a grid, which never overlap, and the question how many there are of one kind."""
    cells = rng.sample([(x, y) for x in range(3) for y in range(3)], rng.randint(1, max_shapes))
    wanted = rng.choice(SHAPES)
    picture, count, cell_size = _blank(image_size), 0, image_size / 3
    for x, y in cells:
        shape = rng.choice(SHAPES)
        count += shape == wanted
        side = rng.uniform(0.6, 0.9) * cell_size
        margin = (cell_size - side) / 2
        _draw(picture, shape, rng.choice(list(colours)), x * cell_size + margin, y * cell_size + margin, side)
    return Problem(picture, f"How many {wanted}s are there? Answer with a number.", str(count))


def _blank(image_size: int) -> Image.Image:
    return Image.new("RGB", (image_size, image_size), "white")


def _draw(picture: Image.Image, shape: str, colour: str, left: float, top: float, side: float) -> None:
    draw = ImageDraw.Draw(picture)
    right, bottom = left + side, top + side
    fill = COLOURS[colour]
    if shape == "circle":
        draw.ellipse((left, top, right, bottom), fill=fill)
    elif shape == "square":
        draw.rectangle((left, top, right, bottom), fill=fill)
    else:
        draw.polygon([(left, bottom), (right, bottom), (left + side / 2, top)], fill=fill)
