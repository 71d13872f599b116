"""Attention over packed rows, plugged into transformers' attention interface.

`install_packed_attention` gives a model an attention implementation that follows a `PackLayout` when its
forward was called with `packed_layout=...`, and is the model's previous implementation otherwise (generation,
evaluation). No [T, T] mask is ever built on the CPU, and only its blocks on a GPU.

A token of a branch attends to two key sets, the trunk and its own branch. Softmax over their union is exact
from the two parts and their log-sum-exps, and so is the backward pass when each part's kernel is given the
total output and the total log-sum-exp (the identity behind ring attention, Liu et al. 2023,
arXiv:2310.01889). So each trunk is read once by all of its branches, without copies of its keys and values.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from grpo_gym.training.packing import GroupLayout, PackLayout, Span

logger = logging.getLogger(__name__)

NAME_PREFIX = "grpo_packed_"
MAX_COMPILED_VARIANTS = 128
"""Kernels per function: powers of two up to the context, times which inputs need gradients, times windows."""
_flash_cpu = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def install_packed_attention(model: PreTrainedModel) -> None:
    """Let `model` attend by a `PackLayout` when it is given one. Installing twice changes nothing.

    The name in the config stays changed: gradient checkpointing runs layers again during backward, when no
    forward of ours is on the stack.
    """
    previous = model.config._attn_implementation or "sdpa"
    if previous.startswith(NAME_PREFIX):
        return
    name = NAME_PREFIX + previous
    AttentionInterface.register(name, functools.partial(_attention_forward, previous))
    if previous in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[previous])
    model.config._attn_implementation = name


def no_mask(device: torch.device) -> Tensor:
    """A [1, 1, 1, 1] stand-in: transformers passes four-dimensional masks on as they are and builds none."""
    return torch.ones((1, 1, 1, 1), dtype=torch.bool, device=device)


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, scale: float, window: int | None = None
) -> Tensor:
    """Attention in which every branch sees its trunk and itself, causally.

    Args:
        query: [1, H, T, D].
        key: [1, K, T, D], K divides H.
        value: [1, K, T, D].
        layout: where trunks and branches lie in T.
        scale: factor on the scores.
        window: every token sees the `window` positions that end at its own; None for all.

    Returns:
        [1, H, T, D].
    """
    query, key, value = _same_dtype(query, key, value)
    if query.device.type == "cuda" and _has_triton():
        return _flex(query, key, value, layout, scale, window)
    if query.device.type == "cpu" and window is None:
        return _CpuPackedAttention.apply(query, key, value, layout, scale)  # type: ignore[no-any-return]
    return _sdpa_by_group(query, key, value, layout, scale, window)


def _attention_forward(
    previous: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    packed_layout: PackLayout | None = None,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Transformers' attention function: output [1, T, H, D] and no attention weights."""
    if packed_layout is None:
        if sliding_window is not None:
            kwargs["sliding_window"] = sliding_window
        forward = _previous_forward(previous, module)
        return forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs)
    if dropout:
        raise ValueError("packed training needs attention_dropout=0: the policy ratio must not be noise.")
    if scaling is None:
        scaling = query.shape[-1] ** -0.5
    output = packed_attention(query, key, value, packed_layout, scaling, sliding_window)
    return output.transpose(1, 2).contiguous(), None


def _previous_forward(previous: str, module: nn.Module) -> Callable[..., Any]:
    """The attention function of that name; "eager" is the one in the model's own source file."""
    if previous == "eager":
        eager: Callable[..., Any] = sys.modules[type(module).__module__].eager_attention_forward
        return eager
    return ALL_ATTENTION_FUNCTIONS[previous]


