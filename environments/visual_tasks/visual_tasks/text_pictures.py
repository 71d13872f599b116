"""Text as a picture, to be read by a model that sees."""

from __future__ import annotations

import textwrap

from PIL import Image, ImageDraw, ImageFont

_FONT_SIZE = 16
_MARGIN = 8


def draw_text(text: str, width: int = 448) -> Image.Image:
    """Black text on white, wrapped to a width in pixels and as high as it needs to be.

    Args:
        text: lines are kept; longer ones are wrapped.
        width: of the picture.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    columns = max(8, int((width - 2 * _MARGIN) / font.getlength("n")))
    lines = [part for line in text.splitlines() for part in (_wrap(line, columns) or [""])]
    body = "\n".join(lines)
    _, _, right, bottom = ImageDraw.Draw(Image.new("RGB", (1, 1))).multiline_textbbox((0, 0), body, font=font)
    size = (max(width, int(right) + 2 * _MARGIN), int(bottom) + 2 * _MARGIN)
    picture = Image.new("RGB", size, "white")
    ImageDraw.Draw(picture).multiline_text((_MARGIN, _MARGIN), body, fill="black", font=font)
    return picture


def _wrap(line: str, columns: int) -> list[str]:
    return textwrap.wrap(line, columns, drop_whitespace=False, replace_whitespace=False)
