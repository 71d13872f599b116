"""Randomly initialised models and their processors, a few hundred thousand parameters each.

An image of any size becomes 56 x 56 pixels, 16 patches and 4 tokens (Qwen keeps the aspect ratio: a
56 x 84 image becomes 6 tokens; "idefics3_tiles" cuts 112 x 112 pixels into 4 tiles and adds the whole picture, as
Idefics3's checkpoints do: 20 tokens and their separators).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForImageTextToText,
    Gemma3Config,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessorPil,
    SmolVLMProcessor,
)

from grpo_gym.vision.loading import image_only

IMAGE_SIZE, PATCH_SIZE, IMAGE_TOKENS = 56, 14, 4
VOCAB_SIZE, MAX_LENGTH = 512, 512
PAD, END = "<|pad|>", "<|im_end|>"
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

_TEMPLATE = (
    "{%%- for message in messages -%%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%%- if message['content'] is string -%%}{{- message['content'] -}}{%%- else -%%}"
    "{%%- for part in message['content'] -%%}"
    "{%%- if part['type'] in ['image', 'image_url'] -%%}{{- '%s' -}}{%%- else -%%}{{- part['text'] -}}{%%- endif -%%}"
    "{%%- endfor -%%}{%%- endif -%%}"
    "{{- '<|im_end|>\\n' -}}"
    "{%%- endfor -%%}"
    "{%%- if add_generation_prompt -%%}{{- '<|im_start|>assistant\\n' -}}{%%- endif -%%}"
)
_QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_IDEFICS_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
_TILE_TOKENS = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))
_GEMMA_TOKENS = ("<start_of_image>", "<end_of_image>", "<image_soft_token>")


def make(
    family: str, corpus: Iterable[str], seed: int = 0, hidden_size: int = 64
) -> tuple[PreTrainedModel, Any]:
    """A model with random weights and its processor.

    Args:
        family: one of `FAMILIES`.
        corpus: texts the tokenizer is trained on.
        seed: of the weights.
        hidden_size: of the language model and the vision tower.
    """
    processor, config = FAMILIES[family](corpus, hidden_size)
    torch.manual_seed(seed)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    for name, parameter in model.named_parameters():
        if name.endswith("mm_input_projection_weight"):  # Gemma 3's is zero until a checkpoint is loaded
            torch.nn.init.normal_(parameter, std=0.2)
    tokenizer = processor.tokenizer
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, processor


def save(model: PreTrainedModel, processor: Any, directory: str | Path) -> str:
    """Write a checkpoint that `GRPOTrainer(model=directory)` and vf-vllm read."""
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return str(directory)


def _tokenizer(
    corpus: Iterable[str], special: tuple[str, ...], placeholder: str, **named: str
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(TAGS) - 48,
        special_tokens=[PAD, "<|im_start|>", END, *special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        chat_template=_TEMPLATE % placeholder,
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
        **named,
    )


def _text_config(hidden_size: int, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": hidden_size // 4,
        "max_position_embeddings": MAX_LENGTH,
        **more,
    }


def _ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    return {
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
    }


def _mrope(hidden_size: int, **more: Any) -> dict[str, Any]:
    half = hidden_size // 4 // 2
    section = [half - 2 * (half // 3), half // 3, half // 3]
    return {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": section, **more}


def _qwen(corpus: Iterable[str], patch_size: int) -> tuple[PreTrainedTokenizerFast, Qwen2VLImageProcessorPil]:
    tokenizer = _tokenizer(corpus, _QWEN_TOKENS, "<|vision_start|><|image_pad|><|vision_end|>")
    area = IMAGE_SIZE * IMAGE_SIZE
    images = Qwen2VLImageProcessorPil(
        patch_size=patch_size, size={"shortest_edge": area // 4, "longest_edge": 4 * area}
    )
    return tokenizer, images


def _qwen_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    names = ("vision_start", "vision_end", "image", "video")
    return {
        f"{n}_token_id": tokenizer.convert_tokens_to_ids(t) for n, t in zip(names, _QWEN_TOKENS, strict=True)
    }


def _qwen2_5_vl(corpus: Iterable[str], hidden_size: int) -> tuple[Any, Any]:
    tokenizer, images = _qwen(corpus, PATCH_SIZE)
    processor = image_only(Qwen2_5_VLProcessor)(images, tokenizer, chat_template=tokenizer.chat_template)
    config = Qwen2_5_VLConfig(
        text_config=_text_config(hidden_size, rope_parameters=_mrope(hidden_size), **_ids(tokenizer)),
        vision_config={
            "depth": 2, "hidden_size": hidden_size, "intermediate_size": 2 * hidden_size, "num_heads": 4,
            "out_hidden_size": hidden_size, "patch_size": PATCH_SIZE, "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        tie_word_embeddings=True,
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return processor, config


def _qwen3_vl(corpus: Iterable[str], hidden_size: int) -> tuple[Any, Any]:
    tokenizer, images = _qwen(corpus, PATCH_SIZE)
    processor = image_only(Qwen3VLProcessor)(images, tokenizer, chat_template=tokenizer.chat_template)
    config = Qwen3VLConfig(
        text_config=_text_config(
            hidden_size, rope_parameters=_mrope(hidden_size, mrope_interleaved=True), **_ids(tokenizer)
        ),
        vision_config={
            "depth": 2, "hidden_size": hidden_size, "intermediate_size": 2 * hidden_size, "num_heads": 4,
            "out_hidden_size": hidden_size, "patch_size": PATCH_SIZE, "num_position_embeddings": 64,
            "deepstack_visual_indexes": [0],
        },
        tie_word_embeddings=True,
        **_qwen_ids(tokenizer),
    )  # fmt: skip
    return processor, config


def _siglip(hidden_size: int) -> dict[str, Any]:
    return {
        "hidden_size": hidden_size, "intermediate_size": 2 * hidden_size, "num_hidden_layers": 2,
        "num_attention_heads": 4, "image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE,
    }  # fmt: skip


def _idefics(
    config_class: Any, corpus: Iterable[str], hidden_size: int, special: tuple[str, ...] = _IDEFICS_TOKENS
) -> tuple[PreTrainedTokenizerFast, Any]:
    tokenizer = _tokenizer(corpus, special, "<image>")
    config = config_class(
        text_config={"model_type": "llama", **_text_config(hidden_size), **_ids(tokenizer)},
        vision_config=_siglip(hidden_size),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        tie_word_embeddings=False,
        pad_token_id=tokenizer.pad_token_id,
    )
    return tokenizer, config


_IDEFICS_IMAGES: dict[str, Any] = {
    "size": {"longest_edge": IMAGE_SIZE},
    "max_image_size": {"longest_edge": IMAGE_SIZE},
    "do_image_splitting": False,
}


def _idefics3(corpus: Iterable[str], hidden_size: int) -> tuple[Any, Any]:
    tokenizer, config = _idefics(Idefics3Config, corpus, hidden_size)
    images = Idefics3ImageProcessorPil(**_IDEFICS_IMAGES)
    return Idefics3Processor(images, tokenizer, IMAGE_TOKENS, chat_template=tokenizer.chat_template), config


def _idefics3_tiles(corpus: Iterable[str], hidden_size: int) -> tuple[Any, Any]:
    tokenizer, config = _idefics(Idefics3Config, corpus, hidden_size, (*_IDEFICS_TOKENS, *_TILE_TOKENS))
    tiled = {**_IDEFICS_IMAGES, "size": {"longest_edge": 2 * IMAGE_SIZE}, "do_image_splitting": True}
    images = Idefics3ImageProcessorPil(**tiled)
    return Idefics3Processor(images, tokenizer, IMAGE_TOKENS, chat_template=tokenizer.chat_template), config


def _smolvlm(corpus: Iterable[str], hidden_size: int) -> tuple[Any, Any]:
    tokenizer, config = _idefics(SmolVLMConfig, corpus, hidden_size)
    images = SmolVLMImageProcessorPil(**_IDEFICS_IMAGES)
    processor_class = image_only(SmolVLMProcessor)
    return (
        processor_class(images, tokenizer, None, IMAGE_TOKENS, chat_template=tokenizer.chat_template),
        config,
    )


def _gemma3(corpus: Iterable[str], hidden_size: int) -> tuple[Any, Any]:
    names = dict(zip(("boi_token", "eoi_token", "image_token"), _GEMMA_TOKENS, strict=True))
    tokenizer = _tokenizer(corpus, _GEMMA_TOKENS, "<start_of_image>", extra_special_tokens=names)
    images = Gemma3ImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE})
    processor = Gemma3Processor(
        images, tokenizer, chat_template=tokenizer.chat_template, image_seq_length=IMAGE_TOKENS
    )
    config = Gemma3Config(
        text_config=_text_config(hidden_size, sliding_window=16, query_pre_attn_scalar=16, **_ids(tokenizer)),
        vision_config=_siglip(hidden_size),
        mm_tokens_per_image=IMAGE_TOKENS,
        boi_token_index=tokenizer.convert_tokens_to_ids("<start_of_image>"),
        eoi_token_index=tokenizer.convert_tokens_to_ids("<end_of_image>"),
        image_token_index=tokenizer.convert_tokens_to_ids("<image_soft_token>"),
        tie_word_embeddings=True,
    )
    return processor, config


FAMILIES: dict[str, Callable[[Iterable[str], int], tuple[Any, Any]]] = {
    "qwen2_5_vl": _qwen2_5_vl,
    "qwen3_vl": _qwen3_vl,
    "idefics3": _idefics3,
    "idefics3_tiles": _idefics3_tiles,
    "smolvlm": _smolvlm,
    "gemma3": _gemma3,
}
