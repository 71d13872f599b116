"""What travels to a scoring process."""

import asyncio
import os
import subprocess
import sys
import threading

import pytest

from grpo_gym.rewards import BaseReward, RewardError

SCRIPT = """
import asyncio
from grpo_gym.rewards import BaseReward, register_reward

LIMIT = 100

def is_short(text):
    return len(text) < LIMIT

@register_reward("short")
class Short(BaseReward):
    def compute(self, prompt, completion, answer, info):
        return 1.0 if is_short(completion) else 0.0

print("ran")
print([asyncio.run(Short()("", "x" * length)) for length in (1, 200, 99)])
"""


@pytest.mark.parametrize("has_file", [True, False])
def test_a_class_of_the_script_itself_scores(tmp_path, has_file):
    """As the docstring of BaseReward has it. A notebook has no file, as here with -c; neither runs twice."""
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    command = [str(path)] if has_file else ["-c", SCRIPT]
    done = subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert (done.stdout, done.returncode) == ("ran\n[1.0, 0.0, 1.0]\n", 0), done.stderr


def test_what_cannot_travel_is_one_line():
    class Locked(BaseReward):
        def __init__(self):
            self.lock = threading.Lock()

        def compute(self, prompt, completion, answer, info):
            return 1.0

    with pytest.raises(RewardError, match=r"Locked: cannot be sent .*lock.*set deadline = None"):
        asyncio.run(Locked()("", "x"))
