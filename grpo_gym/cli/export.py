"""`grpo-gym export CHECKPOINT OUT`."""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_gym.cli import EXIT_FAILED, fail

_EPILOG = """\
examples:
  grpo-gym export outputs/my-run/checkpoint-100 my-model --dtype bfloat16
  grpo-gym export outputs/my-lora-run my-model --merge-lora
  grpo-gym export outputs/my-run my-model --push --name me/my-model

ZeRO-2/3, FSDP1/2, LoRA and plain checkpoints; no GPU is needed. docs/export.md says more.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="a checkpoint-N, or a run's folder")
    parser.add_argument("out", metavar="OUT", help="the new folder")
    parser.add_argument("--name", help="the model's name; with --push its repository, USER/MODEL")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: the trainer's)"
    )
    parser.add_argument("--merge-lora", action="store_true", help="add LoRA adapters to their base model")
    parser.add_argument(
        "--push", action="store_true", help="upload the folder to the Hub, with the variable HF_TOKEN"
    )


def run(args: argparse.Namespace) -> int:
    """Export, and upload."""
    from grpo_gym.export.export import export_checkpoint
    from grpo_gym.export.hub import push_folder, require_token

    try:
        token = require_token(args.name) if args.push else ""
        done = export_checkpoint(
            Path(args.checkpoint), Path(args.out), args.name, args.dtype, args.merge_lora
        )
    except (ValueError, OSError) as error:
        return fail(error)
    what = "LoRA adapters (they need their base model; --merge-lora puts both together)"
    print(
        f"{done.folder}: {done.num_parameters:,} parameters from a {done.kind} checkpoint"
        f"{', ' + what if done.is_adapter else ''}"
    )
    if args.push:
        try:
            print(f"pushed to {push_folder(done.folder, args.name, token)}")
        except OSError as error:
            return fail(error, EXIT_FAILED)
    return 0
