"""Images in chat messages: data URIs in, pictures out, the same ones that vLLM makes of them.

The server decodes the same data URIs by itself. What it does beside that (vllm/multimodal/image.py: turn a picture
as its EXIF orientation says, put what is transparent on white) is done here in the same way, pixel for pixel.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Sequence
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

Part = dict[str, Any]
_SHOWN = 60


class ImageError(ValueError):
    """An image of a prompt cannot be used; the message says which and why."""


def image_urls(messages: Sequence[Any]) -> list[str]:
    """The `image_url`s of a conversation, in order.

    Args:
        messages: plain dicts, or Verifiers' message objects.

    Raises:
        ImageError: an image part without a URL.
    """
    return [_url(part) for message in messages for part in _image_parts(message)]


def template_messages(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversation as chat templates of vision-language models read it: a list of parts per message."""
    return [{**message, "content": _template_parts(message.get("content"))} for message in messages]


def decode_image(url: str) -> Image.Image:
    """The picture behind a `data:image/...;base64,...` URI, in RGB, upright.

    Raises:
        ImageError: another kind of URL, or bytes that are no picture.
    """
    header, comma, payload = url.partition(",")
    if not header.startswith("data:") or not comma:
        raise ImageError(
            f"the image {url[:_SHOWN]!r} is not a data URI: put the picture itself into the prompt, as "
            "data:image/png;base64,... (nothing is fetched during training)."
        )
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(payload, validate=True)))
        return _rgb(ImageOps.exif_transpose(picture))
    except (binascii.Error, UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ImageError(f"the image {url[:_SHOWN]!r}... cannot be read: {error}") from error


def encode_image(image: Image.Image) -> str:
    """A picture as a PNG data URI."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _rgb(picture: Image.Image) -> Image.Image:
    """RGB on white: what is transparent would turn black."""
    if picture.mode == "RGB":
        return picture
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        on_white = Image.new("RGB", picture.size, "white")
        on_white.paste(picture, mask=picture.getchannel("A"))
        return on_white
    return picture.convert("RGB")


def _content(message: Any) -> Any:
    return message.get("content") if isinstance(message, dict) else message.content


def _image_parts(message: Any) -> list[Any]:
    content = _content(message)
    if not isinstance(content, list):
        return []
    return [part for part in content if _field(part, "type") in ("image_url", "image")]


def _field(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name, None)


def _url(part: Any) -> str:
    source = _field(part, "image_url")
    url = source if isinstance(source, str) else _field(source, "url")
    if not isinstance(url, str) or not url:
        raise ImageError(
            "a prompt has an image part without an image: write {'type': 'image_url', 'image_url': {'url': "
            "'data:image/png;base64,...'}}."
        )
    return url


def _template_parts(content: Any) -> Any:
    if content is None:
        return content
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    return [_template_part(part) for part in content]


def _template_part(part: Part) -> Part:
    # Templates write one placeholder per part of this type; which picture it is, the processor knows by order.
    return {"type": "image"} if part.get("type") in ("image_url", "image") else part
