"""The log of a run, on disk after every entry: `{output_dir}/log_history.jsonl`.

transformers writes its log history with a checkpoint only; a report of a run that is still going needs it now.
The first line says where the run started, so that what an earlier run left in the folder can be told apart.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from grpo_gym.reporting.run_log import LOG_FILE


class LogHistoryCallback(TrainerCallback):
    """Writes the log history of the main process, entry by entry."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the file again: with the entries of the checkpoint when a run is resumed."""
        if not state.is_world_process_zero:
            return
        header = {"started": time.time(), "first_step": state.global_step, "max_steps": state.max_steps}
        path = _log_path(args)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(_lines([header, *state.log_history]), encoding="utf-8")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Append the newest entry."""
        path = _log_path(args)
        if state.is_world_process_zero and state.log_history and path.is_file():
            with path.open("a", encoding="utf-8") as file:
                file.write(_lines([state.log_history[-1]]))


def _log_path(args: TrainingArguments) -> Path:
    return Path(str(args.output_dir)) / LOG_FILE


def _lines(records: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)
