"""Loss and backward of ready-made rollouts: this trainer against TRL's `GRPOTrainer`, time and peak memory.

python -m benchmarks train_step                       # the bar's cell, full size
python -m benchmarks train_step --cells grid          # the grid, with fewer layers
python -m benchmarks train_step --device cuda --dtype bfloat16 --model qwen2.5-1.5b --cells p512_c256_g16
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from benchmarks.harness import Pairs, Result, interleave, say
from benchmarks.peak_memory import MemoryRequest, peak_memory_mib, release_memory
from benchmarks.programs import Program, make_program, timed_step, zero_gradients
from benchmarks.ready_rollouts import Cell, make_groups, select_cells
from benchmarks.shapes import MODEL_NAMES, num_layers, num_matmul_parameters, random_model
from grpo_gym.rollouts.types import RolloutGroup


@dataclass(frozen=True, slots=True)
class CellResult:
    """What was measured in one cell; memory in MiB, None when not asked for."""

    cell: Cell
    pairs: Pairs
    gradient_difference: float
    ours_mib: float | None
    trl_mib: float | None
    flops: float


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The options of `train_step`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks train_step")
    parser.add_argument("--cells", default="bar", help="bar, grid, all, or p256_c64_g8,...")
    parser.add_argument("--model", default="smollm2-135m", choices=MODEL_NAMES)
    parser.add_argument("--layers", type=int, help="fewer layers, and vocabulary in proportion")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--groups", type=int, default=1, help="prompts per optimizer step")
    parser.add_argument("--sigma", type=float, default=0.5, help="of the log-normal completion lengths")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--peak-tflops", type=float, help="of the device, to report MFU")
    parser.add_argument("--name", help="name of the result files")
    parser.add_argument("--folder", type=Path, help="where result files go")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measure every cell; results are written after each one."""
    args = parse_args(argv)
    torch.set_num_threads(args.threads)
    cells = select_cells(args.cells)
    name = args.name or ("train_step_grid" if args.cells == "grid" else "train_step")
    result = Result(name, ["train_step", *argv], notes=_notes(args))
    done: list[CellResult] = []
    for cell in cells:
        done.append(measure_cell(cell, args))
        _add(result, done[-1], args)
        say(f"{cell.name}: {result.rows[-1]}")
        _add_summary(result, done)
        result.write(lambda axes: _plot(axes, done), args.folder)


def measure_cell(cell: Cell, args: argparse.Namespace) -> CellResult:
    """Interleaved times of both programs on the same rollouts, then peak memory in a process each."""
    pairs, difference, flops = _measure_time(cell, args)
    release_memory()  # the processes that measure memory need the room
    ours_mib, trl_mib = (_memory(name, cell, args) if args.memory else None for name in ("ours", "trl"))
    return CellResult(cell, pairs, difference, ours_mib, trl_mib, flops)


def _measure_time(cell: Cell, args: argparse.Namespace) -> tuple[Pairs, float, float]:
    """Seconds of the pairs, the relative difference of the gradients, and mean useful FLOPs of a step."""
    ours, trl = (_program(name, cell, args) for name in ("ours", "trl"))
    vocab_size = ours.model.config.vocab_size
    steps = [make_groups(cell, vocab_size, args.sigma, seed, args.groups) for seed in range(args.pairs)]
    # The check is the warm-up as well.
    difference = gradient_difference(ours, trl, steps[0])
    pairs = interleave(
        lambda i: timed_step(ours, steps[i]), lambda i: timed_step(trl, steps[i]), args.pairs, warmup=0
    )
    return pairs, difference, sum(useful_flops(ours.model, step) for step in steps) / len(steps)


def _program(name: str, cell: Cell, args: argparse.Namespace) -> Program:
    model = random_model(args.model, args.layers, args.device)
    return make_program(name, model, cell.group_size, args.dtype, args.groups)


def gradient_difference(ours: Program, trl: Program, groups: list[RolloutGroup]) -> float:
    """Norm of the difference of the two gradients of one step, relative to TRL's norm."""
    gradients = []
    for program in (ours, trl):
        zero_gradients(program.model)
        program.step(groups)
        gradients.append([p.grad for p in program.model.parameters() if p.grad is not None])
    difference = sum(float((a - b).square().sum()) for a, b in zip(*gradients, strict=True))
    return (difference / sum(float(b.square().sum()) for b in gradients[1])) ** 0.5


