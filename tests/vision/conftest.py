"""Tiny vision-language models with random weights, made on the spot."""

from __future__ import annotations

import base64
import functools
import io
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


def lying_photo(orientation: int = 6, size: tuple[int, int] = (56, 56)) -> str:
    """A JPEG as cameras write it: a red upper and a blue lower half, to be turned as its EXIF says."""
    image = Image.new("RGB", size, "blue")
    image.paste("red", (0, 0, size[0], size[1] // 2))
    exif = Image.Exif()
    exif[0x0112] = orientation
    return data_uri(image, "JPEG", exif=exif, quality=95)


def see_through(mode: str = "RGBA", size: tuple[int, int] = (56, 56)) -> str:
    """A PNG with a half transparent green circle on nothing."""
    image = Image.new("RGBA", size, (0, 0, 0, 0))
    ImageDraw.Draw(image).ellipse((8, 8, 40, 40), fill=(0, 200, 0, 77))
    return data_uri(image.convert(mode), "PNG")


def data_uri(image: Image.Image, kind: str, **how: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **how)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def ask(text: str, *urls: str) -> list[dict[str, Any]]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]
