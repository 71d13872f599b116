"""`grpo-gym slurm CONFIG ACCOUNT`: an sbatch script for an experiment."""

from __future__ import annotations

import argparse
from pathlib import Path

from grpo_gym.cli import EXIT_FAILED, fail

_EPILOG = """\
examples:
  grpo-gym slurm configs/experiments/qwen_countdown.yaml ACCOUNT
  grpo-gym slurm configs/experiments/qwen_countdown.yaml ACCOUNT --gpus 8 --server-gpus 2 --time 12:00:00
  grpo-gym slurm configs/experiments/tiny_leg_counting.yaml ACCOUNT --gpus 0 --cpus 2 --memory 4G --time 00:30:00

The experiment is checked before anything is written. docs/slurm.md says what the script does.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the command."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    add = parser.add_argument
    add("config", metavar="CONFIG", help="the experiment, a YAML file")
    add("account", metavar="ACCOUNT", help="the account that pays for the job")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="settings to change, such as max_steps=100")
    add("--work-dir", metavar="DIR", help="where the job runs; relative paths start there (default: here)")
    add("--partition", default="GPUQ", help="(default: %(default)s; '' for the cluster's own)")
    add("--time", default="04:00:00", help="time limit (default: %(default)s)")
    add("--nodes", type=int, default=1, help="(default: %(default)s)")
    add("--gpus", type=int, default=4, help="GPUs of each node; 0: CPUs only (default: %(default)s)")
    add("--gpu-type", default="a100", help="as SLURM names it (default: %(default)s; '' for any)")
    add("--cpus", type=int, default=16, help="CPU cores of each node (default: %(default)s)")
    add("--memory", default="320G", help="main memory of each node (default: %(default)s)")
    add(
        "--server-gpus",
        type=int,
        metavar="N",
        help="GPUs, of all, for vLLM servers; sets vllm_mode=server (default: half, if the experiment has servers)",
    )
    add(
        "--checkpoint-lead",
        type=int,
        metavar="SECONDS",
        help="when, before the time limit, the trainer saves (default: 600, at most a quarter of the time)",
    )
    add("--output", metavar="FILE", help="the script (default: slurm_<job_name>.sh)")
    add("--force", action="store_true", help="write over a script that is already there")


def run(args: argparse.Namespace) -> int:
    """Check the experiment and write the script."""
    try:
        path, text = make_script(args)
    except (ValueError, OSError) as error:
        return fail(error)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
    except OSError as error:
        return fail(error, EXIT_FAILED)
    print(f"{path}\nsubmit it with: sbatch {path}")
    return 0


def make_script(args: argparse.Namespace) -> tuple[Path, str]:
    """Path and text of the script.

    Raises:
        ValueError: the experiment or the resources are wrong, or the script is there already.
        OSError: a file or a model cannot be read.
    """
    from grpo_gym.config import load_experiment
    from grpo_gym.config.summary import plan_run
    from grpo_gym.launch import layout as layouts
    from grpo_gym.launch import slurm

    resources = layouts.Resources(
        account=args.account,
        partition=args.partition,
        time=args.time,
        nodes=args.nodes,
        gpus=args.gpus,
        gpu_type=args.gpu_type,
        cpus=args.cpus,
        memory=args.memory,
        server_gpus=args.server_gpus,
        lead=args.checkpoint_lead,
    )
    work_dir = Path(args.work_dir or ".").resolve()
    if not work_dir.is_dir():
        raise ValueError(f"--work-dir {work_dir} is not a folder; make it first.")
    overrides = list(args.overrides)
    if args.server_gpus:
        overrides += ["use_vllm=true", "vllm_mode=server"]
    experiment = load_experiment(args.config, overrides)
    check_for_a_job(experiment)
    settings = experiment.training_settings
    needs_server = bool(settings.get("use_vllm")) and settings.get("vllm_mode", "server") == "server"
    layout = layouts.plan_layout(resources, needs_server, experiment.launch.server_tensor_parallel_size)
    processes = layouts.count_processes(layout, experiment.launch.num_processes)
    # The machine one submits from may have no GPU, so what the job will do is worked out as if for CPUs.
    planned = load_experiment(
        args.config, [*overrides, "training.use_cpu=true", f"launch.num_processes={processes}"]
    )
    plan = plan_run(planned)
    path = Path(args.output or f"slurm_{slurm.job_name(plan.args)}.sh")
    if path.exists() and not args.force:
        raise ValueError(f"{path} exists; choose another --output, or --force to write over it.")
    text = slurm.render_script(
        experiment, plan.args, resources, layout, Path(args.config), path, work_dir, tuple(overrides)
    )
    return path, text


def check_for_a_job(experiment: object) -> None:
    """Raise a ValueError for what would mean something else on another machine."""
    from grpo_gym.config.schema import Experiment

    assert isinstance(experiment, Experiment)
    if not experiment.model.model_name_or_path:
        raise ValueError(
            "model.model_name_or_path is not set, and its default depends on the machine; name the model."
        )
    accelerate_config = experiment.launch.accelerate_config
    if accelerate_config and not Path(accelerate_config).is_file():
        raise ValueError(f"launch.accelerate_config: {accelerate_config} is not a file.")