def _same_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast does for `scaled_dot_product_attention`, which custom functions do not get."""
    device_type = tensors[0].device.type
    if torch.is_autocast_enabled(device_type) and tensors[0].dtype != torch.float64:
        dtype = torch.get_autocast_dtype(device_type)
        return tuple(tensor.to(dtype) for tensor in tensors)
    return tensors


# ---- CPU: flash kernels per segment, merged -------------------------------------------------------------


class _CpuPackedAttention(torch.autograd.Function):
    """Exact attention over a `PackLayout` from calls of the CPU flash kernel on views of the row."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, scale: float
    ) -> Tensor:
        output = torch.empty_like(query)
        logsumexp = query.new_empty(query.shape[:3], dtype=torch.promote_types(query.dtype, torch.float32))
        for block in _blocks(layout):
            part, part_logsumexp = _flash_cpu(
                _rows(query, block.queries),
                _rows(key, block.keys),
                _rows(value, block.keys),
                0.0,
                block.causal,
                scale=scale,
            )
            store = _merge if block.adds_keys else _store
            store(_rows(output, block.queries), _rows(logsumexp, block.queries), part, part_logsumexp)
        ctx.save_for_backward(query, key, value, output, logsumexp)
        ctx.layout, ctx.scale = layout, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        query, key, value, output, logsumexp = ctx.saved_tensors
        grad_query, grad_key, grad_value = (torch.zeros_like(tensor) for tensor in (query, key, value))
        for block in _blocks(ctx.layout):
            parts = _flash_cpu_backward(
                _rows(grad_output, block.queries),
                _rows(query, block.queries),
                _rows(key, block.keys),
                _rows(value, block.keys),
                _rows(output, block.queries),
                _rows(logsumexp, block.queries).contiguous(),
                0.0,
                block.causal,
                scale=ctx.scale,
            )
            _rows(grad_query, block.queries).add_(parts[0])
            _rows(grad_key, block.keys).add_(parts[1])
            _rows(grad_value, block.keys).add_(parts[2])
        return grad_query, grad_key, grad_value, None, None


class _Block(NamedTuple):
    """One kernel call. `adds_keys`: its queries have attended to other keys in a block before."""

    queries: Span
    keys: Span
    causal: bool
    adds_keys: bool = False


def _blocks(layout: PackLayout) -> Iterator[_Block]:
    """Trunk to itself; all branches of a group, side by side in the row, to the trunk; each to itself."""
    for group in layout.groups:
        yield _Block(group.trunk, group.trunk, causal=True)
        branches = [branch for branch in group.branches if branch[0] < branch[1]]
        if branches:
            yield _Block((branches[0][0], branches[-1][1]), group.trunk, causal=False)
        for branch in branches:
            yield _Block(branch, branch, causal=True, adds_keys=True)


def _rows(tensor: Tensor, span: Span) -> Tensor:
    return tensor[:, :, span[0] : span[1]]


def _store(output: Tensor, logsumexp: Tensor, part: Tensor, part_logsumexp: Tensor) -> None:
    output.copy_(part)
    logsumexp.copy_(part_logsumexp)


def _merge(output: Tensor, logsumexp: Tensor, part: Tensor, part_logsumexp: Tensor) -> None:
    """Widen the softmax of the stored rows by another block of keys."""
    weight = torch.sigmoid(part_logsumexp - logsumexp).unsqueeze(-1)
    output.copy_(torch.lerp(output.to(weight.dtype), part.to(weight.dtype), weight))
    logsumexp.copy_(torch.logaddexp(logsumexp, part_logsumexp))


# ---- any device: one call per trunk and per branch ------------------------------------------------------


def _sdpa_by_group(
    query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, scale: float, window: int | None
) -> Tensor:
    parts = [part for group in layout.groups for part in _sdpa_group(query, key, value, group, scale, window)]
    return torch.cat(parts, dim=2)


