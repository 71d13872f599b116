"""Pictures in messages, and one clear line when there is something wrong with them."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.vision.images import ImageError, decode_image, encode_image, image_urls, template_messages
from tests.vision.conftest import ask, data_uri, lying_photo, picture, renderer, see_through, tiny


def test_a_picture_survives_the_data_uri():
    image = Image.new("RGB", (5, 3), (1, 2, 3))
    assert decode_image(encode_image(image)).tobytes() == bytes([1, 2, 3]) * 15


def test_what_is_transparent_becomes_white():
    buffer = io.BytesIO()
    Image.new("RGBA", (1, 1), (9, 9, 9, 0)).save(buffer, format="PNG")
    url = "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
    assert decode_image(url).getpixel((0, 0)) == (255, 255, 255)


def test_a_photo_is_turned_as_its_exif_says():
    turned = decode_image(lying_photo(orientation=6, size=(32, 16)))
    assert turned.size == (16, 32)
    (left, right) = (turned.getpixel((x, 16)) for x in (2, 13))
    assert left[2] > 200 > left[0]  # blue, red: turned to the right by a quarter
    assert right[0] > 200 > right[2]
    upside_down = decode_image(lying_photo(orientation=3, size=(16, 16)))
    assert upside_down.getpixel((8, 2))[2] > 200


def colour_key():
    """RGB with one transparent colour, which vLLM leaves as it is."""
    return data_uri(Image.new("RGB", (8, 8), (9, 9, 9)), "PNG", transparency=(9, 9, 9))


@pytest.mark.parametrize(
    "url",
    [
        *(lying_photo(orientation, (32, 16)) for orientation in range(1, 9)),
        *(see_through(mode) for mode in ("RGBA", "LA", "P")),
        colour_key(),
        data_uri(Image.new("L", (8, 8), 77), "PNG"),
        data_uri(Image.new("CMYK", (8, 8), (10, 20, 30, 40)), "JPEG"),
        data_uri(Image.new("I;16", (8, 8), 3000), "PNG"),
        picture(),
    ],
)
def test_vllm_decodes_to_the_same_pixels(url):
    media = pytest.importorskip("vllm.multimodal.media.image")
    theirs = media.ImageMediaIO().load_base64("", url.partition(",")[2]).media
    ours = decode_image(url)
    assert (ours.mode, ours.size) == (theirs.mode, theirs.size) == ("RGB", theirs.size)
    assert ours.tobytes() == theirs.tobytes()


@pytest.mark.parametrize(
    "url",
    [
        "https://example.org/a.png",
        "/some/file.png",
        "data:image/png;base64,????",
        "data:image/png;base64,AAAA",
    ],
)
def test_an_unreadable_picture_is_one_clear_line(url):
    with pytest.raises(ImageError, match=r"^image 2 of 2: the image .*") as caught:
        renderer("idefics3").prompt_ids(ask("?", picture(), url))
    assert "\n" not in str(caught.value)


def test_an_image_part_without_an_image():
    messages = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ""}}]}]
    with pytest.raises(ImageError, match="image part without an image"):
        image_urls(messages)


def test_text_models_refuse_pictures(tokenizer):
    plain_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="sees text only; use a vision-language model"):
        ChatRenderer(tokenizer, {"chat_template": plain_template}).prompt_ids(ask("?", picture()))


def test_templates_get_parts():
    assert template_messages([{"role": "user", "content": "hi"}]) == [
        {"role": "user", "content": [{"type": "text", "text": "hi"}]}
    ]
    assert template_messages(ask("hi", "data:x"))[0]["content"][0] == {"type": "image"}


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "gemma3"])
def test_ids_are_the_processors_own_and_expanded(family):
    _, processor = tiny(family)
    ours = renderer(family)
    messages = ask("Which colour?", picture("red"), picture("blue", (84, 56)))
    text = processor.tokenizer.apply_chat_template(
        template_messages(messages), tokenize=False, add_generation_prompt=True
    )
    images = [decode_image(url) for url in image_urls(messages)]
    expected = processor(images=images, text=[text], add_special_tokens=False)
    ids = ours.prompt_ids(messages)
    assert ids == list(expected["input_ids"][0])
    # Qwen keeps the aspect ratio: 2 x 2 and 2 x 3 tokens; the others make every picture a square.
    assert ids.count(ours.image_token_id) == (10 if "qwen" in family else 8)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "idefics3"])
def test_pixels_do_not_depend_on_the_text(family):
    ours, other = renderer(family), renderer(family)
    messages = ask("Which colour?", picture("red"), picture("blue"))
    ours.prompt_ids(messages)  # fills the cache
    ours_pixels, other_pixels = (r.pixels(image_urls(messages)) for r in (ours, other))
    assert ours_pixels.keys() == other_pixels.keys() >= {"pixel_values"}
    assert all(ours_pixels[name].equal(other_pixels[name]) for name in ours_pixels)


def test_a_later_turn_extends_the_ids_and_brings_its_own_picture():
    ours = renderer("idefics3")
    first = ask("Which colour?", picture("red"))
    before = ours.prompt_ids(first)
    sampled = [*ours.tokenizer("red", add_special_tokens=False)["input_ids"], ours.tokenizer.eos_token_id]
    later = [*first, {"role": "assistant", "content": "red"}, *ask("And this?", picture("blue"))]
    extended = ours.extend_ids(before + sampled, later, num_previous=2)
    assert extended[: len(before) + len(sampled)] == before + sampled
    assert extended == ours.prompt_ids(later)


def test_a_placeholder_in_the_text_is_refused():
    with pytest.raises(ImageError, match="2 image placeholders for 1 pictures"):
        renderer("idefics3").prompt_ids(ask("what is <image>?", picture()))
