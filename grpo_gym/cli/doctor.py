"""`grpo-gym doctor`: what would get in the way of training on this machine, each finding with its cure."""

from __future__ import annotations

import argparse
import dataclasses
import json

_EPILOG = """\
exit code: 0 when training can start (warnings or not), 1 when something prevents it

example:
  grpo-gym doctor
  grpo-gym doctor --json
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("--port", type=int, default=8000, help="port that vf-vllm is to use (default 8000)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 when one of them prevents training."""
    from grpo_gym.cli.checks import run_checks

    findings = run_checks(args.port)
    if args.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in findings], indent=2))
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            print(f"{finding.status:<5} {finding.name:<{width}}  {finding.found}")
            if finding.cure:
                print(f"{'':<5} {'':<{width}}  -> {finding.cure}")
    return int(any(finding.status == "error" for finding in findings))
