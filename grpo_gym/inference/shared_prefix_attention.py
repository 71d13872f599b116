"""Attention of a packed step over a `SharedPrefixCache`, as a transformers attention function.

A step is one sequence `[1, num_tokens]` without padding: first one token per running row, then the tokens of
new prompts one after the other. Each row attends to its prompt (stored once per group, Hydragen's idea:
arXiv 2402.05099) and to its own completion with a single softmax; each new prompt attends causally to itself.
The model builds no attention mask: transformers makes none for a function that is registered without one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PretrainedConfig

from grpo_gym.inference.kv_cache import Prefill, SharedPrefixCache, StepPlan

ATTENTION_NAME = "grpo_gym_shared_prefix"

# Arguments that change the scores and that this function does not know: refuse rather than be wrong.
_UNSUPPORTED = ("s_aux", "position_bias", "head_mask")
_LAYER_TYPES = {"full_attention", "sliding_attention"}


def shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    kv_cache: SharedPrefixCache | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend a packed step; the signature is that of transformers' attention functions.

    Args:
        query: `[1, num_heads, num_tokens, head_dim]`.
        key, value: `[1, num_kv_heads, num_tokens, head_dim]`.
        kv_cache: the cache with the plan of this step, passed to the model's forward as `kv_cache=`.

    Returns:
        `[1, num_tokens, num_heads, value_head_dim]`, and None for the weights.

    Raises:
        ValueError: the model does not pass the cache on, or uses attention sinks or position biases.
    """
    if kv_cache is None or kv_cache.plan is None:
        raise ValueError(
            f"{type(module).__name__} was called without `kv_cache`: set use_vllm=True for this model."
        )
    unsupported = [name for name in _UNSUPPORTED if kwargs.get(name) is not None]
    if unsupported:
        raise ValueError(
            f"in-process generation does not support attention with {unsupported[0]}: set use_vllm=True."
        )
    plan, layer = kv_cache.plan, int(module.layer_idx)  # type: ignore[arg-type]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    q, k, v = query[0] * scale, key[0], value[0]
    outputs = []
    if plan.num_rows:
        rows = slice(0, plan.num_rows)
        outputs.append(_decode(q[:, rows], k[:, rows], v[:, rows], kv_cache, layer, sliding_window, softcap))
    for prefill in plan.prefills:
        tokens = slice(prefill.start, prefill.start + prefill.length)
        kv_cache.layer(layer, k, v).write_prompt(prefill, k[:, tokens], v[:, tokens])
        outputs.append(_prefill(q[:, tokens], k[:, tokens], v[:, tokens], sliding_window, softcap))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0), None


