"""Loading the policy, its tokenizer and (only when beta > 0) the reference model."""

from __future__ import annotations

import copy
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from grpo_gym.models import resolve_model
from grpo_gym.training.config import GRPOConfig


def load_tokenizer(
    model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None
) -> PreTrainedTokenizerBase:
    """The given tokenizer, else the model's; a missing pad token becomes the end-of-sequence token."""
    if tokenizer is None:
        name = resolve_model(model) if isinstance(model, str) else model.config._name_or_path
        tokenizer = AutoTokenizer.from_pretrained(name)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def context_length(model: str | PreTrainedModel) -> int:
    """Longest sequence the model takes, read from its configuration (no weights are loaded)."""
    config = AutoConfig.from_pretrained(resolve_model(model)) if isinstance(model, str) else model.config
    text_config = config.get_text_config()
    return int(getattr(text_config, "max_position_embeddings", None) or 2**31)


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
        kwargs.setdefault("attn_implementation", args.attn_implementation)
    return own_memory(AutoModelForCausalLM.from_pretrained(resolve_model(model), **kwargs))


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
    return get_peft_model(model, peft_config)


def make_reference(model: PreTrainedModel, beta: float, uses_peft: bool) -> PreTrainedModel | None:
    """A frozen copy of the starting policy; None when no KL is asked for or LoRA can switch its adapter off."""
    if beta == 0.0 or uses_peft:
        return None
    reference = copy.deepcopy(model).eval()
    for parameter in reference.parameters():
        parameter.requires_grad_(False)
    return reference


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
