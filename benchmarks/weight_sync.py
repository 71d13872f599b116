"""Seconds of a weight sync into a real vf-vllm on this machine, against a plain memcpy of the same bytes.

python -m benchmarks weight_sync                          # SmolLM2-135M shape, float32, random weights
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from benchmarks.harness import Pairs, Result, Spread, say
from benchmarks.peak_memory import high_water_mark_mib, reset_high_water_mark
from benchmarks.real_server import model_folder, real_server, split_cores, this_process_on
from grpo_gym.inference.server_api import ServerApi
from grpo_gym.inference.weight_sync import ServerWeightSync
from grpo_gym.inference.weight_transfer_buckets import DEFAULT_BUCKET_BYTES
from grpo_gym.training.weights import iter_full_weights

BAR = 10.0
MIB = 2**20


@dataclass(frozen=True, slots=True)
class Push:
    """One weight sync: seconds in all and by phase, MiB of the trainer above its memory without buckets."""

    seconds: float
    phases: dict[str, float]
    extra_mib: float


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The options of `weight_sync`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks weight_sync")
    parser.add_argument(
        "--model", default="smollm2-135m", help="a shape (random weights), tiny, or a directory"
    )
    parser.add_argument("--layers", type=int, help="fewer layers, and the vocabulary in proportion")
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--bucket-mib", type=int, default=DEFAULT_BUCKET_BYTES // MIB)
    parser.add_argument("--route", default="default", choices=["default", "sockets"])
    parser.add_argument("--server-flags", default="", help="more flags of vf-vllm, separated by spaces")
    parser.add_argument("--folder", type=Path, help="where result files go")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Alternate pushes and copies; the first of each warms up."""
    args = parse_args(argv)
    server_cores, trainer_cores = split_cores()
    with (
        model_folder(args.model, args.layers) as path,
        real_server(path, 640, server_cores, args.server_flags.split()) as server,
        this_process_on(trainer_cores),
    ):
        model = AutoModelForCausalLM.from_pretrained(path, dtype="float32")
        pushes, copies = measure(model, server.base_url, args)
        backend = ServerApi(server.base_url).get("/vf_info")["backend"]
    num_bytes = sum(parameter.nbytes for parameter in model.parameters())
    result = Result("weight_sync", ["weight_sync", *argv], notes=_notes(args, num_bytes, backend))
    summarize(result, pushes, copies, num_bytes, args)


def measure(model: PreTrainedModel, url: str, args: argparse.Namespace) -> tuple[list[Push], list[float]]:
    """Pushes, and seconds of copies, in turn."""
    sync = ServerWeightSync(url, bucket_bytes=args.bucket_mib * MIB)
    sync.connect("cpu")
    if args.route == "sockets":
        for link in sync._links:
            link.shares_memory = False
    copy = make_memcpy(model)
    pushes, copies = [], []
    try:
        for number in range(args.pairs + 1):
            if number % 2:
                copies.append(copy())
            pushes.append(push(sync, model, number))
            if number % 2 == 0:
                copies.append(copy())
            say(f"push {number}: {pushes[-1]}, memcpy {copies[-1]:.3f} s")
    finally:
        sync.close()
    return pushes[1:], copies[1:]


def push(sync: ServerWeightSync, model: PreTrainedModel, version: int) -> Push:
    """One sync as the trainer does it, the canary left out."""
    before = reset_high_water_mark() - sync._pool.num_bytes / MIB
    start = time.perf_counter()
    sync.push(iter_full_weights(model), version)
    seconds = time.perf_counter() - start
    return Push(seconds, dict(sync.clock.seconds), high_water_mark_mib() - before)


def make_memcpy(model: PreTrainedModel) -> Callable[[], float]:
    """Seconds of copying every parameter into memory that is there already, on one thread."""
    sources = [parameter.detach() for parameter in model.parameters()]
    targets = [torch.zeros_like(source) for source in sources]

    def copy() -> float:
        start = time.perf_counter()
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
        return time.perf_counter() - start

    return copy