def useful_flops(model: PreTrainedModel, groups: list[RolloutGroup]) -> float:
    """6 FLOPs per weight and token that must be computed: each prompt once, the head on completions only.

    Attention is left out: the MFU made of this is a lower bound.
    """
    trunk, head = num_matmul_parameters(model)
    completion = sum(len(r.completion_ids) for group in groups for r in group.rollouts)
    prompt = sum(len(group.rollouts[0].prompt_ids) for group in groups)
    return 6.0 * (trunk * (prompt + completion) + head * completion)


def _memory(program: str, cell: Cell, args: argparse.Namespace) -> float:
    return peak_memory_mib(
        MemoryRequest(
            program,
            cell.name,
            args.model,
            args.layers,
            args.device,
            args.dtype,
            args.sigma,
            args.threads,
            args.groups,
        )
    )


def _add(result: Result, measured: CellResult, args: argparse.Namespace) -> None:
    """One cell as figures, a row and raw numbers."""
    name, pairs = measured.cell.name, measured.pairs
    row: dict[str, Any] = {
        "prompt": measured.cell.prompt_length,
        "mean completion": measured.cell.mean_completion,
        "G": measured.cell.group_size,
        "GRPO-Gym s": sorted(pairs.ours)[len(pairs.ours) // 2],
        "TRL s": sorted(pairs.theirs)[len(pairs.theirs) // 2],
        "speed ratio (min - max)": str(pairs.speed_ratio),
    }
    result.figures.update(pairs.speed_ratio.figures(f"speed_ratio_{name}"))
    result.figures[f"gradient_difference_{name}"] = measured.gradient_difference
    if measured.ours_mib is not None and measured.trl_mib is not None:
        ratio = measured.ours_mib / measured.trl_mib
        result.figures[f"memory_ratio_{name}"] = ratio
        row |= {"GRPO-Gym MiB": measured.ours_mib, "TRL MiB": measured.trl_mib, "memory ratio": ratio}
    if args.peak_tflops:
        mfu = measured.flops / row["GRPO-Gym s"] / args.peak_tflops / 1e12
        result.figures[f"mfu_{name}"] = row["MFU"] = mfu
    result.rows.append(row)
    result.details[name] = {"ours_seconds": pairs.ours, "trl_seconds": pairs.theirs}


def _add_summary(result: Result, done: list[CellResult]) -> None:
    """The worst cell of several."""
    if len(done) < 2:
        return
    result.figures["speed_ratio_worst_cell"] = min(each.pairs.speed_ratio.median for each in done)
    memory = [each.ours_mib / each.trl_mib for each in done if each.ours_mib and each.trl_mib]
    if memory:
        result.figures["memory_ratio_worst_cell"] = max(memory)


def _notes(args: argparse.Namespace) -> list[str]:
    full = num_layers(args.model)
    notes = [
        f"{args.model} shape, random weights, {args.dtype}, {args.groups} group(s) per optimizer step; "
        f"completion lengths are log-normal with sigma {args.sigma}, other ones in every pair.",
        "TRL: its constructor and `_compute_loss` as installed, defaults except bf16 (as above) and gradient "
        "checkpointing (off in both programs); one group per device batch; its chunked LM head is on, as by "
        "default (on a CPU it also scores prompt and padding positions; on CUDA only completions).",
        "Both programs: dapo loss, beta 0, the same advantages, gradients zeroed outside the clock; "
        "`gradient_difference` is the relative distance of the two gradients of the first pair.",
        "Peak memory: growth of the resident high-water mark over the baseline with model and gradients "
        "loaded, one step, a process each (CUDA: allocator's peak).",
    ]
    if args.layers and args.layers != full:
        notes.append(
            f"{args.layers} of {full} layers, and the vocabulary in proportion: trunk and LM head keep "
            "their shares, so speed ratios carry over; memory ratios do where saved activations dominate."
        )
    return notes


def _plot(axes: Any, done: list[CellResult]) -> None:
    names = [each.cell.name for each in done]
    medians = [each.pairs.speed_ratio.median for each in done]
    errors = [
        [m - each.pairs.speed_ratio.min for m, each in zip(medians, done, strict=True)],
        [each.pairs.speed_ratio.max - m for m, each in zip(medians, done, strict=True)],
    ]
    axes.bar(names, medians, yerr=errors, capsize=3)
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_ylabel("times faster than TRL (median, min - max)")
    axes.set_title("Loss + backward of one step")
    axes.tick_params(axis="x", rotation=70)