def _decode(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cache: SharedPrefixCache,
    layer_index: int,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """One token per row: scaled q `[H, R, D]`, k and v `[H_kv, R, D]` -> `[R, H, D_v]`."""
    plan = cache.plan
    assert plan is not None
    layer = cache.layer(layer_index, k, v)
    own_keys, own_values = layer.write_completions(plan, k, v)
    prompt_keys, prompt_values = layer.read_prompts(plan)
    rows, heads_kv = plan.num_rows, k.shape[0]
    q = q.transpose(0, 1).reshape(rows, heads_kv, -1, q.shape[-1])
    shared = _from_grid(torch.matmul(_to_grid(q, plan), prompt_keys.transpose(2, 3)), plan, q.shape[2])
    own = [torch.matmul(q, chunk.transpose(2, 3)) for chunk in own_keys]
    scores = _softcapped(torch.cat([shared, *own], dim=-1), softcap)
    bias = plan.bias(window, scores.dtype, scores.device)
    if bias is not None:
        scores += bias
    weights = torch.softmax(scores, dim=-1)
    split = prompt_keys.shape[2]
    output = _from_grid(torch.matmul(_to_grid(weights[..., :split], plan), prompt_values), plan, q.shape[2])
    output = output.reshape(rows * heads_kv, -1, v.shape[-1])
    own_weights = weights.view(*output.shape[:2], -1)[..., split:]
    for positions, chunk in zip(plan.chunks, own_values, strict=True):
        output.baddbmm_(own_weights[..., positions.start : positions.stop], chunk.flatten(0, 1))
    return output.view(rows, -1, v.shape[-1])


def _to_grid(x: Tensor, plan: StepPlan) -> Tensor:
    """Rows `[R, H_kv, n, X]` -> their groups `[slots, H_kv, members * n, X]`."""
    assert plan.layout is not None
    grid = plan.layout.grid
    gathered = x.unflatten(0, tuple(grid.shape)) if plan.layout.is_regular else x[grid]
    return gathered.transpose(1, 2).reshape(grid.shape[0], x.shape[1], -1, x.shape[-1])


def _from_grid(x: Tensor, plan: StepPlan, n: int) -> Tensor:
    """Groups `[slots, H_kv, members * n, X]` -> rows `[R, H_kv, n, X]`."""
    assert plan.layout is not None
    layout = plan.layout
    cells = x.view(x.shape[0], x.shape[1], -1, n, x.shape[-1]).transpose(1, 2)
    if layout.is_regular:
        return cells.reshape(plan.num_rows, x.shape[1], n, x.shape[-1])
    return cells[layout.slot_of_row, layout.member_of_row]


def _prefill(q: Tensor, k: Tensor, v: Tensor, window: int | None, softcap: float | None) -> Tensor:
    """One prompt, causally: scaled q `[H, L, D]`, k and v `[H_kv, L, D]` -> `[L, H, D_v]`."""
    group, length = q.shape[0] // k.shape[0], q.shape[1]
    k, v = (x.repeat_interleave(group, dim=0) if group > 1 else x for x in (k, v))
    if softcap is None and (window is None or length <= window):
        q, k, v = q.unsqueeze(0), k.unsqueeze(0), v.unsqueeze(0)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1.0)[0].transpose(0, 1)
    distance = torch.arange(length, device=q.device)
    distance = distance[:, None] - distance[None, :]
    hidden = (distance < 0) | (distance >= (window or length))
    scores = _softcapped(torch.matmul(q, k.transpose(1, 2)), softcap).masked_fill(hidden, -torch.inf)
    return torch.matmul(torch.softmax(scores, dim=-1), v).transpose(0, 1)


def _softcapped(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


AttentionInterface.register(ATTENTION_NAME, shared_prefix_attention)


@contextmanager
def use_shared_prefix_attention(model: nn.Module) -> Iterator[None]:
    """Let every layer of `model` attend through `shared_prefix_attention`; what was set before comes back.

    Raises:
        ValueError: the model's architecture cannot be generated from in this way.
    """
    configs = _configs(model)
    for config in configs:
        _check_layer_types(config)
    before = [config._attn_implementation for config in configs]
    try:
        for config in configs:
            config._attn_implementation = ATTENTION_NAME
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def _configs(model: nn.Module) -> list[PretrainedConfig]:
    """The different config objects that the modules of `model` read."""
    found = (getattr(module, "config", None) for module in model.modules())
    configs = {id(config): config for config in found if isinstance(config, PretrainedConfig)}
    return list(configs.values())


def _check_layer_types(config: PretrainedConfig) -> None:
    others = set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES
    if others:
        raise ValueError(
            f"in-process generation does not support {sorted(others)[0]} layers: use vLLM (use_vllm=True)."
        )


def check_every_layer_cached(cache: SharedPrefixCache, num_layers: int, model_name: str) -> None:
    """Raise ValueError when some layers did not attend through the cache: their scores would be wrong."""
    if len(cache.layers) != num_layers:
        raise ValueError(
            f"only {len(cache.layers)} of {num_layers} layers of {model_name} use the attention interface of "
            "transformers, and in-process generation needs it: set use_vllm=True"
        )


__all__ = ["ATTENTION_NAME", "Prefill", "check_every_layer_cached", "use_shared_prefix_attention"]
