"""Conversations with images as the token ids a vision-language model sees, and as pixels.

A placeholder of the chat template becomes as many image tokens as the picture has features: these expanded
ids are what prompts are measured by, what is sampled from and what is trained on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PretrainedConfig, ProcessorMixin

from grpo_gym.inference.sampler import ImagePrompt
from grpo_gym.rollouts.chat import ChatRenderer, plain_messages
from grpo_gym.vision.images import ImageError, decode_image, image_urls, template_messages

PIXEL_INPUTS = ("pixel_values", "pixel_attention_mask", "image_grid_thw")
"""What processors make of pictures, and models take."""
Pixels = dict[str, Tensor]
V = TypeVar("V")


class ImageChatRenderer(ChatRenderer):
    """A `ChatRenderer` whose conversations may have images.

    Args:
        processor: of the model.
        config: of the model.
        chat_template_kwargs: more arguments of the chat template.
        cache_bytes: memory for pixels of recent pictures.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        config: PretrainedConfig,
        chat_template_kwargs: dict[str, Any] | None = None,
        cache_bytes: int = 2**29,
    ) -> None:
        super().__init__(processor.tokenizer, chat_template_kwargs)
        self.processor: Any = processor
        self.image_token_id = int(config.image_token_id)
        self._pixels: _Cache[Pixels] = _Cache(cache_bytes)
        self._ids: _Cache[list[int]] = _Cache(2**25)
        # The image processors are not written for several threads.
        self._lock = threading.Lock()

    def image_prompt(self, messages: Sequence[Any]) -> ImagePrompt | None:
        """The pictures of a conversation, for a sampler; None when it has none."""
        urls = tuple(image_urls(messages))
        return ImagePrompt(urls, plain_messages(messages), self.chat_template_kwargs) if urls else None

    def pixels(self, urls: Sequence[str]) -> Pixels:
        """Model inputs of pictures, batched as for one sequence, on the CPU.

        Args:
            urls: data URIs, in the order of their placeholders.

        Returns:
            Those of `PIXEL_INPUTS` that the model has; empty without pictures.

        Raises:
            ImageError: a picture cannot be read.
        """
        key = tuple(urls)
        if not key:
            return {}
        with self._lock:
            found = self._pixels.get(key)
            if found is None:
                found = self._process(key, self.processor.image_token * len(key))[1]
                self._pixels.put(key, found, sum(t.numel() * t.element_size() for t in found.values()))
            return found

    def without_images(self, ids: Sequence[int]) -> list[int]:
        """Ids without image tokens."""
        return [i for i in ids if i != self.image_token_id]

    def _render(
        self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, add_generation_prompt: bool
    ) -> str:
        template = self.processor.chat_template or self.tokenizer.chat_template
        text = self.tokenizer.apply_chat_template(
            template_messages(messages),
            chat_template=template,
            tools=tools,  # type: ignore[arg-type]
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **self.chat_template_kwargs,
        )
        return str(text)

    def _encode(self, text: str, messages: Sequence[Any]) -> list[int]:
        urls = tuple(image_urls(messages))
        if not urls:
            return super()._encode(text, messages)
        with self._lock:
            ids = self._ids.get((text, urls))
            if ids is None:
                ids, pixels = self._process(urls, text)
                self._ids.put((text, urls), ids, 8 * len(ids))
                self._pixels.put(urls, pixels, sum(t.numel() * t.element_size() for t in pixels.values()))
            return list(ids)

    def _process(self, urls: Sequence[str], text: str) -> tuple[list[int], Pixels]:
        pictures = [_decode(url, number, len(urls)) for number, url in enumerate(urls, start=1)]
        found = text.count(self.processor.image_token)
        if found != len(pictures):
            raise ImageError(
                f"the chat template wrote {found} image placeholders for {len(pictures)} pictures; use the "
                "template of a vision-language model, and do not write the placeholder into the text."
            )
        batch = self.processor(images=pictures, text=[text], add_special_tokens=False)
        pixels = {name: torch.as_tensor(_stacked(batch[name])) for name in PIXEL_INPUTS if name in batch}
        return list(batch["input_ids"][0]), pixels


def _decode(url: str, number: int, count: int) -> Any:
    try:
        return decode_image(url)
    except ImageError as error:
        raise ImageError(f"image {number} of {count}: {error}") from error


def _stacked(values: Any) -> Any:
    """Processors return lists of arrays when they are not asked for tensors."""
    import numpy as np

    return np.asarray(values)


class _Cache(OrderedDict[Hashable, tuple[V, int]]):
    """What was used lately, up to a number of bytes; the newest entry always stays."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self._max_bytes = max_bytes
        self._bytes = 0

    def get(self, key: Hashable) -> V | None:  # type: ignore[override]
        if key not in self:
            return None
        self.move_to_end(key)
        return self[key][0]

    def put(self, key: Hashable, value: V, num_bytes: int) -> None:
        if key in self:
            self._bytes -= self.pop(key)[1]
        self[key] = (value, num_bytes)
        self._bytes += num_bytes
        while self._bytes > self._max_bytes and len(self) > 1:
            self._bytes -= self.popitem(last=False)[1][1]
