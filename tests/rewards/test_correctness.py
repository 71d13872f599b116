"""Reasoning Gym's scorers keep a deadline without a `rewards` section, too."""

import os
import subprocess
import sys

import pytest
from reasoning_gym_tasks import LazyReasoningGymEnv, load_environment

from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.rewards import load_rewards_module, reasoning_gym_scorer, scoring
from grpo_gym.rewards.correctness import score_in_workers
from grpo_gym.rewards.scoring import shared_pool
from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.rollouts.engine import RolloutEngine

SCORER = """
import os

def score(specs, seed, num_rows, index, task, answer, entry, question):
    while answer == "hang":
        pass
    return float(os.getpid())
"""


@pytest.fixture
def moody_scorer(tmp_path, monkeypatch):
    """In the place of Reasoning Gym's scorer one that may hang, and says which process it runs in."""
    path = tmp_path / "moody_scorer.py"
    path.write_text(SCORER)
    monkeypatch.setattr(reasoning_gym_scorer, "score_reasoning_gym", load_rewards_module(str(path)).score)
    yield
    shared_pool().close()


@pytest.fixture
def rollouts(tokenizer, scripted_sampler):
    def generate(env, *texts):
        engine = RolloutEngine(env, scripted_sampler(lambda prompt, n: texts[n]), ChatRenderer(tokenizer))
        try:
            (group,) = engine.generate([env.row(0)], len(texts), SamplingParams(max_tokens=50), [0])
        finally:
            engine.close()
        return {rollout.completion_text: rollout for rollout in group.rollouts}

    return generate


def test_the_environments_own_scorer_runs_in_a_worker(rollouts, moody_scorer):
    found = rollouts(load_environment(format_weight=0.0), "<answer>1</answer>", "no tags")
    assert found["<answer>1</answer>"].reward in shared_pool().pids
    assert found["no tags"].reward == 0.0
    assert list(found["no tags"].metrics)[:2] == ["check_answer_reward_func", "format_reward_func"]


def test_a_scorer_that_hangs_is_killed_and_the_others_go_on(rollouts, moody_scorer):
    env = load_environment()
    score_in_workers(env, deadline=0.5)
    found = rollouts(env, "<answer>hang</answer>", "<answer>1</answer>", "<answer>2</answer>")
    hung = found.pop("<answer>hang</answer>")
    assert (hung.reward, hung.failed_rewards) == (None, ["check_answer_reward_func"])
    assert "took longer than its deadline of 0.5 s" in hung.error
    assert all(rollout.reward > 0 for rollout in found.values())


def test_scores_are_those_in_place(rollouts):
    env = load_environment("leg_counting")
    right = f"<answer>{env.row(0)['answer']}</answer>"
    found = rollouts(env, right, "<answer>-1</answer>")
    assert (found[right].reward, found["<answer>-1</answer>"].reward) == (1.0, 0.0)


def test_a_scorer_of_a_subclass_stays_in_place(rollouts, moody_scorer):
    class Own(LazyReasoningGymEnv):
        async def check_answer_reward_func(self, completion, info, question):
            return 0.25

    assert rollouts(Own(), "<answer>1</answer>")["<answer>1</answer>"].reward == 0.25


def test_a_small_machine_has_several_workers(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    pool = scoring.shared_pool.__wrapped__()
    assert pool.threads._max_workers >= 4
    assert pool.pids == []  # they start when they are needed


def test_a_scoring_process_does_not_load_verifiers():
    program = (
        "import sys, grpo_gym.rewards.worker, grpo_gym.rewards.reasoning_gym_scorer; "
        "print({'verifiers', 'datasets', 'torch'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
