"""`{output_dir}/config.yaml`: what ran can run again."""

import subprocess

import pytest
import yaml

from grpo_gym.config import load_experiment
from grpo_gym.config.build import build_args
from grpo_gym.config.provenance import git_state, save_experiment, warn_about_versions


def test_the_saved_experiment_is_the_same_experiment(write, tmp_path):
    write("base.yaml", "training: {learning_rate: 1e-6, report_to: none, per_device_train_batch_size: 16}\n")
    write("own.py", "")
    text = (
        "_base_: base.yaml\nrewards_module: own.py\nsave_steps: ${training.max_steps}\ndata: leg_counting\n"
    )
    first = load_experiment(write("x.yaml", text), ["max_steps=7", "eval.num_problems=3"])
    args = build_args(first)
    saved = save_experiment(first, tmp_path / "run")
    again = load_experiment(saved)
    values = again.to_dict()
    assert set(values.pop("provenance")) == {"versions", "git", "command"}
    expected = first.to_dict()
    expected["training"]["output_dir"] = str(tmp_path / "run")
    assert values == expected
    different = {
        name
        for name, value in build_args(again).to_dict().items()
        if value != args.to_dict()[name] and name not in ("output_dir", "logging_dir")
    }
    assert different == set()


def test_other_versions_are_pointed_out(write, tmp_path):
    saved = save_experiment(load_experiment(write("x.yaml", "seed: 1\n")), tmp_path)
    values = yaml.safe_load(saved.read_text())
    values["provenance"]["versions"]["torch"] = "1.0"
    saved.write_text(yaml.safe_dump(values))
    with pytest.warns(UserWarning, match=r"other versions: torch 1\.0 \(here"):
        warn_about_versions(load_experiment(saved))


def test_git_state_names_commit_and_changed_files(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    assert git_state(tmp_path)["changed_files"] == []
    (tmp_path / "file").write_text("2")
    state = git_state(tmp_path)
    assert state["changed_files"] == ["file"]
    assert len(state["commit"]) == 40
