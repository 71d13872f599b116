"""Stopping in time: a signal becomes a checkpoint at the end of the step, on every rank.

Schedulers announce the end of a job with SIGUSR1 (SLURM's `--signal`) or SIGTERM. The step in progress is finished,
a checkpoint saved, and every rank exits with `EXIT_PREEMPTED`; `resume_from_checkpoint="auto"` goes on from there.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

EXIT_PREEMPTED = 75
"""EX_TEMPFAIL of sysexits.h: not done, try again. (`accelerate launch` itself then exits with 1.)"""
PREEMPTION_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class Preempted(SystemExit):
    """Training stopped because of a signal; its checkpoint is complete."""

    def __init__(self, message: str) -> None:
        super().__init__(EXIT_PREEMPTED)
        self.message = message

    def __str__(self) -> str:
        return self.message


class PreemptionCallback(TrainerCallback):
    """Saves and stops after the step during which a rank was signalled."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.stopped = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals inside of this block; they keep their old meaning outside of it.

        Python lets only the main thread listen: in another one nothing changes.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self.received, self.stopped = None, False
        previous = {number: signal.signal(number, self._on_signal) for number in PREEMPTION_SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                # None: a handler that was not set from Python and cannot be set again.
                signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Save and stop, when any rank was signalled."""
        if _any_rank(self.received is not None, args.device):
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False
            # A signal during the last step is too late to matter: the run is over.
            self.stopped = state.global_step < state.max_steps
        return control

    def raise_if_stopped(self, trainer: Trainer) -> None:
        """End the program when training ended early because of a signal; called by every rank.

        Raises:
            Preempted: with the exit code, once every rank is done with the checkpoint.
        """
        if not self.stopped:
            return
        trainer.accelerator.wait_for_everyone()
        message = (
            f"{self.received.name if self.received else 'a signal to another rank'}: stopped after step "
            f"{trainer.state.global_step}, saved in {trainer.args.output_dir}; "
            "go on with resume_from_checkpoint=auto."
        )
        if trainer.is_world_process_zero():
            print(message, flush=True)
        raise Preempted(message)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Repeated signals mean the same: launchers and schedulers both send them.
        self.received = signal.Signals(number)


def _any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank: a signal may reach only one of them."""
    if not torch.distributed.is_initialized():
        return flag
    shared = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return bool(shared.item())
