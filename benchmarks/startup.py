"""Seconds until `import grpo_gym` and `grpo-gym --help` are done, and whether torch was imported.

python -m benchmarks startup
"""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.harness import Result, Spread
from benchmarks.provenance import ROOT

BAR_SECONDS = 0.5
_REPORT = "import sys; sys.stderr.write('torch' if 'torch' in sys.modules else 'no torch')"
_HELP = f"""
import atexit, sys
sys.argv = ["grpo-gym", "--help"]
atexit.register(lambda: exec({_REPORT!r}))
from grpo_gym.cli import main
main()
"""


def commands() -> dict[str, str]:
    """Python programs by name; `help` where this version has a command line."""
    found = {"python_alone": _REPORT, "import": f"import grpo_gym; {_REPORT}"}
    if importlib.util.find_spec("grpo_gym.cli.__main__") is not None:
        found["help"] = _HELP
    return found


def run_once(program: str) -> tuple[float, bool]:
    """Seconds of the whole process, and whether it imported torch.

    Raises:
        RuntimeError: the program failed.
    """
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode != 0:
        raise RuntimeError(f"start-up failed: {done.stderr[-1000:]}")
    return seconds, not done.stderr.strip().endswith("no torch")


def main(argv: list[str]) -> None:
    """Start every program `repeats` times, in turn."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks startup")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where result files go")
    args = parser.parse_args(argv)
    programs = commands()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    torch_imported = dict.fromkeys(programs, False)
    for _ in range(args.repeats):
        for name, program in programs.items():
            elapsed, with_torch = run_once(program)
            seconds[name].append(elapsed)
            torch_imported[name] |= with_torch
    result = Result(
        "startup", ["startup", *argv], notes=["Seconds of a whole process, interpreter included."]
    )
    for name, values in seconds.items():
        result.figures.update(Spread.of(values).figures(f"seconds_{name}"))
        result.figures[f"torch_imported_{name}"] = float(torch_imported[name])
        row = {"command": name, "seconds": str(Spread.of(values)), "torch imported": torch_imported[name]}
        result.rows.append({**row, "bar": f"< {BAR_SECONDS} s, no torch"})
    result.details = {"seconds": seconds}
    result.write(lambda axes: _plot(axes, seconds), args.folder)


def _plot(axes: Any, seconds: dict[str, list[float]]) -> None:
    axes.bar(list(seconds), [Spread.of(values).median for values in seconds.values()])
    axes.axhline(BAR_SECONDS, color="black", linewidth=0.8, label=f"bar: {BAR_SECONDS} s")
    axes.set_ylabel("seconds")
    axes.legend()
