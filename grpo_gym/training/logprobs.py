"""Log-probs and entropy of completion tokens in bounded memory: [tokens, vocabulary] never exists.

`install_logprob_forward` teaches the innermost causal LM to answer `model(packed=request)` with log-probs.
The request travels through whatever wraps the model (DDP, FSDP2, DeepSpeed, PEFT), so every wrapper's hooks
run as in any forward pass. Only hidden states that predict completion tokens reach the LM head, in chunks
whose logits are computed again in the backward pass.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.checkpoint import checkpoint
from transformers import PretrainedConfig, PreTrainedModel

from grpo_gym.training.model_forward import (
    completion_hidden_states,
    packing_support,
    pad_sequences,
    prepare_for_packing,
    supports_shared_prefix,
)
from grpo_gym.training.packing import PackedBatch

__all__ = [
    "check_head_can_be_sharded",
    "completion_logprobs",
    "install_logprob_forward",
    "packing_support",
    "padded_logprobs",
    "supports_shared_prefix",
]


@dataclass(frozen=True, slots=True)
class LogprobRequest:
    """What `model(packed=...)` is asked for; see `completion_logprobs`."""

    batch: PackedBatch
    temperature: float
    chunk_size: int


@dataclass(frozen=True, slots=True)
class LogitTransform:
    """What a model and the sampler do to `hidden @ weight.T`: `softcap(logits * scale) / temperature`."""

    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0

    def __call__(self, logits: Tensor) -> Tensor:
        """Transformed logits, in float32 or better."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.softcap is not None:
            logits = torch.tanh(logits * (self.scale / self.softcap)) * self.softcap
        factor = (1.0 if self.softcap is not None else self.scale) / self.temperature
        return logits if factor == 1.0 else logits * factor

    def backward_(self, grad: Tensor, transformed: Tensor | None) -> Tensor:
        """Turn the gradient of the transformed logits into that of the raw ones, in place."""
        if self.softcap is not None and transformed is not None:
            tanh = transformed.mul_(self.temperature / self.softcap)
            grad.mul_(1.0 - tanh * tanh)
        factor = self.scale / self.temperature
        return grad if factor == 1.0 else grad.mul_(factor)


def install_logprob_forward(causal_lm: PreTrainedModel) -> None:
    """Let `causal_lm(packed=request)` return log-probs; any other call is what it was. Idempotent.

    Args:
        causal_lm: the unwrapped transformers model, before or after PEFT put adapters into it, and before
            DDP, FSDP2 or DeepSpeed wrap it.

    Raises:
        ValueError: the model has no output embeddings (it is not a causal language model).
    """
    if hasattr(causal_lm.forward, "answers_logprobs"):
        return
    head = causal_lm.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(causal_lm).__name__} has no LM head: load it with AutoModelForCausalLM.")
    prepare_for_packing(causal_lm)
    causal_lm.forward = _with_logprobs(causal_lm.forward)  # type: ignore[method-assign]
    if _is_plain_linear(head):
        head.forward = types.MethodType(_linear_or_logprobs, head)  # type: ignore[method-assign]


def check_head_can_be_sharded(model: nn.Module) -> None:
    """Refuse an LM head that ZeRO-3 and FSDP cannot gather once for all chunks.

    A plain linear head is called once. One with adapters is called chunk by chunk, each call communicates, and
    ranks have different numbers of chunks: it would hang, or need the logits of all tokens at once.

    Args:
        model: the causal LM after `install_logprob_forward`, or PEFT's model of it.

    Raises:
        ValueError: the head is not a plain linear layer.
    """
    if not _answers_in_one_call(model.get_output_embeddings()):  # type: ignore[operator]
        raise ValueError(
            "adapters of the LM head cannot be trained under ZeRO-3 and FSDP: leave lm_head out of target_modules and "
            "modules_to_save, or use ZeRO-2 or plain data parallelism."
        )


