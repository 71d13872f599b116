"""What a run will take, worked out without loading a model: steps, tokens, parameters, memory."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_gym.config.schema import ModelSection
from grpo_gym.models import resolve_model
from grpo_gym.training.batch_arithmetic import BatchPlan

if TYPE_CHECKING:
    from grpo_gym.training.config import GRPOConfig

GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_UNITS = {"M": 1e6, "B": 1e9}


@dataclass(frozen=True)
class ModelSize:
    """Parameters and widths of a model; the widths are None when only its name was there to go by."""

    num_parameters: int
    num_adapter_parameters: int = 0
    hidden_size: int | None = None
    num_layers: int | None = None
    vocabulary: int | None = None


def count_steps(args: GRPOConfig, plan: BatchPlan, num_rows: int) -> int:
    """Optimizer steps of the run."""
    if args.max_steps > 0:
        return args.max_steps
    steps_per_epoch = -(-num_rows // plan.prompts_per_step) * args.num_iterations
    return int(args.num_train_epochs * steps_per_epoch)


def model_size(name: str, model: ModelSection) -> ModelSize | None:
    """Size of a model from its configuration (on the meta device, without weights), else from its name.

    None when neither can be had.
    """
    import torch
    from transformers import AutoConfig

    from grpo_gym.training.model_loading import auto_model_class

    try:
        config = AutoConfig.from_pretrained(resolve_model(name), trust_remote_code=model.trust_remote_code)
    except (OSError, ValueError):
        return size_from_name(name)
    with torch.device("meta"):
        auto_class = auto_model_class(config)
        empty = auto_class.from_config(config, trust_remote_code=model.trust_remote_code)
    linears = [m for n, m in empty.named_modules() if isinstance(m, torch.nn.Linear) and "lm_head" not in n]
    adapters = sum(model.lora_r * (m.in_features + m.out_features) for m in linears) if model.use_peft else 0
    text = config.get_text_config()
    total = sum(p.numel() for p in empty.parameters())
    return ModelSize(total, adapters, text.hidden_size, text.num_hidden_layers, text.vocab_size)


def size_from_name(name: str) -> ModelSize | None:
    """`...-1.5B-...` has 1.5e9 parameters."""
    found = re.search(r"(?:^|[-_/])(\d+(?:\.\d+)?)([MB])(?=$|[-_.])", name, re.IGNORECASE)
    return ModelSize(int(float(found[1]) * _UNITS[found[2].upper()])) if found else None


def memory_gib(size: ModelSize, args: GRPOConfig, use_peft: bool) -> dict[str, float]:
    """Memory of one trainer process, in GiB, by what it is for. An estimate; nothing is sharded.

    Adam keeps two float32 numbers per trained parameter. Activations per layer and token: 34 x hidden_size
    bytes in 16 bit (Korthikanti et al. 2022, arXiv 2205.05198, without the attention matrix), or 2 x
    hidden_size when only the layer's input is kept (gradient checkpointing). Logits: a chunk at a time,
    float32, three times (logits, log-softmax, gradient).
    """
    width = _BYTES.get(args.torch_dtype or "float32", 4)
    trained = size.num_adapter_parameters if use_peft else size.num_parameters
    parts: dict[str, float] = {
        "weights": size.num_parameters * width,
        "gradients": trained * width,
        "optimizer": trained * 8,
    }
    if args.beta and not use_peft:
        parts["reference model"] = size.num_parameters * width
    if size.hidden_size and size.num_layers and size.vocabulary:
        compute_width = 2 if args.bf16 or args.fp16 else width
        parts["activations"] = _activation_bytes(size.hidden_size, size.num_layers, args, compute_width)
        parts["logits"] = 3 * 4 * args.logprob_chunk_size * size.vocabulary
    return {name: number / GIB for name, number in parts.items()}


def _activation_bytes(hidden_size: int, num_layers: int, args: GRPOConfig, width: int) -> float:
    per_layer = args.max_tokens_per_micro_batch * hidden_size * width
    if args.gradient_checkpointing:
        return per_layer * num_layers + 17 * per_layer
    return 17 * per_layer * num_layers
