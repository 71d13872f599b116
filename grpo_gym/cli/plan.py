"""`grpo-gym plan FILE --gpus N --gpu-type TYPE [key=value ...]`."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from grpo_gym.cli import EXIT_FAILED, fail

if TYPE_CHECKING:
    from grpo_gym.planning.hardware import Rates

_EPILOG = """\
examples:
  grpo-gym plan configs/experiments/qwen_countdown.yaml --gpus 4 --gpu-type h100
  grpo-gym plan configs/experiments/qwen_countdown.yaml --gpus 8 --gpu-type a100-80 max_completion_length=4096
  grpo-gym plan --calibrate rates.json
  grpo-gym plan configs/experiments/tiny_leg_counting.yaml --gpu-type cpu --rates rates.json

Exit code 1: nothing fits.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("file", nargs="?", metavar="FILE", help="the experiment, a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings to change")
    parser.add_argument("--gpus", type=int, default=1, metavar="N", help="how many GPUs there are (1)")
    parser.add_argument(
        "--gpu-type", default="h100", metavar="TYPE",
        help="a100-40, a100-80, h100, h200, b200, l4, l40s, a10, rtx3090, rtx4090, or cpu (with --rates)",
    )  # fmt: skip
    parser.add_argument(
        "--rates", metavar="FILE", help="measured rates, instead of what is assumed of the type"
    )
    parser.add_argument(
        "--mean-completion", type=float, metavar="TOKENS", help="mean completion (default: the longest)"
    )
    parser.add_argument(
        "--prompt-tokens", type=float, metavar="TOKENS", help="mean prompt (default: counted)"
    )
    parser.add_argument("--json", action="store_true", help="print every split as JSON")
    parser.add_argument(
        "--calibrate", metavar="FILE", help="measure this machine's CPU (minutes) and write its rates"
    )
    parser.add_argument("--threads", type=int, default=1, help="torch threads of --calibrate (1)")


def run(args: argparse.Namespace) -> int:
    """Print the plan, or measure rates."""
    if args.calibrate:
        return _calibrate(args)
    if args.file is None:
        return fail("give an experiment file, or --calibrate FILE.")
    try:
        text, fits = _plan(args)
    except (ValueError, OSError) as error:
        return fail(error)
    print(text)
    return 0 if fits else EXIT_FAILED


def _plan(args: argparse.Namespace) -> tuple[str, bool]:
    from grpo_gym.cli.train import experiment_file
    from grpo_gym.config import load_experiment
    from grpo_gym.config.summary import planned_arguments
    from grpo_gym.planning.report import describe_plan, split_to_json
    from grpo_gym.planning.splits import all_splits
    from grpo_gym.planning.workload import workload_of

    if args.gpus < 1:
        raise ValueError(f"--gpus {args.gpus}: use at least 1.")
    on_cpu = args.gpu_type == "cpu"
    args.config_path = args.config_name = None
    experiment = load_experiment(*experiment_file(args))
    settings, batch, _ = planned_arguments(experiment)
    load = workload_of(
        experiment, settings, batch.completions_per_step, not on_cpu, args.mean_completion, args.prompt_tokens
    )
    rates = _rates(args)
    splits = all_splits(load, rates, args.gpus, on_cpu)
    fits = any(split.fits for split in splits)
    if args.json:
        return json.dumps([split_to_json(split) for split in splits], indent=2), fits
    return describe_plan(load, rates, splits, args.gpu_type, args.gpus), fits


def _rates(args: argparse.Namespace) -> Rates:
    from grpo_gym.planning.hardware import gpu_rates, load_rates

    if args.rates:
        return load_rates(args.rates)
    if args.gpu_type == "cpu":
        raise ValueError("--gpu-type cpu needs --rates FILE; make it with `grpo-gym plan --calibrate FILE`.")
    return gpu_rates(args.gpu_type)


def _calibrate(args: argparse.Namespace) -> int:
    from grpo_gym.planning.calibration import fit, measure_runs, save

    try:
        runs = measure_runs(args.threads)
    except RuntimeError as error:
        return fail(error, EXIT_FAILED)
    save(fit(runs), args.calibrate, args.threads, runs)
    print(f"wrote {args.calibrate}")
    return 0
