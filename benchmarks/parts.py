"""What each part of a step costs as processes, model, group and context grow: whole training runs on a CPU.

python -m benchmarks parts                          # all curves, some minutes
python -m benchmarks parts --curves processes
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, say
from grpo_gym.planning.measured_run import Measured, RunSetting, measure

BASE = RunSetting(256, 704, 6, 4, 2, 4096, 32, 8, 40, 32)


def _model(hidden: int, layers: int) -> RunSetting:
    heads = hidden // 64
    return replace(
        BASE, hidden_size=hidden, intermediate_size=hidden * 11 // 4, num_layers=layers,
        num_heads=heads, num_kv_heads=heads // 2,
    )  # fmt: skip


# name -> size -> run; each curve changes one thing of BASE.
CURVES: dict[str, dict[str, RunSetting]] = {
    "processes": {str(n): replace(BASE, processes=n) for n in (1, 2, 4)},
    "model": {
        f"{m.shape.num_parameters / 1e6:.1f}M": m
        for m in (_model(128, 4), BASE, _model(512, 8), _model(768, 12))
    },
    "group size": {str(g): replace(BASE, group_size=g, completions=4 * g) for g in (4, 8, 16, 32)},
    "completion length": {str(n): replace(BASE, completion_tokens=n) for n in (32, 64, 128, 256)},
    "prompt words": {str(n): replace(BASE, prompt_words=n) for n in (20, 80, 320)},
}


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The options of `parts`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks parts")
    parser.add_argument("--curves", nargs="+", choices=list(CURVES), default=list(CURVES))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where result files go")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Run every point of the curves."""
    args = parse_args(argv)
    result = Result("parts", ["parts", *argv], notes=_notes(args))
    curves: dict[str, dict[str, Measured]] = {}
    for name in args.curves:
        curves[name] = {}
        for size, setting in CURVES[name].items():
            measured = measure(replace(setting, threads=args.threads))
            curves[name][size] = measured
            say(f"{name} {size}: {measured.step_seconds:.2f} s/step")
            result.rows.append(_row(name, size, measured))
            result.figures[f"seconds_{name.replace(' ', '_')}_{size}"] = measured.step_seconds
    result.details = {
        name: {size: asdict(measured) for size, measured in curve.items()} for name, curve in curves.items()
    }
    result.write(lambda axes: _plot(axes, curves), args.folder)


def _row(name: str, size: str, measured: Measured) -> dict[str, Any]:
    return {
        "what grows": name,
        "size": size,
        "rollout s": measured.rollout_seconds,
        "train s": measured.train_seconds,
        "rest s": measured.rest_seconds,
        "step s": measured.step_seconds,
        "peak MiB": round(measured.peak_bytes / 2**20),
    }


def _notes(args: argparse.Namespace) -> list[str]:
    return [
        f"Whole in-process steps of GRPOTrainer on a random Llama, float32, {args.threads} thread(s) a process; "
        "medians of the steps after the first. Peak: largest resident size of rank 0.",
        f"Everything but what grows: {BASE.shape.num_parameters / 1e6:.1f}M parameters, {BASE.completions} completions "
        f"in groups of {BASE.group_size}, {BASE.completion_tokens} tokens each, one process.",
        "Processes are DDP over gloo on one machine: rank 0 generates, all train. More processes than cores "
        "share the cores.",
        "Rest: optimizer, gradient averaging outside of backward, logging, clock.",
    ]


def _plot(axes: Any, curves: Mapping[str, Mapping[str, Measured]]) -> None:
    for name, curve in curves.items():
        first = next(iter(curve.values())).step_seconds
        axes.plot(range(len(curve)), [m.step_seconds / first for m in curve.values()], marker="o", label=name)
    axes.set_xlabel("point of the curve")
    axes.set_ylabel("seconds per step over the first point")
    axes.legend()
