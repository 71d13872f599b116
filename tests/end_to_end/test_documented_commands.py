"""Every command of docs/command_line.md, run as printed, in order, from a folder of one's own.

Then those of docs/configuration.md, and the reports of docs/report.md on the run that is there."""

import json
import re

import pytest

from tests.docs.markdown import ROOT, run_line, shell_lines

LINES = [
    *shell_lines(ROOT / "docs/command_line.md"),
    *(line for line in shell_lines(ROOT / "docs/configuration.md") if line.startswith("grpo-gym")),
    *(line for line in shell_lines(ROOT / "docs/report.md") if "report outputs/tiny_leg_counting" in line),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "outputs").mkdir()
    (folder / "outputs/tiny_leg_counting").symlink_to("legs")  # the name of the run in docs/report.md
    return folder


@pytest.mark.parametrize("line", LINES)
def test_runs_as_printed(line, folder):
    run_line(line, folder)


def test_what_the_commands_leave(folder):
    """Runs after them: the files the documents promise."""
    for name in (
        "legs/config.yaml",
        "legs/model.safetensors",
        "legs/train_results.json",
        "legs/eval_results/eval_step_0.json",
        "legs/eval_results/eval_step_4.json",
        "legs/eval_results/eval_step_6.json",
        "legs/report.html",
        "../legs.html",
        "eval_before/results.json",
        "eval_after/results.json",
        "legs-bf16/config.json",
        "job.sh",
    ):
        assert (folder / "outputs" / name).exists(), name


def test_every_metric_of_the_run_is_explained(folder):
    """docs/metrics.md names all that a real run logs; <...> there stands for any name."""
    state = json.loads((folder / "outputs/legs/trainer_state.json").read_text())
    logged = {name for entry in state["log_history"] for name in entry}
    assert "reward" in logged
    assert "eval_accuracy" in logged
    explained = re.findall(r"`([\w/@<>]+)`", (ROOT / "docs/metrics.md").read_text())
    patterns = [re.sub(r"<\w+>", r"[\\w.-]+", name) for name in explained]
    unexplained = {name for name in logged if not any(re.fullmatch(p, name) for p in patterns)}
    assert not unexplained
