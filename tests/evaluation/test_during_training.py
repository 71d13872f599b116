"""What a training leaves in eval_results, with the embedded model."""

import dataclasses
import json
import os
import re
import subprocess
import sys

import pytest
import reasoning_gym_tasks

from grpo_gym import GRPOConfig, GRPOTrainer
from grpo_gym.evaluation.during_training import flat_metrics
from grpo_gym.evaluation.results import problem_id, read_results
from grpo_gym.evaluation.stable_rows import held_out_rows
from grpo_gym.evaluation.summary import summarize_all
from grpo_gym.rollouts.source import spread_by_task
from grpo_gym.rollouts.types import Rollout, RolloutGroup
from tests.docs.markdown import ROOT
from tests.evaluation.helpers import problem

ANIMALS = {"min_animals": 1, "max_animals": 3, "min_instances": 1, "max_instances": 5}
MIX = [{"name": "leg_counting", "config": ANIMALS}, "chain_sum"]


def environment():
    return reasoning_gym_tasks.load_environment(gym=MIX, num_train_examples=64, num_eval_examples=20)


def train(folder, resume=None, **changes):
    settings = {
        "output_dir": str(folder), "report_to": "none", "per_device_train_batch_size": 16,
        "num_generations": 4, "max_completion_length": 48, "max_steps": 4, "learning_rate": 2e-4,
        "eval_num_problems": 6, "eval_num_samples": 4, "eval_on_start": True, "fixed_eval_steps": 2,
        "disable_tqdm": True, "num_completions_to_print": 0, "save_steps": 3, "use_cpu": True,
    }  # fmt: skip
    trainer = GRPOTrainer("tiny", environment(), GRPOConfig(**{**settings, **changes}))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, train(folder)


def evaluations(trainer):
    return [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]


def test_baseline_then_every_fixed_eval_steps_and_the_last_one_once(run):
    folder, trainer = run
    assert [entry["step"] for entry in evaluations(trainer)] == [0, 2, 4]
    assert sorted(path.name for path in (folder / "eval_results").iterdir()) == [
        "eval_step_0.json", "eval_step_2.json", "eval_step_4.json",
    ]  # fmt: skip


def test_the_baseline_is_of_the_model_before_any_update(run, tmp_path):
    folder, _ = run
    trainer = GRPOTrainer(
        "tiny",
        environment(),
        dataclasses.replace(run[1].args, output_dir=str(tmp_path), eval_on_start=False),
    )
    trainer.evaluate()
    untouched = read_results(tmp_path / "eval_results/eval_step_0.json").problems
    assert untouched == read_results(folder / "eval_results/eval_step_0.json").problems


def test_every_problem_completion_and_score_is_kept_the_same_problems_each_time(run):
    folder, _ = run
    files = [read_results(folder / f"eval_results/eval_step_{step}.json") for step in (0, 2, 4)]
    assert (
        [p.id for p in files[0].problems]
        == [p.id for p in files[1].problems]
        == [p.id for p in files[2].problems]
    )
    for one in files[0].problems:
        assert one.id == problem_id(one.prompt, one.answer)
        assert len(one.samples) == 4
        assert all(0 <= s.score <= 1 and s.num_tokens > 0 for s in one.samples)
    assert any(sample.completion for sample in files[0].problems[0].samples)
    assert files[1].about["step"] == 2
    assert files[1].about["sampling"]["temperature"] == 1.0


def test_the_log_has_pass_at_k_and_intervals_by_task(run):
    first = evaluations(run[1])[0]
    assert {"eval_pass@2", "eval_pass@4", "eval_pass@4/leg_counting", "eval_accuracy/chain_sum"} <= set(first)
    assert first["eval_accuracy_low"] <= first["eval_accuracy"] <= first["eval_accuracy_high"]
    assert first["eval_accuracy"] <= first["eval_pass@2"] <= first["eval_pass@4"]


