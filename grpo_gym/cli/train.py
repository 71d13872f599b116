"""`grpo-gym train FILE [key=value ...]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_gym.cli import fail, files_and_overrides

_EPILOG = """\
examples:
  grpo-gym train configs/experiments/tiny_leg_counting.yaml
  grpo-gym train configs/experiments/tiny_leg_counting.yaml max_steps=100 training.learning_rate=1e-4
  grpo-gym train configs/experiments/tiny_leg_counting.yaml --dry-run
  accelerate launch --num-processes 8 -m grpo_gym.cli train FILE
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument("file", nargs="?", metavar="FILE", help="the experiment, a YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, such as max_steps=100"
    )
    parser.add_argument("--config-path", metavar="DIR", help="folder of the experiment, with --config-name")
    parser.add_argument("--config-name", metavar="NAME", help="its name there, with or without .yaml")
    parser.add_argument(
        "--dry-run", action="store_true", help="print experiment and derived numbers; loads no model"
    )


def run(args: argparse.Namespace) -> int:
    """Train, or print the plan."""
    from dotenv import load_dotenv

    from grpo_gym.config import load_experiment
    from grpo_gym.config.build import build_args, build_trainer, resume_choice
    from grpo_gym.config.provenance import save_experiment, warn_about_versions
    from grpo_gym.training.resume import choose_checkpoint

    load_dotenv(Path.cwd() / ".env")
    try:
        path, overrides = experiment_file(args)
        experiment = load_experiment(path, overrides)
        warn_about_versions(experiment)
        if args.dry_run:
            print(_plan_text(experiment))
            return 0
        settings = build_args(experiment)
        checkpoint = choose_checkpoint(resume_choice(experiment), str(settings.output_dir))
        trainer = build_trainer(experiment, settings)
    except (ValueError, OSError) as error:
        # OSError: a model, file or server that is not there.
        return fail(error)
    if trainer.is_world_process_zero():
        save_experiment(experiment, str(trainer.args.output_dir), trainer.args.world_size)
    trainer.train(resume_from_checkpoint=checkpoint)
    return 0


def experiment_file(args: argparse.Namespace) -> tuple[Path, list[str]]:
    """The file and the overrides, whichever way they were given.

    Raises:
        ValueError: no file, or two.
    """
    files, overrides = files_and_overrides([*([args.file] if args.file else []), *args.overrides])
    if args.config_name:
        name = (
            args.config_name if args.config_name.endswith((".yaml", ".yml")) else f"{args.config_name}.yaml"
        )
        files.append(str(Path(args.config_path or ".") / name))
    elif args.config_path:
        raise ValueError("--config-path needs --config-name.")
    if len(files) != 1:
        raise ValueError(
            f"give one experiment file, not {len(files)}{': ' if files else ''}{', '.join(files)}; "
            "overrides are written key=value."
        )
    return Path(files[0]), overrides


def _plan_text(experiment: object) -> str:
    from grpo_gym.config.schema import Experiment
    from grpo_gym.config.summary import describe, plan_run

    assert isinstance(experiment, Experiment)
    return describe(experiment, plan_run(experiment))
