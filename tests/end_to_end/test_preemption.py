"""A signal that reaches one rank of two stops both after the same step, with one complete checkpoint."""

import os
import subprocess
import sys
from pathlib import Path

from grpo_gym.training.resume import find_last_checkpoint

ROOT = Path(__file__).parents[2]


def test_all_ranks_stop_when_one_is_signalled(tmp_path):
    accelerate = [str(Path(sys.executable).parent / "accelerate"), "launch", "--num-processes", "2"]
    config = ["--config-file", str(ROOT / "configs/accelerate/cpu_2proc.yaml"), "--main-process-port", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*accelerate, *config, str(ROOT / "tests/end_to_end/preempt_run.py"), str(tmp_path)],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    endings = [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)]
    assert endings[0].startswith("75 a signal to another rank: stopped after step 2")
    assert endings[1].startswith("75 SIGUSR1: stopped after step 2")
    assert find_last_checkpoint(str(tmp_path / "run")) == str(tmp_path / "run/checkpoint-2")
    assert not (tmp_path / "run/model.safetensors").exists()