def _sdpa_group(
    query: Tensor, key: Tensor, value: Tensor, group: GroupLayout, scale: float, window: int | None
) -> list[Tensor]:
    attend = functools.partial(nn.functional.scaled_dot_product_attention, scale=scale, enable_gqa=True)
    trunk = group.trunk
    spans = [(trunk,), *((trunk, branch) for branch in group.branches if branch[0] < branch[1])]
    outputs = []
    for path in spans:
        keys, values = (torch.cat([_rows(tensor, span) for span in path], dim=2) for tensor in (key, value))
        queries = _rows(query, path[-1])
        mask = _path_mask(queries.shape[2], keys.shape[2], window, query.device)
        outputs.append(attend(queries, keys, values, attn_mask=mask))
    return outputs


def _path_mask(num_queries: int, num_keys: int, window: int | None, device: torch.device) -> Tensor:
    """[q, k] bool for queries that are the last tokens of a path of k tokens."""
    positions = torch.arange(num_keys, device=device)
    distance = positions[num_keys - num_queries :, None] - positions[None, :]
    return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


# ---- GPU: flex attention --------------------------------------------------------------------------------


@functools.cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    if not has_triton():
        logger.warning("Triton is missing: packed attention runs group by group, slower; install triton.")
        return False
    return True


@functools.cache
def _compiled_flex() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    # Past its limit of variants Dynamo would run eagerly, which materialises all scores: with fullgraph it raises.
    compile_ = functools.partial(
        torch.compile,
        dynamic=False,
        fullgraph=True,
        recompile_limit=MAX_COMPILED_VARIANTS,
        isolate_recompiles=True,  # what transformers compiles of the same functions does not count
    )
    return compile_(flex_attention), compile_(create_block_mask)


def _flex(
    query: Tensor, key: Tensor, value: Tensor, layout: PackLayout, scale: float, window: int | None
) -> Tensor:
    """Block-sparse attention; rows are padded to a power of two, so that few shapes are compiled."""
    length = query.shape[2]
    padded = flex_length(length)
    flex_attention, create_block_mask = _compiled_flex()
    mask = layout.cache.get((query.device, window))
    if mask is None:
        mask_mod = flex_mask_mod(layout, padded, query.device, window)
        mask = create_block_mask(mask_mod, None, None, padded, padded, device=query.device)
        layout.cache[query.device, window] = mask
    rows = (nn.functional.pad(tensor, (0, 0, 0, padded - length)) for tensor in (query, key, value))
    output: Tensor = flex_attention(*rows, block_mask=mask, scale=scale, enable_gqa=True)
    return output[:, :, :length]


def flex_length(length: int) -> int:
    """The compiled length for rows of `length` tokens: a power of two, at least 256."""
    return max(256, 1 << (length - 1).bit_length())


def flex_mask_mod(
    layout: PackLayout, length: int, device: torch.device, window: int | None = None
) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
    """The mask of `packed_attention` as flex attention's `mask_mod`, for rows padded to `length` tokens.

    Tables by token: its group, its branch (0 in a trunk, unique otherwise) and its position. Padding is a
    group of branches of one token each: it sees itself, so that no row is empty, and nothing sees it.
    """
    group_of, branch_of, position_of = (table.to(device) for table in _tables(layout, length))

    def mask_mod(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same_path = (group_of[q] == group_of[k]) & ((branch_of[k] == 0) | (branch_of[k] == branch_of[q]))
        visible = same_path & (k <= q)
        return visible if window is None else visible & (position_of[q] - position_of[k] < window)

    return mask_mod


def _tables(layout: PackLayout, length: int) -> tuple[Tensor, Tensor, Tensor]:
    group_of = torch.full((length,), -1, dtype=torch.int32)
    branch_of = torch.arange(1, length + 1, dtype=torch.int32)
    position_of = torch.zeros(length, dtype=torch.int32)
    for index, group in enumerate(layout.groups):
        trunk_length = group.trunk[1] - group.trunk[0]
        for branch_index, (start, end) in enumerate([group.trunk, *group.branches]):
            group_of[start:end] = index
            branch_of[start:end] = branch_index
            first = trunk_length if branch_index else 0
            position_of[start:end] = torch.arange(first, first + end - start, dtype=torch.int32)
    return group_of, branch_of, position_of