def summarize(
    result: Result, pushes: Sequence[Push], copies: Sequence[float], num_bytes: int, args: argparse.Namespace
) -> None:
    """Figures, rows and files."""
    pairs = Pairs(list(copies), [each.seconds for each in pushes])
    result.figures = pairs.speed_ratio.figures("sync_over_memcpy")
    result.figures |= Spread.of(pairs.theirs).figures("seconds_sync")
    result.figures |= Spread.of(pairs.ours).figures("seconds_memcpy")
    result.figures |= Spread.of([num_bytes / s / 1e9 for s in pairs.theirs]).figures("gb_per_second_sync")
    result.figures |= Spread.of([num_bytes / s / 1e9 for s in pairs.ours]).figures("gb_per_second_memcpy")
    result.figures |= Spread.of([each.extra_mib for each in pushes]).figures("extra_mib_trainer")
    phases = median_phases(pushes)
    result.figures |= {f"seconds_phase_{name.replace(' ', '_')}": s for name, s in phases.items()}
    share = max(phases.values()) / sum(phases.values())
    result.notes.append(f"Bound by: {max(phases, key=lambda name: phases[name])}, {share:.0%} of the sync.")
    result.rows = [
        {"what": "sync, s", "median (min - max)": str(Spread.of(pairs.theirs))},
        {"what": "memcpy, s", "median (min - max)": str(Spread.of(pairs.ours))},
        {"what": f"sync / memcpy, bar {BAR:.0f}", "median (min - max)": str(pairs.speed_ratio)},
        {
            "what": "sync, GB/s",
            "median (min - max)": f"{num_bytes / statistics.median(pairs.theirs) / 1e9:.3g}",
        },
        *({"what": f"phase: {name}, s", "median (min - max)": f"{s:.3g}"} for name, s in phases.items()),
    ]
    extra = Spread.of([each.extra_mib for each in pushes])
    result.rows.append({"what": "extra memory of the trainer, MiB", "median (min - max)": str(extra)})
    result.details = {"pushes": [asdict(each) for each in pushes], "memcpy_seconds": list(copies)}
    result.write(lambda axes: _plot(axes, phases, statistics.median(copies)), args.folder)


def median_phases(pushes: Sequence[Push]) -> dict[str, float]:
    """Median seconds of every phase, in the order in which they come."""
    return {name: statistics.median(each.phases[name] for each in pushes) for name in pushes[0].phases}


def _notes(args: argparse.Namespace, num_bytes: int, backend: str) -> list[str]:
    route = "gloo's sockets" if args.route == "sockets" else "shared memory, the route on one machine"
    return [
        f"{args.model}, {num_bytes / MIB:.0f} MiB of float32 weights, tied weights once; one server on this machine "
        f"(backend {backend}), {route}; buckets of {args.bucket_mib} MiB; server and trainer on half of the cores "
        f"each; {args.pairs} interleaved pairs after one of warm-up.",
        "memcpy: every parameter into memory that is there already, one thread per core of the trainer.",
        "fill: the trainer gathers and packs a bucket while another is sent; send: what it waits for the server "
        "beyond that (HTTP, reading the bucket, and vLLM's layer-wise reload, which copies every layer into fresh "
        "memory and has oneDNN pack it into more); finish: vLLM's last layers and packing of the LM head.",
        "Extra memory: the shared buckets, which stay for the next sync, and the growth of the trainer's resident "
        "high-water mark during the push.",
    ]


def _plot(axes: Any, phases: dict[str, float], memcpy: float) -> None:
    left = 0.0
    for name, seconds in phases.items():
        axes.barh("sync", seconds, left=left, label=name)
        left += seconds
    axes.barh("memcpy", memcpy, color="black")
    axes.set_xlabel("seconds")
    axes.legend(fontsize="small")
