"""Loading the policy, its tokenizer and (only when beta > 0) the reference model."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    set_seed,
)
from transformers.utils import is_flash_attn_2_available

from grpo_gym.models import resolve_model
from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.training.config import GRPOConfig
from grpo_gym.vision.loading import check_family, language_only, load_processor, sees_images
from grpo_gym.vision.renderer import ImageChatRenderer

# Of the arguments of from_pretrained, those that say which files are read and whether code in them may run.
_SOURCE_ARGUMENTS = (
    "trust_remote_code",
    "revision",
    "code_revision",
    "subfolder",
    "token",
    "cache_dir",
    "force_download",
    "local_files_only",
    "proxies",
)


def source_arguments(model_init_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """What configuration and tokenizer must be loaded with, so that they come from where the weights do."""
    return {name: model_init_kwargs[name] for name in _SOURCE_ARGUMENTS if name in model_init_kwargs}


def load_tokenizer(
    model: str | PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    model_init_kwargs: Mapping[str, Any] | None = None,
) -> PreTrainedTokenizerBase:
    """The given tokenizer, else the model's; a missing pad token becomes the end-of-sequence token."""
    if tokenizer is None:
        name = resolve_model(model) if isinstance(model, str) else model.config._name_or_path
        tokenizer = AutoTokenizer.from_pretrained(name, **source_arguments(model_init_kwargs or {}))
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def context_length(model: str | PreTrainedModel, model_init_kwargs: Mapping[str, Any] | None = None) -> int:
    """Longest sequence the model takes, read from its configuration (no weights are loaded)."""
    text_config = load_config(model, model_init_kwargs).get_text_config()
    return int(getattr(text_config, "max_position_embeddings", None) or 2**31)


def load_config(
    model: str | PreTrainedModel, model_init_kwargs: Mapping[str, Any] | None = None
) -> PretrainedConfig:
    """The configuration of a model (no weights are loaded)."""
    if not isinstance(model, str):
        return model.config
    return AutoConfig.from_pretrained(resolve_model(model), **source_arguments(model_init_kwargs or {}))


def load_renderer(
    model: str | PreTrainedModel,
    processing_class: PreTrainedTokenizerBase | ProcessorMixin | None,
    model_init_kwargs: Mapping[str, Any] | None = None,
    chat_template_kwargs: dict[str, Any] | None = None,
) -> tuple[PreTrainedTokenizerBase | ProcessorMixin, ChatRenderer]:
    """The tokenizer of a text model, or the processor of a vision-language model, and what renders prompts with it.

    Raises:
        ValueError: a vision-language model of a family that is not supported, or given a tokenizer only.
    """
    config = load_config(model, model_init_kwargs)
    if not sees_images(config):
        tokenizer = load_tokenizer(model, processing_class, model_init_kwargs)  # type: ignore[arg-type]
        return tokenizer, ChatRenderer(tokenizer, chat_template_kwargs)
    check_family(config)
    if isinstance(processing_class, PreTrainedTokenizerBase):
        raise ValueError(
            f"processing_class is a tokenizer, but {config.model_type} sees images too; pass its processor "
            "(AutoProcessor.from_pretrained), or nothing."
        )
    if processing_class is None:
        name = resolve_model(model) if isinstance(model, str) else config._name_or_path
        processing_class = load_processor(name, config, **source_arguments(model_init_kwargs or {}))
    load_tokenizer(model, processing_class.tokenizer)
    return processing_class, ImageChatRenderer(processing_class, config, chat_template_kwargs)


def load_model(model: str | PreTrainedModel, args: GRPOConfig) -> PreTrainedModel:
    """The policy: a ready model as it is, or one loaded by name in `args.torch_dtype` (float32 by default).

    Master weights stay float32: with bf16=True autocast computes in bfloat16, and updates of 1e-6 are not
    rounded away.
    """
    if not isinstance(model, str):
        return model
    kwargs: dict[str, Any] = dict(args.model_init_kwargs)
    kwargs.setdefault("dtype", args.torch_dtype or "float32")
    if args.attn_implementation:
        kwargs.setdefault("attn_implementation", available_attention(args.attn_implementation))
    auto_class = auto_model_class(load_config(model, args.model_init_kwargs))
    return own_memory(auto_class.from_pretrained(resolve_model(model), **kwargs))


def auto_model_class(config: PretrainedConfig) -> Any:
    """What loads a model with an LM head: `AutoModelForImageTextToText` where it sees images."""
    return AutoModelForImageTextToText if sees_images(config) else AutoModelForCausalLM


def available_attention(name: str) -> str:
    """The attention implementation asked for; where flash-attn is not installed, `sdpa`, with a warning."""
    if name != "flash_attention_2" or is_flash_attn_2_available():
        return name
    warnings.warn(
        "attn_implementation=flash_attention_2: flash-attn is not installed here, so sdpa is used.",
        stacklevel=4,
    )
    return "sdpa"


def own_memory(model: PreTrainedModel) -> PreTrainedModel:
    """Copy CPU weights out of the checkpoint file.

    transformers maps safetensors into memory. If that file is written again during the run (training in the
    folder the model came from, say), the kernel throws even changed pages away, and the policy silently falls
    back to the file's weights in the middle of training.
    """
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.device.type == "cpu":
            tensor.data = tensor.data.clone()
    return model


def apply_peft(model: PreTrainedModel, peft_config: Any | None, args: GRPOConfig) -> Any:
    """Wrap the model with adapters when a `peft_config` is given."""
    if peft_config is None:
        return model
    from peft import get_peft_model

    if args.use_vllm and getattr(peft_config, "use_dora", False):
        raise ValueError("use_dora=True: DoRA weights cannot be sent to vLLM; use LoRA, or use_vllm=False.")

    if args.gradient_checkpointing:
        # Frozen embeddings cut the graph under checkpointing unless their output asks for gradients.
        model.enable_input_require_grads()
    if sees_images(model.config):
        peft_config = language_only(peft_config)
    set_seed(args.seed)  # adapters start at random: the same on every rank, and in every run
    # The revision stays with the adapter: it belongs to that base model only.
    return get_peft_model(model, peft_config, revision=args.model_init_kwargs.get("revision"))


def sequence_end_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Every token id that ends a completion, of the tokenizer and of the generation config."""
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}


def disable_dropout(model: torch.nn.Module) -> None:
    """Set every dropout to 0: the ratio of new to old policy must not be noise."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]
