"""Every command of docs/command_line.md, run as printed, in order, from a folder of one's own."""

import pytest

from tests.docs.markdown import ROOT, run_line, shell_lines

LINES = shell_lines(ROOT / "docs/command_line.md")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "outputs").mkdir()
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
        "eval_before/results.json",
        "eval_after/results.json",
        "legs-bf16/config.json",
        "job.sh",
    ):
        assert (folder / "outputs" / name).exists(), name
