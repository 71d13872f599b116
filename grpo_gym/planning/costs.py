"""The work of a step, counted, and the seconds it takes at given rates.

Matrix products: 2 operations per weight and token forward, 4 backward (Kaplan et al. 2020, arXiv 2001.08361,
section 2.1), 2 more forward where activations are recomputed. Attention: 4 x heads x head size operations per
pair of tokens and layer forward, half of them under the causal mask.
"""

from __future__ import annotations

from dataclasses import dataclass

from grpo_gym.planning.hardware import PhaseRates, Rates
from grpo_gym.planning.memory import layer_activations
from grpo_gym.planning.workload import Workload

# Numbers moved per entry of the logits: scaling, log-softmax, cumulative sum, comparison, gather.
_SAMPLING_PASSES = 8
_LOGPROB_PASSES = 6
_BACKWARD_OVER_FORWARD = 2
# Numbers moved per pair of tokens and head where attention is computed outside of fused kernels.
_SCORE_PASSES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """Amounts of the four kinds of work of a phase.

    Attributes:
        launches: layers computed (layers x passes).
        flops: of matrix products.
        bytes: weights and KV cache read.
        elements: numbers moved by everything else.
    """

    launches: float
    flops: float
    bytes: float
    elements: float

    def __add__(self, other: Work) -> Work:
        return Work(
            self.launches + other.launches,
            self.flops + other.flops,
            self.bytes + other.bytes,
            self.elements + other.elements,
        )

    def seconds(self, rates: PhaseRates) -> float:
        """How long it takes."""
        compute, memory = self.flops / rates.flops, self.bytes / rates.bytes
        arithmetic = max(compute, memory) if rates.overlaps else compute + memory
        return self.launches * rates.launch_seconds + arithmetic + self.elements / rates.elements


def decode_work(load: Workload, rows: float, tensor_parallel: int = 1) -> Work:
    """Sampling `rows` completions together, from the first token to the last of the longest.

    The batch thins out as completions end: on average `rows x mean / longest` of them run. `tensor_parallel`
    GPUs share weights and cache; the work is that of one of them.
    """
    shape = load.shape
    steps = load.longest_completion
    tokens = rows * load.completion_tokens
    context = load.prompt_tokens + load.completion_tokens / 2
    matrices = shape.trunk_matrices + shape.head_matrix
    flops = tokens * (2 * matrices + 4 * shape.num_layers * shape.query_size * context)
    cache = tokens * context * shape.kv_bytes_per_token(load.serve_width)
    elements = tokens * (_SAMPLING_PASSES * shape.vocab_size + shape.num_layers * layer_activations(shape))
    if not load.uses_server:
        elements += tokens * score_elements(load, context)
    return Work(
        steps * (shape.num_layers + 1),
        flops / tensor_parallel,
        (steps * matrices * load.serve_width + cache) / tensor_parallel,
        elements / tensor_parallel,
    )


def prefill_work(load: Workload, num_prompts: float, tensor_parallel: int = 1) -> Work:
    """The forward pass over prompts, each computed once per group (vLLM's prefix cache does the same)."""
    shape = load.shape
    tokens = num_prompts * load.prompt_tokens
    passes = max(1.0, tokens / load.prefill_tokens)
    attention = 2 * shape.num_layers * shape.query_size * load.prompt_tokens
    return Work(
        passes * (shape.num_layers + 1),
        tokens * (2 * shape.trunk_matrices + attention) / tensor_parallel,
        0.0,
        tokens * shape.num_layers * layer_activations(shape) / tensor_parallel,
    )


def train_work(load: Workload, share: float = 1.0) -> Work:
    """Forward and backward of one optimizer step on one device that has `share` of the completions."""
    shape = load.shape
    completion_tokens = share * load.completions * load.completion_tokens
    prompts = load.num_prompts if load.shared_prefix else load.completions
    tokens = completion_tokens + share * prompts * load.prompt_tokens
    forward = tokens * 2 * shape.trunk_matrices + completion_tokens * 2 * shape.head_matrix
    context = load.prompt_tokens + load.completion_tokens / 2
    forward += completion_tokens * 4 * shape.num_layers * shape.query_size * context
    passes = 1 + load.backward_passes + (1 if load.gradient_checkpointing else 0)
    reference = 1 if load.has_reference else 0
    micro_batches = max(1.0, tokens / load.micro_batch_tokens)
    elements = tokens * shape.num_layers * layer_activations(shape)
    elements += completion_tokens * (_LOGPROB_PASSES * shape.vocab_size + score_elements(load, context))
    return Work(
        micro_batches * (shape.num_layers + 1) * (passes + reference),
        forward * (passes + reference),
        0.0,
        elements * (1 + _BACKWARD_OVER_FORWARD + reference),
    )


def score_elements(load: Workload, context: float) -> float:
    """Numbers moved for one token's attention to `context` others, all layers."""
    return _SCORE_PASSES * load.shape.num_layers * load.shape.num_heads * context


def optimizer_seconds(load: Workload, rates: Rates, num_shards: int) -> float:
    """An Adam step over this device's share of the trained parameters."""
    return load.trained_parameters / num_shards / rates.optimizer_parameters


def communication_seconds(load: Workload, rates: Rates, num_trainers: int, shards_weights: bool) -> float:
    """Gradients, and gathered weights where they are sharded, in rings: (n-1)/n of the bytes per pass.

    A ring all-reduce moves the gradients twice; ZeRO-3 and FSDP gather weights for forward and backward and
    scatter gradients once per micro-batch (Rajbhandari et al. 2020, arXiv 1910.02054, section 7). None of it is
    assumed to hide behind arithmetic.
    """
    if num_trainers == 1:
        return 0.0
    ring = (num_trainers - 1) / num_trainers
    gradients = 2 * load.trained_parameters * load.gradient_width * ring
    if not shards_weights:
        return gradients / rates.link_bytes
    tokens = load.completions * load.completion_tokens / num_trainers
    micro_batches = max(1.0, tokens / load.micro_batch_tokens)
    gathered = 2 * load.shape.num_parameters * load.compute_width * ring * micro_batches
    return (gathered + gradients / 2) / rates.link_bytes


def sync_seconds(load: Workload, rates: Rates) -> float:
    """The weights once over the link, whatever the number of servers: they receive the same broadcast."""
    return load.shape.num_parameters * load.serve_width / rates.link_bytes
