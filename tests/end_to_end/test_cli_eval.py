"""`grpo-gym eval` in processes of its own: killed and run again, and as docs/evaluation.md has it."""

import json
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from tests.docs.markdown import ROOT, run_line, shell_lines

CONFIG = ROOT / "configs/eval/tiny_leg_counting.yaml"
LINES = shell_lines(ROOT / "docs/evaluation.md")
MARK = "GRPO_GYM_TEST_MARK"
NEEDS_MORE = ("base_url=", "reasoning_gym.yaml", "Qwen/")
"""Commands for a GPU, the Hub or an API: here they are only planned."""


def command(output_dir, *words):
    base = [sys.executable, "-m", "grpo_gym.cli", "eval", "--config", str(CONFIG)]
    return [
        *base,
        f"output_dir={output_dir}",
        "categories.arithmetic.leg_counting.size=16",
        "repeats=8",
        *words,
    ]


def lines_of(path):
    return path.read_text().splitlines() if path.is_file() else []


def kill_when_some_are_done(process, journal, wanted):
    deadline = time.monotonic() + 300
    while len(lines_of(journal)) <= wanted:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def test_killed_and_run_again_it_pays_only_for_what_is_missing(tmp_path):
    journal = tmp_path / "completions.jsonl"
    # Small batches, so that the kill comes between two of them.
    with subprocess.Popen(command(tmp_path, "max_concurrent=4"), stderr=subprocess.DEVNULL) as process:
        kill_when_some_are_done(process, journal, wanted=10)
    assert not (tmp_path / "results.json").exists()
    kept = [json.loads(line) for line in lines_of(journal)[1:] if line.endswith("}")]
    with journal.open("ab") as file:
        file.write(b'{"dataset": "leg_counting", "problem": 15, "rep')  # torn by the kill
    done = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"{128 - len(kept)} completions sampled, {len(kept)} were there already" in done.stdout
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["summary"]["all"]["num_samples"] == 128
    records = [json.loads(line) for line in lines_of(journal)[1:]]
    assert records[: len(kept)] == kept
    keys = [(r["dataset"], r["problem"], r["repeat"]) for r in records]
    assert len(keys) == len(set(keys)) == 128
    for record in kept:
        assert results["problems"][record["problem"]]["samples"][record["repeat"]] == record["sample"]


def test_a_server_of_its_own_is_stopped_with_the_evaluation(tmp_path):
    words = ("backend=server", "server_args=[--enforce-eager]", "max_model_len=640", "repeats=2")
    done = subprocess.run(
        command(tmp_path, *words),
        env={**os.environ, MARK: str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads((tmp_path / "results.json").read_text())["summary"]["all"]["num_samples"] == 32
    assert not processes_marked(str(tmp_path))


def processes_marked(word):
    """Command lines of the processes that inherited the mark of an evaluation, and outlived it."""
    processes = psutil.process_iter(["cmdline", "environ"])
    return [p.info["cmdline"] for p in processes if (p.info["environ"] or {}).get(MARK) == word]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("user")
    (folder / "configs").symlink_to(ROOT / "configs")
    return folder


@pytest.mark.parametrize("line", LINES)
def test_documented_commands_run(line, folder):
    if any(word in line for word in NEEDS_MORE):
        line += " --dry-run"
    run_line(line, folder)


def test_what_the_documented_commands_leave(folder):
    """Runs after them: the files the document promises."""
    for name in (
        "eval/tiny_leg_counting/tiny/results.json",
        "eval/tiny_leg_counting/tiny/report.md",
        "eval/tiny_leg_counting/tiny/accuracy.png",
        "eval/tiny_leg_counting/tiny/completions.jsonl",
        "eval/tiny_leg_counting/legs/results.json",
        "legs/eval_results/eval_step_0.json",
        "legs/train_results.json",
    ):
        assert (folder / "outputs" / name).exists(), name
