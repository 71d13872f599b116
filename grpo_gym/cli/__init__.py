"""`grpo-gym`: one command line for everything. Each command is a module here, imported only when it is used.

A command module has `add_arguments(parser)` and `run(args) -> int`, and imports what is slow inside `run`.

Exit codes: 0 done; 1 it failed while running, `doctor` found something that prevents training, or `plan` nothing
that fits; 2 the command line or the experiment is wrong, nothing was started; 75 `train` saved a checkpoint after
a signal and wants to be started again (`training/preemption.py`); 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from grpo_gym import __version__

COMMANDS = {
    "train": "train an experiment, or show what it would do (--dry-run)",
    "eval": "evaluate a model on datasets in categories; goes on where it was stopped",
    "compare": "compare two evaluations of the same problems",
    "report": "write one HTML file that shows a run",
    "tasks": "list the Reasoning Gym tasks, or show one",
    "plan": "predict memory and speed on N GPUs, and the best split of them",
    "slurm": "write an sbatch script: servers on some GPUs, trainers on the others",
    "export": "turn any checkpoint into one Hugging Face folder",
    "doctor": "check this machine: versions, GPUs, limits, memory",
    "completion": "print a completion script for bash, zsh or tcsh",
}
EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit code."""
    args = parse(sys.argv[1:] if argv is None else argv)
    if args.command is None:
        make_parser([]).print_help()
        return EXIT_USAGE
    command = importlib.import_module(f"grpo_gym.cli.{args.command}")
    try:
        return command.run(args)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough; keep Python from complaining at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The parsed command line; overrides (key=value) may also stand after options."""
    parser = make_parser(argv)
    args, rest = parser.parse_known_args(argv)
    overrides = [word for word in rest if "=" in word and not word.startswith("-")]
    if rest and (len(overrides) < len(rest) or not hasattr(args, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.overrides += overrides
    return args


def make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser, with the arguments of the command that `argv` names."""
    parser = argparse.ArgumentParser(
        prog="grpo-gym", description="A Verifiers environment in, a better model out."
    )
    parser.add_argument("--version", action="version", version=f"grpo-gym {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, summary in COMMANDS.items():
        subparser = subparsers.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + "."
        )
        if name in argv:
            importlib.import_module(f"grpo_gym.cli.{name}").add_arguments(subparser)
    return parser


def files_and_overrides(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Words apart: `key=value`, and paths, which may have a `=` in them (outputs/lr=1e-6/config.yaml)."""
    files = [word for word in words if "=" not in word or os.path.isfile(word)]
    return files, [word for word in words if word not in files]


def fail(message: object, code: int = EXIT_USAGE) -> int:
    """Print an error and return the exit code."""
    print(f"grpo-gym: error: {message}", file=sys.stderr)
    return code
