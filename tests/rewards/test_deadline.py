"""Rewards in worker processes: they are killed at their deadline, and nothing else notices."""

import asyncio
import os

import pytest

from grpo_gym.rewards import RewardError, create_reward, load_rewards_module
from grpo_gym.rewards.scoring import shared_pool

SOURCE = """
import os, time
from grpo_gym.rewards import BaseReward, register_reward

@register_reward("test_moody")
class Moody(BaseReward):
    deadline = 0.5
    def compute(self, prompt, completion, answer, info):
        if completion == "hang":
            while True:
                pass
        if completion == "raise":
            raise KeyError("lost")
        if completion == "die":
            os._exit(7)
        if completion == "nan":
            return float("nan")
        return float(os.getpid())
"""


@pytest.fixture(scope="module")
def moody(tmp_path_factory):
    path = tmp_path_factory.mktemp("rewards") / "moody.py"
    path.write_text(SOURCE)
    load_rewards_module(str(path))
    yield create_reward("test_moody")
    shared_pool().close()


def score(reward, *completions):
    async def all_of_them():
        return await asyncio.gather(*(reward("", c) for c in completions), return_exceptions=True)

    return asyncio.run(all_of_them())


def test_scores_come_from_another_process(moody):
    (pid,) = score(moody, "fine")
    assert pid != os.getpid()
    assert int(pid) in shared_pool().pids


def test_a_score_that_never_ends_is_an_error_and_its_process_is_gone(moody):
    before = set(shared_pool().pids)
    hung, fine, again = score(moody, "hang", "fine", "fine")
    assert isinstance(hung, RewardError)
    assert str(hung) == "test_moody: took longer than its deadline of 0.5 s"
    assert fine > 0
    assert again > 0
    (after,) = score(moody, "fine")
    assert int(after) in shared_pool().pids
    killed = before - set(shared_pool().pids)
    assert not any(os.path.exists(f"/proc/{pid}") for pid in killed)


def test_exceptions_deaths_and_nan_are_errors_that_name_the_reward(moody):
    raised, died, nan, fine = score(moody, "raise", "die", "nan", "fine")
    assert str(raised) == "test_moody: KeyError: 'lost'"
    assert "test_moody: the scoring process ended with code" in str(died)
    assert str(nan) == "test_moody: returned nan"
    assert fine > 0


def test_math_verify_scores_in_a_process_too():
    reward = create_reward("math_verify", deadline=60)
    assert asyncio.run(reward("", "<answer>1/2</answer>", answer="0.5")) == 1.0
    with pytest.raises(RewardError, match="math_verify"):
        asyncio.run(reward("", "<answer>1</answer>", answer=""))
