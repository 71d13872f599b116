"""`{output_dir}/config.yaml`: what ran can run again."""

import subprocess

import pytest
import yaml

from grpo_gym.config import load_experiment
from grpo_gym.config.build import build_args, resume_choice
from grpo_gym.config.provenance import git_state, package_git_state, save_experiment, warn_about_versions
from grpo_gym.models import TINY_MODEL_PATH


def git(folder, *arguments):
    identity = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_the_saved_experiment_is_the_same_experiment(write, tmp_path):
    write("base.yaml", "training: {learning_rate: 1e-6, report_to: none, per_device_train_batch_size: 16}\n")
    write("own.py", "")
    text = (
        "_base_: base.yaml\nrewards_module: own.py\nsave_steps: ${training.max_steps}\ndata: leg_counting\n"
        "model: smollm2\n"
    )
    first = load_experiment(write("x.yaml", text), ["max_steps=7", "eval.num_problems=3"])
    args = build_args(first)
    saved = save_experiment(first, tmp_path / "run")
    again = load_experiment(saved)
    values = again.to_dict()
    assert set(values.pop("provenance")) == {"versions", "git", "git_of_grpo_gym", "command"}
    expected = {**first.to_dict(), "launch": {"num_processes": 1}}
    expected["training"]["output_dir"] = str(tmp_path / "run")
    assert values == expected
    different = {
        name
        for name, value in build_args(again).to_dict().items()
        if value != args.to_dict()[name] and name not in ("output_dir", "logging_dir")
    }
    assert different == set()


def test_what_the_machine_decided_is_saved_and_a_resumed_run_begins_at_the_start(
    write, tmp_path, monkeypatch
):
    monkeypatch.setattr("grpo_gym.config.build.default_model", lambda: "org/default-of-this-machine")
    path = write("x.yaml", "data: leg_counting\nlaunch: {setup: [module load CUDA]}\n")
    resumed = load_experiment(path, ["resume_from_checkpoint=true", "max_steps=4"])
    saved = save_experiment(resumed, tmp_path / "run", num_processes=4)
    again = load_experiment(saved)
    assert resume_choice(resumed) is True
    assert resume_choice(again) is None
    assert again.training_settings["max_steps"] == 4
    assert again.model.model_name_or_path == "org/default-of-this-machine"
    assert (again.launch.num_processes, again.launch.setup) == (4, ["module load CUDA"])
    assert f"accelerate launch --num-processes 4 -m grpo_gym.cli train {saved}\n" in saved.read_text()


def test_the_embedded_model_is_saved_by_its_name_and_not_by_its_place(write, tmp_path, monkeypatch):
    monkeypatch.setattr("grpo_gym.config.build.default_model", lambda: str(TINY_MODEL_PATH))
    saved = save_experiment(load_experiment(write("x.yaml", "seed: 1\n")), tmp_path)
    assert load_experiment(saved).model.model_name_or_path == "tiny"


def test_the_git_state_of_the_package_is_saved_wherever_one_is(write, tmp_path, monkeypatch):
    package = tmp_path / "repository/grpo_gym"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    monkeypatch.setattr("grpo_gym.__file__", str(package / "__init__.py"))
    git(package, "init")
    assert package_git_state() is None  # a copy in somebody else's repository, as in its .venv
    git(package, "add", ".")
    git(package, "commit", "-m", "first")
    monkeypatch.chdir(tmp_path)
    saved = save_experiment(load_experiment(write("x.yaml", "seed: 1\n")), tmp_path)
    provenance = yaml.safe_load(saved.read_text())["provenance"]
    assert provenance["git"] is None
    assert provenance["git_of_grpo_gym"] == git_state(package)


def test_other_versions_are_pointed_out(write, tmp_path):
    saved = save_experiment(load_experiment(write("x.yaml", "seed: 1\n")), tmp_path)
    values = yaml.safe_load(saved.read_text())
    values["provenance"]["versions"]["torch"] = "1.0"
    saved.write_text(yaml.safe_dump(values))
    with pytest.warns(UserWarning, match=r"other versions: torch 1\.0 \(here"):
        warn_about_versions(load_experiment(saved))


def test_git_state_names_commit_and_changed_files(tmp_path):
    git(tmp_path, "init")
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "first")
    assert git_state(tmp_path)["changed_files"] == []
    (tmp_path / "file").write_text("2")
    state = git_state(tmp_path)
    assert state["changed_files"] == ["file"]
    assert len(state["commit"]) == 40
