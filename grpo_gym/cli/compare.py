"""`grpo-gym compare A B`: whether B is better than A on the same problems."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from grpo_gym.cli import fail

_EPILOG = """\
examples:
  grpo-gym compare outputs/eval/tiny_leg_counting/tiny outputs/eval/tiny_leg_counting/tiny_leg_counting
  grpo-gym compare RUN/eval_results/eval_step_0.json RUN/eval_results/eval_step_60.json
  grpo-gym compare A.json B.json --json

A and B: a folder of `grpo-gym eval`, its results.json, or an eval_step_N.json of a training. The interval
is of a paired bootstrap over problems, p of a paired sign-flip test. A dash (--json: null): too few problems to tell.
p is not corrected for looking at many tasks.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("a", metavar="A", help="results to compare with")
    parser.add_argument("b", metavar="B", help="results that may be better")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the comparison."""
    from grpo_gym.evaluation.compare import compare_results
    from grpo_gym.evaluation.report import comparison_table
    from grpo_gym.evaluation.results import read_results

    try:
        a, b = (read_results(Path(path)) for path in (args.a, args.b))
        compared = compare_results(a, b)
    except ValueError as error:
        return fail(error)
    if args.json:
        print(json.dumps(dataclasses.asdict(compared), indent=2))
        return 0
    print(f"A: {a.path}\nB: {b.path}\n\n{comparison_table(compared)}")
    for count, what in (
        (compared.only_in_a, "only in A"),
        (compared.only_in_b, "only in B"),
        (compared.unscored, "without a scored completion in A or B"),
    ):
        if count:
            print(f"\nleft out: {count} problems {what}")
    return 0
