"""From an experiment and the resources of a job to an sbatch script: vLLM servers on some devices, trainers on others.

The text is `slurm.sh.j2`; `layout` decides what runs where.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from grpo_gym import __version__
from grpo_gym.config.schema import Experiment
from grpo_gym.inference.colocate import source_flags
from grpo_gym.launch.layout import Layout, Resources, count_processes
from grpo_gym.training.config import GRPOConfig

SERVER_START_SECONDS = 1800.0
"""How long trainers wait for servers in a job: large models take longer to load than `vllm_server_timeout`."""


def render_script(
    experiment: Experiment,
    args: GRPOConfig,
    resources: Resources,
    layout: Layout,
    config: Path,
    output: Path,
    work_dir: Path,
    overrides: tuple[str, ...] = (),
) -> str:
    """The text of the script.

    Args:
        experiment: the checked experiment.
        args: its settings.
        resources: what is asked of SLURM.
        layout: see `plan_layout`.
        config: the experiment's file.
        output: where the script will be.
        work_dir: where the job runs; relative paths of the experiment start there.
        overrides: `key=value` words of the user.
    """
    launch = experiment.launch
    processes = count_processes(layout, launch.num_processes)
    values = {
        **_directives(resources, work_dir, job_name(args)),
        "version": __version__,
        "command": _one_line(" ".join(["grpo-gym", *sys.argv[1:]])),
        "output": _one_line(shlex.quote(str(output))),
        "setup": launch.setup,
        "activation": activation(),
        "config": shlex.quote(str(config.resolve())),
        "output_dir": shlex.quote(os.path.join(work_dir, str(args.output_dir))),
        "uses_gpus": resources.gpus > 0,
        "gpu_ids": ",".join(str(index) for index in range(resources.gpus)),
        **vars(layout),
        "summary": _summary(layout, processes),
        "server_summary": f"{layout.server_nodes} on {_devices(layout.server_gpus)} each",
        "trainer_summary": f"{processes} process(es) on {layout.trainer_nodes} node(s)",
        "server_command": shlex.join(server_command(experiment, args, layout)),
        "accelerate_command": shlex.join(accelerate_command(launch, layout, processes)),
        "overrides": [shlex.quote(word) for word in _overrides(args, layout, processes, overrides)],
    }
    return _template().render(values)


def server_command(experiment: Experiment, args: GRPOConfig, layout: Layout) -> list[str]:
    """`vf-vllm` without its address: one server per node, a replica on every (group of) GPU(s)."""
    launch = experiment.launch
    command = ["vf-vllm", "--model", str(experiment.model.model_name_or_path)]
    command += source_flags(args.model_init_kwargs)
    if args.vllm_max_model_len:
        command += ["--max-model-len", str(args.vllm_max_model_len)]
    if launch.server_tensor_parallel_size > 1:
        command += ["--tensor-parallel-size", str(launch.server_tensor_parallel_size)]
    replicas = layout.server_gpus // launch.server_tensor_parallel_size
    if replicas > 1:
        command += ["--data-parallel-size", str(replicas)]
    return [*command, *launch.server_args]


def accelerate_command(launch: Any, layout: Layout, processes: int) -> list[str]:
    """`accelerate launch` with the experiment's accelerate configuration, when it names one."""
    command = ["accelerate", "launch"]
    if launch.accelerate_config:
        command += ["--config_file", str(Path(launch.accelerate_config).resolve())]
    elif not layout.trainer_gpus:
        command += ["--cpu"]
    elif processes > 1:
        command += ["--multi_gpu"]
    if layout.trainer_nodes > 1:
        # DeepSpeed's own launcher (pdsh) would start all nodes from each of them; here srun has done that.
        command += ["--deepspeed_multinode_launcher", "standard"]
    return [*command, "--num_processes", str(processes)]


def activation() -> str:
    """The shell line that makes this Python's programs available in the job."""
    prefix = Path(sys.prefix)
    if (prefix / "bin/activate").is_file():
        return f"source {shlex.quote(str(prefix / 'bin/activate'))}"
    if (prefix / "conda-meta").is_dir():
        return f'eval "$(conda shell.bash hook)" && conda activate {shlex.quote(str(prefix))}'
    return f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"'


def job_name(args: GRPOConfig) -> str:
    """The run's name, as SLURM and file names can hold it."""
    name = args.run_name or Path(str(args.output_dir)).name
    return re.sub(r"[^\w.-]+", "-", name)


def _overrides(args: GRPOConfig, layout: Layout, processes: int, given: tuple[str, ...]) -> list[str]:
    words = [*given, "resume_from_checkpoint=auto", f"launch.num_processes={processes}"]
    if layout.server_nodes:
        words.append(f"vllm_server_timeout={max(args.vllm_server_timeout, SERVER_START_SECONDS)}")
    return words


def _directives(resources: Resources, work_dir: Path, name: str) -> dict[str, Any]:
    if re.search(r"\s", str(work_dir)):
        raise ValueError(f"work_dir={str(work_dir)!r}: #SBATCH lines cannot hold a path with spaces.")
    return {
        "job_name": name,
        "account": resources.account,
        "partition": resources.partition,
        "time": resources.time,
        "cpus": resources.cpus,
        "memory": resources.memory,
        "nodes": resources.nodes,
        "gres": resources.gres,
        "lead": resources.lead_seconds,
        "work_dir": work_dir,
    }


def _one_line(text: str) -> str:
    """For a comment, whose second line would be a command."""
    return " ".join(text.split())


def _summary(layout: Layout, processes: int) -> str:
    trainers = f"{processes} trainer process(es)"
    if not layout.server_nodes:
        return f"{trainers}, no server"
    return f"{trainers}, {layout.server_nodes} vLLM server(s) on {_devices(layout.server_gpus)} each"


def _devices(gpus: int) -> str:
    return f"{gpus} GPU(s)" if gpus else "CPU"


def _template() -> Any:
    # A shell script, not HTML: values are quoted for the shell where they are made.
    environment = Environment(
        loader=PackageLoader("grpo_gym.launch", "."),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
        autoescape=False,
    )
    return environment.get_template("slurm.sh.j2")
