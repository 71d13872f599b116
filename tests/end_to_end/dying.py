"""Run by every process of a launch: save after every step, and let a rank die at a chosen moment.

... dying.py OUT RANK MOMENT      rank RANK kills itself (kill -9): `train` or `save`, in the second step
... dying.py OUT                  go on from the last complete checkpoint, then do the whole run once more, beside
"""

import os
import signal
import sys
from pathlib import Path

import torch

from tests.end_to_end import launch_modes

STEPS = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "num_iterations": 1}


def kill_me(rank):
    """A rank that is gone from one instruction to the next."""
    if int(os.environ["RANK"]) == rank:
        os.kill(os.getpid(), signal.SIGKILL)


def arrange_death(rank, moment):
    """Kill the rank in the second step: in its forward pass, or between the files of its checkpoint."""
    trainer_class = launch_modes.FixedRolloutsTrainer
    name = {"train": "_forward_backward", "save": "_save_rng_state"}[moment]
    original = getattr(trainer_class, name)

    def die_in_step_two(self, *args):
        if self.state.global_step == {"train": 1, "save": 2}[moment]:
            kill_me(rank)
        return original(self, *args)

    setattr(trainer_class, name, die_in_step_two)


if __name__ == "__main__":
    out, *death = sys.argv[1:]
    resumed = Path(out) / "run"
    if death:
        arrange_death(int(death[0]), death[1])
        launch_modes.run("adamw", resumed, **STEPS)
        raise SystemExit("nobody died")
    launch_modes.report(launch_modes.run("adamw", resumed, resume_from_checkpoint=True, **STEPS), resumed)
    whole = Path(out) / "whole"
    launch_modes.report(launch_modes.run("adamw", whole, **STEPS), whole)
    torch.distributed.destroy_process_group()
