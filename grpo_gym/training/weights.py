"""Whole weights out of a possibly sharded, possibly LoRA-adapted policy, one bucket at a time.

The names are those of the plain Hugging Face checkpoint, so a server or `save_pretrained` can load them.
Under ZeRO-3, FSDP1 and FSDP2 every rank must walk the iterator: gathering is a collective.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FullyShardedDataParallel

_WRAPPER_PARTS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "base_layer"}


def plain_name(name: str) -> str:
    """The checkpoint's name of a parameter, without what DDP, FSDP, compile and PEFT put around it."""
    parts = [part for part in name.split(".") if part not in _WRAPPER_PARTS]
    while parts and parts[0] == "module":
        parts.pop(0)
    if parts[:2] == ["base_model", "model"]:
        parts = parts[2:]
    if "modules_to_save" in parts:  # followed by the adapter's name
        position = parts.index("modules_to_save")
        del parts[position : position + 2]
    return ".".join(parts)


def iter_full_weights(model: nn.Module, bucket_bytes: int = 64 * 2**20) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, whole tensor) of every weight of the checkpoint, LoRA deltas merged in.

    At most `bucket_bytes` of gathered weights (and at least one tensor) exist at a time. Tied weights come once.
    """
    lora = dict(_lora_layers(model))
    if isinstance(model, FullyShardedDataParallel):
        yield from _iter_fsdp1(model, lora)
        return
    named = [(name, parameter) for name, parameter in model.named_parameters() if not _is_adapter(name)]
    for bucket in _buckets(named, bucket_bytes):
        adapters = [p for name, _ in bucket for p in _adapter_parameters(lora.get(_owner(name)))]
        with _gathered([parameter for _, parameter in bucket] + adapters):
            for name, parameter in bucket:
                yield plain_name(name), _merged(name, _whole(parameter), lora)


def _iter_fsdp1(model: FullyShardedDataParallel, lora: dict[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    """The same for FSDP1, which gathers unit by unit; all at once with LoRA, whose adapters are units of their own."""
    modules = dict(model.named_modules())
    units = {name: m for name, m in modules.items() if isinstance(m, FullyShardedDataParallel)}
    if lora:
        units = {"": model}
    for prefix, unit in units.items():
        nested = [m for m in units.values() if m is not unit and any(m is each for each in unit.modules())]
        inner = {id(p) for m in nested for p in m.parameters()}
        with FullyShardedDataParallel.summon_full_params(unit, recurse=bool(lora), writeback=False):
            for name, parameter in unit.named_parameters(prefix=prefix):
                if id(parameter) not in inner and not _is_adapter(name):
                    yield plain_name(name), _merged(name, parameter.detach(), lora)


def _is_adapter(name: str) -> bool:
    """Whether a parameter has no place of its own in the checkpoint: PEFT's parts, and what it replaced."""
    return ".lora_" in name or ".original_module." in name


def _owner(name: str) -> str:
    """The checkpoint's name of the layer that a weight belongs to."""
    return plain_name(name).removesuffix(".weight")


def _lora_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "active_adapters"):
            yield plain_name(name), module


def _adapter_parameters(layer: nn.Module | None) -> Iterable[nn.Parameter]:
    if layer is None:
        return []
    return [p for name, p in layer.named_parameters() if "lora_" in name]


@torch.no_grad()
def _merged(name: str, weight: Tensor, lora: dict[str, nn.Module]) -> Tensor:
    # Merged out of place: merging and unmerging in place would round the policy a little at every sync.
    layer = lora.get(_owner(name)) if name.endswith(".base_layer.weight") else None
    if layer is None:
        return weight
    for adapter in layer.active_adapters:  # type: ignore[union-attr]
        weight = weight + _whole(layer.get_delta_weight(adapter)).to(weight)  # type: ignore[operator]
    return weight


def _buckets(
    named: list[tuple[str, nn.Parameter]], bucket_bytes: int
) -> Iterator[list[tuple[str, nn.Parameter]]]:
    bucket: list[tuple[str, nn.Parameter]] = []
    size = 0
    for name, parameter in named:
        nbytes = _numel(parameter) * parameter.element_size()
        if bucket and size + nbytes > bucket_bytes:
            yield bucket
            bucket, size = [], 0
        bucket.append((name, parameter))
        size += nbytes
    if bucket:
        yield bucket


def _numel(parameter: nn.Parameter) -> int:
    """Elements of the whole parameter (ZeRO-3 leaves an empty one behind)."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def _gathered(parameters: list[nn.Parameter]) -> torch.autograd.grad_mode.no_grad:
    """A context in which ZeRO-3 parameters are whole; a no-op for others."""
    if any(hasattr(parameter, "ds_id") for parameter in parameters):
        import deepspeed

        return deepspeed.zero.GatheredParameters(parameters)
    return torch.no_grad()


def _whole(parameter: Tensor) -> Tensor:
    tensor = parameter.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
