"""Tiny vision-language models with random weights, made on the spot."""

from __future__ import annotations

import functools
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from tiny_vision.families import make

from grpo_gym.vision.images import encode_image
from grpo_gym.vision.renderer import ImageChatRenderer

CORPUS = [
    "Which colour is the shape? Answer with one word: red green blue",
    "How many circles do you see?",
] * 20


@functools.cache
def tiny(family: str) -> tuple[Any, Any]:
    """A model and its processor; shared, so put back what you change."""
    if family == "smolvlm":
        pytest.importorskip("num2words")
    return make(family, CORPUS)


def renderer(family: str) -> ImageChatRenderer:
    model, processor = tiny(family)
    return ImageChatRenderer(processor, model.config)


def picture(colour: str = "red", size: tuple[int, int] = (56, 56)) -> str:
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=colour)
    return encode_image(image)


def ask(text: str, *urls: str) -> list[dict[str, Any]]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]