def test_every_rate_of_an_evaluation_is_explained():
    """docs/metrics.md, with what only some environments have: a format reward, several tasks."""
    made = [problem(number, [1, 0], task) for number, task in enumerate(["sums", "maze"])]
    for each in (sample for one in made for sample in one.samples):
        each.format = 1.0
    logged = {f"eval_{name}" for name in flat_metrics(summarize_all(made))}
    assert {"eval_format_rate", "eval_accuracy/maze", "eval_pass@2"} <= logged
    explained = re.findall(r"`(eval_[\w/@<>]+)`", (ROOT / "docs/metrics.md").read_text())
    patterns = [re.sub(r"<\w+>", r"[\\w@]+", name) for name in explained]
    assert not {name for name in logged if not any(re.fullmatch(p, name) for p in patterns)}


def test_train_results_hold_the_trainers_metrics_baseline_final_and_gain(run):
    folder, trainer = run
    found = json.loads((folder / "train_results.json").read_text())
    assert found["train_runtime"] > 0
    assert found["global_step"] == 4
    assert (found["baseline"]["step"], found["final"]["step"]) == (0, 4)
    last, first = evaluations(trainer)[-1], evaluations(trainer)[0]
    assert found["gain"]["accuracy"]["mean"] == pytest.approx(last["eval_accuracy"] - first["eval_accuracy"])
    assert found["gain"]["accuracy"]["low"] <= found["gain"]["accuracy"]["mean"]


def test_a_resumed_training_keeps_baseline_and_files(run, tmp_path):
    folder, _ = run
    baseline = (folder / "eval_results/eval_step_0.json").stat().st_mtime_ns
    before = {p.name: p.read_text() for p in (folder / "eval_results").iterdir()}
    resumed = train(folder, resume=str(folder / "checkpoint-3"))
    assert [entry["step"] for entry in evaluations(resumed)] == [0, 2, 4]
    assert (folder / "eval_results/eval_step_0.json").stat().st_mtime_ns == baseline
    assert {p.name: p.read_text() for p in (folder / "eval_results").iterdir()} == before
    assert json.loads((folder / "train_results.json").read_text())["baseline"]["step"] == 0


def test_another_training_seed_evaluates_the_same_problems(run, tmp_path):
    trainer = train(tmp_path, seed=7, max_steps=1, fixed_eval_steps=None, eval_num_samples=1)
    other = read_results(tmp_path / "eval_results/eval_step_0.json").problems
    first = read_results(run[0] / "eval_results/eval_step_0.json").problems
    assert [p.id for p in other] == [p.id for p in first]
    assert [entry["step"] for entry in evaluations(trainer)] == [0, 1]


def test_spread_by_task_is_logged(run):
    entries = [entry for entry in run[1].state.log_history if "loss" in entry]
    named = {name for entry in entries for name in entry if name.startswith("spread/")}
    assert named <= {"spread/leg_counting", "spread/chain_sum"}
    assert named
    assert all(0 <= entry[name] <= 1 for entry in entries for name in named if name in entry)


def group(task, rewards):
    rollouts = [Rollout([1], [2], [0.0], [1], reward) for reward in rewards]
    return RolloutGroup(0, task, "", "", rollouts)


def test_spread_is_the_share_of_prompts_whose_rollouts_differ():
    groups = [group("a", [0, 1]), group("a", [1, 1]), group("a", [0, 0]), group("b", [0.2, 0.3])]
    assert spread_by_task(groups) == {"a": pytest.approx(1 / 3), "b": 1.0}


def test_tasks_that_depend_on_the_hash_seed_have_the_same_held_out_rows_in_every_process():
    """This process drew its own PYTHONHASHSEED; the other one has 0, and makes its rows itself."""
    code = (
        "import json, reasoning_gym_tasks\n"
        "env = reasoning_gym_tasks.load_environment(gym=['ransom_note', 'chain_sum'], num_eval_examples=6)\n"
        "print(json.dumps([env.row(index, 'eval')['question'] for index in range(6)]))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    env = reasoning_gym_tasks.load_environment(gym=["ransom_note", "chain_sum"], num_eval_examples=6)
    assert [row["question"] for row in held_out_rows(env, 6)] == json.loads(done.stdout)


def test_rows_of_other_environments_are_their_own(echo_env):
    assert [row["question"] for row in held_out_rows(echo_env, 3)] == ["say 0", "say 1", "say 2"]