def completion_logprobs(
    model: nn.Module, batch: PackedBatch, temperature: float = 1.0, chunk_size: int = 256
) -> tuple[Tensor, Tensor]:
    """Log-probs of the completion tokens of a micro-batch and the entropy of their distributions.

    Args:
        model: the model after `install_logprob_forward`, in any wrapper.
        batch: the micro-batch, on the model's device.
        temperature: logits are divided by it, as in sampling.
        chunk_size: tokens projected to the vocabulary at once; peak memory is about two float32
            [chunk_size, vocabulary] tensors.

    Returns:
        Log-probs [N] and entropies [N] (no gradient) in nats, float32 (float64 for a float64 model). With
        N = 0 they are empty and still connected to the graph.

    Raises:
        ValueError: `temperature` or `chunk_size` is not positive.
    """
    if temperature <= 0 or chunk_size < 1:
        raise ValueError(f"temperature ({temperature}) and chunk_size ({chunk_size}) must be positive.")
    result: tuple[Tensor, Tensor] = model(packed=LogprobRequest(batch, temperature, chunk_size))
    return result


def padded_logprobs(model: nn.Module, batch: PackedBatch, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    """The plain way to the same numbers: right padding, an attention mask and the model's own logits.

    Right for every causal language model and memory-hungry; the reference of the tests and the benchmarks.
    Arguments and results as in `completion_logprobs`.
    """
    input_ids, attention_mask, places = pad_sequences(batch)
    logits = model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits
    scores = LogitTransform(temperature=temperature)(logits.flatten(0, 1)[places])
    logprobs, entropy = _score(scores, batch.target_ids)
    return logprobs, entropy


# ---- the forward of the model and of its head -----------------------------------------------------------


def _with_logprobs(forward: Callable[..., Any]) -> Callable[..., Any]:
    """A bound method that answers `packed=...` itself and passes other calls on to `forward`.

    It keeps the signature, which generation inspects, and copies with the model: both are methods.
    """
    original = forward.__func__  # type: ignore[attr-defined]

    @functools.wraps(original)
    def forward_or_logprobs(
        self: PreTrainedModel, *args: Any, packed: LogprobRequest | None = None, **kwargs: Any
    ) -> Any:
        if packed is None:
            return original(self, *args, **kwargs)
        if kwargs.get("inputs_embeds") is not None:
            raise ValueError("packed log-probs take token ids only: use LoRA, not prompt learning.")
        if packing_support(self)[0] == "padded" and not getattr(self, "logits_checked", False):
            _check_logits(self, original, packed.batch.input_ids[:, :2])
            self.logits_checked = True  # type: ignore[assignment]
        return _model_logprobs(self, packed)

    forward_or_logprobs.answers_logprobs = True  # type: ignore[attr-defined]
    return types.MethodType(forward_or_logprobs, forward.__self__)  # type: ignore[attr-defined]


def _model_logprobs(model: PreTrainedModel, request: LogprobRequest) -> tuple[Tensor, Tensor]:
    batch = request.batch
    hidden = completion_hidden_states(model, batch)
    head = model.get_output_embeddings()
    transform = logit_transform(model.config, request.temperature)
    if _answers_in_one_call(head):
        return head(hidden, batch.target_ids, transform, request.chunk_size)
    if _is_partitioned(head):
        check_head_can_be_sharded(model)
    return module_logprobs(head, hidden, batch.target_ids, transform, request.chunk_size)


def _linear_or_logprobs(
    self: nn.Linear,
    hidden: Tensor,
    targets: Tensor | None = None,
    transform: LogitTransform | None = None,
    chunk_size: int = 0,
) -> Any:
    """`nn.Linear.forward`, or log-probs when it is given targets.

    One call of the module per pass: ZeRO-3 and FSDP2 gather the weight once, on every rank alike, however
    many chunks there are.
    """
    if targets is None or transform is None:
        return nn.Linear.forward(self, hidden)
    if isinstance(self.weight, DTensor):
        raise ValueError("tensor parallelism of the LM head is not supported: shard with FSDP2 or ZeRO.")
    return linear_logprobs(hidden, self.weight, self.bias, targets, transform, chunk_size)


def _is_plain_linear(head: nn.Module) -> bool:
    return isinstance(head, nn.Linear) and type(head).forward is nn.Linear.forward


def _answers_in_one_call(head: nn.Module) -> bool:
    return getattr(head.forward, "__func__", None) is _linear_or_logprobs


def _is_partitioned(head: nn.Module) -> bool:
    """Whether calls of the head communicate, so that all ranks must make the same number of them."""
    return any(isinstance(p, DTensor) or hasattr(p, "ds_id") for p in head.parameters())


def logit_transform(config: PretrainedConfig, temperature: float) -> LogitTransform:
    """The transform of a model's logits, from the names that transformers' configurations give it."""
    text_config: Any = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier", "output_multiplier"):
        scale *= getattr(text_config, name, None) or 1.0
    scaling = getattr(text_config, "logits_scaling", None) or 1.0
    scale *= scaling if text_config.model_type == "hyperclovax" else 1.0 / scaling
    return LogitTransform(scale, getattr(text_config, "final_logit_softcapping", None), temperature)


@torch.no_grad()
def _check_logits(model: PreTrainedModel, forward: Callable[..., Any], input_ids: Tensor) -> None:
    """Compare our logits with the model's own: architectures that are not in the tests may transform theirs.

    Raises:
        ValueError: they differ, so that log-probs would be wrong.
    """
    seen: list[Tensor] = []
    handle = model.base_model.register_forward_hook(
        lambda _, __, output: seen.append(output.last_hidden_state)
    )
    try:
        expected = forward(model, input_ids=input_ids, use_cache=False).logits[0, -1]
    finally:
        handle.remove()
    found = logit_transform(model.config, 1.0)(model.get_output_embeddings()(seen[0][:, -1]))[0]
    tolerance = 8 * torch.finfo(expected.dtype).eps * expected.abs().max().clamp(min=1).item()
    if not torch.allclose(found, expected.to(found.dtype), rtol=0, atol=max(tolerance, 1e-4)):
        raise ValueError(
            f"{model.config.model_type} transforms its logits in a way that is not known here: log-probs "
            "would be wrong; train another model or add the transform to logit_transform."
        )


# ---- chunks ---------------------------------------------------------------------------------------------


def module_logprobs(
    head: nn.Module, hidden: Tensor, targets: Tensor, transform: LogitTransform, chunk_size: int
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropy through any LM head module (adapters, quantized), checkpointed by chunk."""

    def score(chunk: Tensor, chunk_targets: Tensor) -> tuple[Tensor, Tensor]:
        return _score(transform(head(chunk)), chunk_targets)

    parts = [
        checkpoint(score, chunk, chunk_targets, use_reentrant=False)
        for chunk, chunk_targets in zip(hidden.split(chunk_size), targets.split(chunk_size), strict=True)
    ]
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)


def linear_logprobs(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    transform: LogitTransform,
    chunk_size: int,
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropy under `transform(hidden @ weight.T + bias)`.

    Args:
        hidden: [N, D].
        weight: [V, D].
        bias: [V] or None.
        targets: [N] long.
        transform: from raw logits to those of the softmax.
        chunk_size: rows of logits that exist at once.

    Returns:
        [N] and [N] without gradient; float32 or better.
    """
    device_type = hidden.device.type
    compute_dtype = weight.dtype
    if torch.is_autocast_enabled(device_type) and weight.dtype != torch.float64:
        compute_dtype = torch.get_autocast_dtype(device_type)
    result: tuple[Tensor, Tensor] = _LinearLogprobs.apply(
        hidden, weight, bias, targets, transform, chunk_size, compute_dtype
    )
    return result


def _score(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs [n] of `targets` and entropies [n] (detached) of the rows of `logits` [n, V]."""
    logprobs = logits.log_softmax(dim=-1)
    detached = logprobs.detach()
    return logprobs.gather(1, targets.unsqueeze(1)).squeeze(1), _entropy(detached, detached.exp())


def _entropy(logprobs: Tensor, probs: Tensor) -> Tensor:
    return -torch.linalg.vecdot(probs, logprobs)


class _LinearLogprobs(torch.autograd.Function):
    """Logits by chunks; what stays for the backward pass is the inputs and one log-sum-exp per token."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        transform: LogitTransform,
        chunk_size: int,
        compute_dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        result_dtype = torch.promote_types(compute_dtype, torch.float32)
        logprobs, entropy, logsumexp = (hidden.new_empty(len(hidden), dtype=result_dtype) for _ in range(3))
        project = _projection(weight, bias, transform, compute_dtype)
        for start in range(0, len(hidden), chunk_size):
            rows = slice(start, start + chunk_size)
            logits = project(hidden[rows])
            torch.logsumexp(logits, dim=-1, out=logsumexp[rows])
            logits -= logsumexp[rows].unsqueeze(1)
            logprobs[rows] = logits.gather(1, targets[rows].unsqueeze(1)).squeeze(1)
            entropy[rows] = _entropy(logits, logits.exp())
        ctx.save_for_backward(hidden, weight, bias, targets, logsumexp)
        ctx.transform, ctx.chunk_size, ctx.compute_dtype = transform, chunk_size, compute_dtype
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        hidden, weight, bias, targets, logsumexp = ctx.saved_tensors
        project = _projection(weight, bias, ctx.transform, ctx.compute_dtype)
        grads = _HeadGradients(hidden, weight, bias, ctx.needs_input_grad, ctx.compute_dtype)
        for start in range(0, len(hidden), ctx.chunk_size):
            rows = slice(start, start + ctx.chunk_size)
            logits = project(hidden[rows])
            kept = logits.clone() if ctx.transform.softcap is not None else None
            grad_logits = logits.sub_(logsumexp[rows].unsqueeze(1)).exp_().mul_(-grad[rows].unsqueeze(1))
            grad_logits.scatter_add_(1, targets[rows].unsqueeze(1), grad[rows].unsqueeze(1))
            grads.add(rows, ctx.transform.backward_(grad_logits, kept))
        return *grads.result(), None, None, None, None


def _projection(
    weight: Tensor, bias: Tensor | None, transform: LogitTransform, dtype: torch.dtype
) -> Callable[[Tensor], Tensor]:
    """Hidden states [n, D] to transformed logits [n, V]."""
    cast_weight = weight.detach().to(dtype)
    cast_bias = None if bias is None else bias.detach().to(dtype)

    def project(hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return transform(nn.functional.linear(hidden.to(dtype), cast_weight, cast_bias))

    return project


class _HeadGradients:
    """Gradients of hidden states, weight and bias, summed over chunks; None where not needed.

    Sums are float32 or better: in bfloat16 a chunk that is small beside the sum of those before it would be lost.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        needed: tuple[bool, ...],
        dtype: torch.dtype,
    ) -> None:
        self._inputs = hidden.to(dtype)
        self._cast_weight = weight.detach().to(dtype)
        self._weight_dtype = weight.dtype
        sum_dtype = torch.promote_types(weight.dtype, torch.float32)
        self._hidden = torch.zeros_like(hidden) if needed[0] else None
        self._weight = torch.zeros_like(weight, dtype=sum_dtype) if needed[1] else None
        self._bias = torch.zeros_like(bias, dtype=sum_dtype) if bias is not None and needed[2] else None

    def add(self, rows: slice, grad_logits: Tensor) -> None:
        """Add the share of a chunk, given the gradient [n, V] of its raw logits."""
        if self._bias is not None:
            self._bias += grad_logits.sum(0)
        grad_logits = grad_logits.to(self._inputs.dtype)
        if self._hidden is not None:
            self._hidden[rows] = grad_logits @ self._cast_weight
        if self._weight is not None and self._weight.dtype == grad_logits.dtype:
            self._weight.addmm_(grad_logits.t(), self._inputs[rows])
        elif self._weight is not None:
            self._weight += grad_logits.t() @ self._inputs[rows]

    def result(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients, each in the dtype of what it is the gradient of."""
        weight, bias = (g if g is None else g.to(self._weight_dtype) for g in (self._weight, self._bias))
        return self._hidden, weight, bias
