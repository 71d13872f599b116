"""`grpo-gym report OUTPUT_DIR`."""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_gym.cli import fail

_EPILOG = """\
examples:
  grpo-gym report outputs/tiny_leg_counting
  grpo-gym report outputs/tiny_leg_counting --out report.html --max-completions 20000
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "output_dir", metavar="OUTPUT_DIR", type=Path, help="the folder of a run, finished or not"
    )
    parser.add_argument("--out", metavar="FILE", type=Path, help="the file to write (OUTPUT_DIR/report.html)")
    parser.add_argument(
        "--max-completions",
        metavar="N",
        type=int,
        help="carry at most N completions, spread evenly over the run (100000)",
    )


def run(args: argparse.Namespace) -> int:
    """Write the report and say where it is."""
    from grpo_gym.reporting.report import MAX_COMPLETIONS, write_report

    limit = MAX_COMPLETIONS if args.max_completions is None else args.max_completions
    try:
        path, run = write_report(args.output_dir, args.out, limit)
    except (ValueError, OSError) as error:
        return fail(error)
    carried = len(run.completions.rows.get("group", ()))
    size = path.stat().st_size / 1e6
    print(f"report: {path} ({size:.1f} MB, {run.log.last_step:,} steps, {carried:,} completions)")
    return 0
