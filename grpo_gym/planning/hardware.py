"""How fast devices are: public figures of GPUs with an assumed efficiency each, or rates measured on this machine.

Every phase of a step is counted in four kinds of work (`grpo_gym.planning.costs.Work`); `PhaseRates` says how
long each takes.
"""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GIB = 2**30


@dataclass(frozen=True, slots=True)
class PhaseRates:
    """Speed of one phase on one device.

    Attributes:
        launch_seconds: fixed cost of computing one layer once.
        flops: floating-point operations of matrix products, per second.
        bytes: weights and KV cache read, bytes per second.
        elements: numbers moved by everything that is no matrix product, per second.
        overlaps: whether arithmetic hides behind memory traffic (GPU), or both add up (CPU).
    """

    launch_seconds: float
    flops: float
    bytes: float
    elements: float
    overlaps: bool = True


@dataclass(frozen=True, slots=True)
class Rates:
    """One device, as the simulator sees it.

    Attributes:
        memory_bytes: what a process may use.
        reserved_bytes: what runtime and libraries take of it, whatever the model.
        decode: sampling one token for every running completion.
        train: forward and backward, and the forward pass over prompts.
        optimizer_parameters: parameters an Adam step updates per second.
        link_bytes: between two devices, one direction, bytes per second.
        completion_seconds: scoring, tokenising and bookkeeping of one completion.
        step_seconds: what a step costs beside that: logging, callbacks, the weight sync's handshakes.
        is_measured: whether these are measurements rather than figures of a data sheet.
    """

    memory_bytes: float
    reserved_bytes: float
    decode: PhaseRates
    train: PhaseRates
    optimizer_parameters: float
    link_bytes: float
    completion_seconds: float
    step_seconds: float
    is_measured: bool = False

    def to_json(self) -> dict[str, Any]:
        """As written by `grpo-gym plan --calibrate`; None stands for infinitely fast."""
        values = dataclasses.asdict(self)
        for part in (values, values["decode"], values["train"]):
            part.update({name: None for name, value in part.items() if value == math.inf})
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Rates:
        """The rates that `to_json` wrote."""
        phases = {name: PhaseRates(**_without_none(values[name])) for name in ("decode", "train")}
        return cls(**{**_without_none(values), **phases})


def _without_none(values: dict[str, Any]) -> dict[str, Any]:
    return {name: math.inf if value is None else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class GpuType:
    """Public figures of a GPU.

    Attributes:
        memory_gib: as sold.
        tflops: dense bfloat16 tensor-core TFLOP/s with float32 accumulation.
        memory_gb_per_s: bandwidth of its memory, GB/s.
        link_gb_per_s: to the next GPU of its machine, one direction, GB/s: NVLink, else PCIe.
    """

    memory_gib: float
    tflops: float
    memory_gb_per_s: float
    link_gb_per_s: float


# NVIDIA's data sheets; SXM variants of A100, H100, H200 and B200.
GPU_TYPES: dict[str, GpuType] = {
    "a100-40": GpuType(40, 312, 1555, 300),
    "a100-80": GpuType(80, 312, 2039, 300),
    "h100": GpuType(80, 989, 3350, 450),
    "h200": GpuType(141, 989, 4800, 450),
    "b200": GpuType(180, 2250, 8000, 900),
    "l4": GpuType(24, 121, 300, 32),
    "l40s": GpuType(48, 362, 864, 32),
    "a10": GpuType(24, 125, 600, 32),
    "rtx3090": GpuType(24, 71, 936, 32),
    "rtx4090": GpuType(24, 165, 1008, 32),
}

ASSUMPTIONS: dict[str, float] = {
    "memory": 0.92,
    "peak FLOP/s in training": 0.40,
    "peak FLOP/s in decoding": 0.50,
    "memory bandwidth": 0.65,
    "link bandwidth": 0.60,
}
"""Shares of the public figures that a run is assumed to reach. Not measured here: `--rates` replaces them."""
_LAUNCH_SECONDS = {"decode": 25e-6, "train": 120e-6}
_RESERVED_GIB = 2.0
_COMPLETION_SECONDS = 1.5e-3
_STEP_SECONDS = 0.5


def gpu_rates(name: str) -> Rates:
    """The assumed rates of a GPU type.

    Raises:
        ValueError: it is not in the table.
    """
    key = name.lower()
    if key not in GPU_TYPES:
        raise ValueError(f"--gpu-type {name}: known are {', '.join(GPU_TYPES)}, and cpu with --rates FILE.")
    gpu, share = GPU_TYPES[key], ASSUMPTIONS
    bandwidth = gpu.memory_gb_per_s * 1e9 * share["memory bandwidth"]
    peak = gpu.tflops * 1e12
    return Rates(
        memory_bytes=gpu.memory_gib * GIB * share["memory"],
        reserved_bytes=_RESERVED_GIB * GIB,
        decode=PhaseRates(
            _LAUNCH_SECONDS["decode"], peak * share["peak FLOP/s in decoding"], bandwidth, bandwidth / 4
        ),
        # The FLOP/s of training are those of whole steps: work that is no matrix product is in them.
        train=PhaseRates(
            _LAUNCH_SECONDS["train"], peak * share["peak FLOP/s in training"], bandwidth, float("inf")
        ),
        optimizer_parameters=bandwidth / 28,  # read and write weight and both moments, read the gradient
        link_bytes=gpu.link_gb_per_s * 1e9 * share["link bandwidth"],
        completion_seconds=_COMPLETION_SECONDS,
        step_seconds=_STEP_SECONDS,
    )


def load_rates(path: str | Path) -> Rates:
    """Rates from a file that `grpo-gym plan --calibrate` wrote.

    Raises:
        ValueError: there is no such file, or it holds something else.
    """
    try:
        return Rates.from_json(json.loads(Path(path).read_text())["rates"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no rates ({error}): make it with `grpo-gym plan --calibrate {path}`."
        ) from error
