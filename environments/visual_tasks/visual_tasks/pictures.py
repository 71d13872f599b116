"""Pictures from wherever they come, as parts of a chat message."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError


def image_message(text: str, pictures: Sequence[Image.Image | str], role: str = "user") -> dict[str, Any]:
    """A chat message with pictures before its text, as OpenAI-style content parts.

    Args:
        text: the text.
        pictures: pictures, or their data URIs.
        role: who says it.
    """
    urls = [picture if isinstance(picture, str) else data_uri(picture) for picture in pictures]
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return {"role": role, "content": [*parts, {"type": "text", "text": text}]}


def data_uri(picture: Image.Image) -> str:
    """A picture as a PNG data URI: nothing is lost, and a server needs no access to files."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def read_picture(value: Any, folder: str | Path = ".") -> Image.Image:
    """A picture of a dataset, in RGB on white, upright as its EXIF orientation says.

    Args:
        value: a picture, its bytes, a data URI, a path, or the `{"bytes": ..., "path": ...}` of Hugging Face.
        folder: what relative paths are relative to.

    Raises:
        ValueError: there is no picture, or it cannot be read.
    """
    if isinstance(value, Image.Image):
        return _upright(value)
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    if value is None or value == "":
        raise ValueError("there is no picture")
    try:
        return _upright(Image.open(_source(value, Path(folder))))
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError) as error:
        shown = f"{value[:60]!r}" if isinstance(value, str | bytes) else f"a {type(value).__name__}"
        raise ValueError(f"{shown} is no picture that can be read: {error}") from error


def _upright(picture: Image.Image) -> Image.Image:
    """As a viewer shows it: turned as the camera noted, with white (not black) behind what is transparent."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        on_white = Image.new("RGB", picture.size, "white")
        on_white.paste(picture, mask=picture.getchannel("A"))
        return on_white
    return picture.convert("RGB")


def _source(value: Any, folder: Path) -> Any:
    if isinstance(value, bytes):
        return io.BytesIO(value)
    if isinstance(value, str) and value.startswith("data:"):
        return io.BytesIO(base64.b64decode(value.partition(",")[2], validate=True))
    return folder / value
