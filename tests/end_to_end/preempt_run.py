"""Run by two processes: the second gets SIGUSR1 during step 2 of 4, the first does not. Each writes how it ended."""

import os
import signal
import sys
from pathlib import Path

import launch_modes
import torch

from grpo_gym.training.preemption import Preempted


class SignalledTrainer(launch_modes.FixedRolloutsTrainer):
    def _current_batch(self, model):
        if self.state.global_step == 1 and self.accelerator.process_index == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super()._current_batch(model)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    rank = os.environ["RANK"]
    launch_modes.FixedRolloutsTrainer = SignalledTrainer
    try:
        launch_modes.run("sgd", out / "run", max_steps=4)
    except Preempted as end:
        (out / f"rank{rank}.txt").write_text(f"{end.code} {end}")
    torch.distributed.destroy_process_group()
