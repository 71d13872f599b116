"""Bytes per device, by what they are for, and what does not fit.

Weights, gradients and Adam's two moments and how ZeRO spreads them: Rajbhandari et al. 2020, arXiv 1910.02054,
section 3.1 and 5. With 16-bit weights and DeepSpeed's float32 master copy the same 16 bytes per parameter are
divided as 2 + 2 + 12.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from grpo_gym.planning.shapes import ModelShape

if TYPE_CHECKING:
    from grpo_gym.planning.workload import Workload

SHARDINGS = ("none", "zero2", "zero3")
"""Nothing, optimizer and gradients (ZeRO-2), or weights too (ZeRO-3; FSDP2 is the same) are spread over ranks."""
_MOMENTS_BYTES = 8
_FULL_WIDTH = 4
_LOGITS_COPIES = 3  # logits, log-softmax, gradient; float32
_SYNC_BUCKETS = 2 * 32 * 2**20


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """Bytes on one device.

    Attributes:
        parts: what for -> bytes.
    """

    parts: dict[str, float]

    @property
    def total(self) -> float:
        """Sum of the parts."""
        return sum(self.parts.values())

    def describe(self) -> str:
        """The parts in GiB, the largest first."""
        ordered = sorted(self.parts.items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {size / 2**30:.2f}" for name, size in ordered if size >= 2**20)


def layer_activations(shape: ModelShape) -> int:
    """Numbers that one layer keeps per token for its backward pass (or moves in its forward pass).

    Each of two norms: its input, the normalised input, the output; attention: rotated queries, keys, values and
    the result; the MLP: gate, its activation, up, their product.
    """
    norms = 3 * shape.norms_per_layer * shape.hidden_size
    return norms + 2 * shape.query_size + 2 * shape.kv_size + 4 * shape.intermediate_size


def trainer_memory(load: Workload, sharding: str, num_trainers: int) -> MemoryParts:
    """Bytes on one trainer device in the middle of a step, without what the runtime reserves."""
    weights = float(load.shape.num_parameters * load.weight_width)
    gradients = float(load.trained_parameters * load.gradient_width)
    adapters = load.adapter_parameters * _FULL_WIDTH
    master = load.trained_parameters * _FULL_WIDTH if load.weight_width < _FULL_WIDTH and not adapters else 0
    optimizer = float(load.trained_parameters * _MOMENTS_BYTES + master)
    if sharding == "zero3":
        weights = weights / num_trainers + load.shape.layer_matrices * load.compute_width
    if sharding in ("zero2", "zero3"):
        gradients, optimizer = gradients / num_trainers, optimizer / num_trainers
    parts = {
        "weights": weights + adapters,
        "gradients": gradients,
        "optimizer": optimizer,
        "activations": activation_bytes(load),
        "logits": logits_bytes(load),
    }
    if load.compute_width < load.weight_width and sharding != "zero3":
        parts["weights in 16 bit"] = load.shape.num_parameters * load.compute_width
    if load.has_reference:
        shards = num_trainers if sharding == "zero3" else 1
        parts["reference model"] = load.shape.num_parameters * load.weight_width / shards
    if load.uses_server:
        parts["weight sync"] = _SYNC_BUCKETS
    return MemoryParts(parts)


def activation_bytes(load: Workload) -> float:
    """Activations of one micro-batch."""
    step_tokens = load.completions * load.completion_tokens
    step_tokens += (load.num_prompts if load.shared_prefix else load.completions) * load.prompt_tokens
    tokens = min(load.micro_batch_tokens, step_tokens)
    per_layer = layer_activations(load.shape) * load.compute_width
    if not load.gradient_checkpointing:
        return tokens * per_layer * load.shape.num_layers
    return tokens * (load.shape.hidden_size * load.compute_width * load.shape.num_layers + per_layer)


def logits_bytes(load: Workload) -> float:
    """The chunk of logits in work, float32."""
    tokens = min(load.chunk_tokens, load.completions * load.completion_tokens)
    return _LOGITS_COPIES * _FULL_WIDTH * tokens * load.shape.vocab_size


def generation_memory(load: Workload) -> MemoryParts:
    """Bytes of a step's rollouts in the trainer's own process: cached tokens and one step's logits."""
    tokens = load.completions * load.longest_completion + load.num_prompts * load.prompt_tokens
    logits = 2 * _FULL_WIDTH * load.completions * load.shape.vocab_size
    return MemoryParts(
        {"kv cache": tokens * load.shape.kv_bytes_per_token(load.serve_width), "logits": float(logits)}
    )


def server_memory(load: Workload, rows: float, tensor_parallel: int) -> MemoryParts:
    """Bytes on one server GPU with `rows` completions running on its group of `tensor_parallel`."""
    weights = load.shape.num_parameters * load.serve_width / tensor_parallel
    return MemoryParts({"weights": weights, "kv cache": rows * row_cache_bytes(load, tensor_parallel)})


def row_cache_bytes(load: Workload, tensor_parallel: int) -> float:
    """KV cache of one completion at full length, with its share of the prompt that its group has in common."""
    tokens = load.max_completion_length + load.prompt_tokens / load.group_size
    return tokens * load.shape.kv_bytes_per_token(load.serve_width) / tensor_parallel


def persistent_bytes(load: Workload, sharding: str, num_trainers: int) -> float:
    """What stays between steps: weights and optimizer state."""
    parts = trainer_memory(load, sharding, num_trainers).parts
    return parts["weights"] + parts["optimizer"] + parts.get("reference model", 0.0)
