"""`grpo-gym completion SHELL`: the script that lets a shell complete commands, options and file names."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from grpo_gym.cli import COMMANDS, make_parser

_EPILOG = """\
examples:
  grpo-gym completion bash > ~/.local/share/bash-completion/completions/grpo-gym
  grpo-gym completion zsh > ~/.zfunc/_grpo-gym       (with ~/.zfunc in fpath)
"""
SHELLS = ("bash", "zsh", "tcsh")
_FILES = ("FILE", "CONFIG", "A", "B")
_FOLDERS = ("DIR", "OUTPUT_DIR", "CHECKPOINT", "OUT")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("shell", choices=SHELLS, help="the shell to write it for")


def run(args: argparse.Namespace) -> int:
    """Print the script."""
    import shtab

    parser = make_parser(list(COMMANDS))
    for action in _actions(parser):
        if action.metavar in _FILES:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif action.metavar in _FOLDERS:
            action.complete = shtab.DIRECTORY  # type: ignore[attr-defined]
    print(shtab.complete(parser, shell=args.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of the parser and of the commands in it."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for subparser in action.choices.values():
                yield from _actions(subparser)
