"""Which dtype the in-process generator computes in."""

from __future__ import annotations

import time
from functools import cache

import torch

ROLLOUT_DTYPES = ("auto", "float32", "bfloat16")
_ROWS, _INNER, _COLUMNS = 32, 1024, 4096
"""Tokens of a decoding step by a layer's sizes: large enough not to measure Python."""
_REPEATS = 7


def resolve_rollout_dtype(name: str | None, own: torch.dtype, device: torch.device) -> torch.dtype:
    """The dtype of a `rollout_dtype` setting.

    Args:
        name: "float32", "bfloat16", "auto" for whichever multiplies faster, or None for the policy's own.
        own: the policy's dtype.
        device: where it is computed.
    """
    if name is None:
        return own
    return fastest_dtype(device) if name == "auto" else getattr(torch, name)


@cache
def fastest_dtype(device: torch.device) -> torch.dtype:
    """float32 or bfloat16, whichever multiplies matrices faster on this device; measured once.

    CPUs without AVX512-BF16 or AMX convert bfloat16 back and forth, and are often slower with it.
    """
    return min((torch.float32, torch.bfloat16), key=lambda dtype: matmul_seconds(dtype, device))


def matmul_seconds(dtype: torch.dtype, device: torch.device) -> float:
    """The fastest of several products [32, 1024] x [1024, 4096]: noise only ever adds time."""
    activations = torch.ones(_ROWS, _INNER, dtype=dtype, device=device)
    weight = torch.ones(_COLUMNS, _INNER, dtype=dtype, device=device)
    seconds = []
    for _ in range(_REPEATS):
        start = time.perf_counter()
        torch.nn.functional.linear(activations, weight).sum().item()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
