"""Peak memory of one step, in a process of its own.

On a CPU: the model is loaded and its gradients are allocated, a minimal step brings in every lazily loaded
part, freed heap goes back to the kernel, and the kernel's high-water mark of resident memory (the counter
behind `ru_maxrss`) is reset. One step runs; the figure is the mark minus the resident memory at the reset.
On CUDA: `max_memory_allocated` minus `memory_allocated` before the step.
"""

from __future__ import annotations

import ctypes
import gc
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.provenance import ROOT


@dataclass(frozen=True, slots=True)
class MemoryRequest:
    """What to measure; see `train_step`'s options."""

    program: str
    cell: str
    model: str
    layers: int | None
    device: str
    dtype: str
    sigma: float
    threads: int
    num_groups: int


def peak_memory_mib(request: MemoryRequest) -> float:
    """MiB that one step needs above model and gradients, measured in a subprocess.

    Raises:
        RuntimeError: the subprocess failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.peak_memory", json.dumps(asdict(request))],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"peak memory of {request.program} {request.cell} failed: {done.stderr[-2000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def measure(request: MemoryRequest) -> float:
    """Run in the subprocess: MiB of one step above the baseline."""
    import torch

    from benchmarks.programs import make_program
    from benchmarks.ready_rollouts import Cell, make_groups
    from benchmarks.shapes import random_model

    torch.set_num_threads(request.threads)
    cell = Cell.parse(request.cell)
    model = random_model(request.model, request.layers, request.device)
    program = make_program(request.program, model, cell.group_size, request.dtype, request.num_groups)
    vocab_size = model.config.vocab_size
    groups = make_groups(cell, vocab_size, request.sigma, seed=0, num_groups=request.num_groups)
    program.step(make_groups(Cell(4, 2, cell.group_size), vocab_size, 0.1, 0, request.num_groups))
    if request.device == "cuda":
        baseline = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        program.step(groups)
        return (torch.cuda.max_memory_allocated() - baseline) / 2**20
    baseline_mib = reset_high_water_mark()
    program.step(groups)
    return high_water_mark_mib() - baseline_mib


def release_memory() -> None:
    """Collect what is unreachable and give freed heap back to the kernel (where its C library can)."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def reset_high_water_mark() -> float:
    """Give freed memory back, reset the mark of resident memory, and return the resident MiB."""
    release_memory()
    Path("/proc/self/clear_refs").write_text("5")
    return _status_kib("VmRSS") / 2**10


def high_water_mark_mib() -> float:
    """The most resident MiB since the mark was reset."""
    return _status_kib("VmHWM") / 2**10


def _status_kib(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"{name} is not in /proc/self/status: peak memory on a CPU needs Linux.")


if __name__ == "__main__":
    print(measure(MemoryRequest(**json.loads(sys.argv[1]))))
