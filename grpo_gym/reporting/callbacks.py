"""The callbacks that every run gets: its log on disk, and more than scalars for TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.integrations import TensorBoardCallback

from grpo_gym.reporting.log_history import LogHistoryCallback
from grpo_gym.reporting.tensorboard import TensorBoardRolloutsCallback

if TYPE_CHECKING:
    from grpo_gym.training.trainer import GRPOTrainer


def add_reporting_callbacks(trainer: GRPOTrainer) -> None:
    """Add them; TensorBoard's only where `report_to` asks for TensorBoard."""
    trainer.add_callback(LogHistoryCallback())
    for callback in list(trainer.callback_handler.callbacks):
        if isinstance(callback, TensorBoardCallback):
            trainer.add_callback(TensorBoardRolloutsCallback(trainer, callback))
