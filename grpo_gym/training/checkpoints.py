"""Checkpoints that appear whole or not at all.

transformers writes `checkpoint-N` file by file. Here all ranks write into `.saving/checkpoint-N`, and rank 0
renames the folder when every rank is done: whatever kills the run, a `checkpoint-N` is complete. The model at
the end of a run is written beside and moved over file by file; weights of an earlier run do not stay with it.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints

UNFINISHED_FOLDER = ".saving"
REPLACED_FOLDER = ".replaced"
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
_MODEL_FILES = (
    *("model.safetensors", "model-*.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model-*.bin", "pytorch_model.bin.index.json", "global_step*"),
    *("config.json", "generation_config.json"),
)


class AtomicCheckpoints(Trainer):
    """The part of the trainer that saves."""

    _run_dir: str | None = None

    def _get_output_dir(self, trial: Any) -> str:
        """Where transformers puts `checkpoint-N`."""
        return self._run_dir or str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        run_dir = Path(super()._get_output_dir(trial))
        name = f"checkpoint-{self.state.global_step}"
        unfinished = run_dir / UNFINISHED_FOLDER
        if self._writes_folders:
            shutil.rmtree(unfinished, ignore_errors=True)
            (unfinished / name).mkdir(parents=True)
        self._wait_for_all()
        self._run_dir = str(unfinished)
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._run_dir = None
        self._save_more(unfinished / name)
        if self._writes_folders:
            self._name_best(unfinished / name, run_dir / name)
        self._wait_for_all()
        if self._writes_folders:
            _publish(unfinished / name, run_dir / name)
            rotate_checkpoints(
                output_dir=str(run_dir),
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )
        self._wait_for_all()
        if self.args.push_to_hub:
            super()._push_from_checkpoint(str(run_dir / name))

    def _save_more(self, folder: Path) -> None:
        """What a subclass adds to a checkpoint; called by every rank."""

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Later: the Hub uploads in the background, from the folder's final place."""

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the whole model to `output_dir`; files that are there are replaced at once, never half.

        With FSDP and sharded checkpoints the weights are gathered on rank 0 for it.
        """
        if _internal_call:
            super().save_model(output_dir, _internal_call=True)
            return
        target = Path(output_dir or str(self.args.output_dir))
        unfinished = target / UNFINISHED_FOLDER
        if self._writes_folders:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
        self._wait_for_all()
        if self.is_fsdp_enabled:
            self._save(str(unfinished), state_dict=self._fsdp_state())
        else:
            super().save_model(str(unfinished), _internal_call=True)
        self._wait_for_all()
        if self._writes_folders:
            _move_into(unfinished, target)
        if self.args.push_to_hub:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def restore_replaced_checkpoints(self) -> None:
        """Give a checkpoint its name back that a killed run was about to replace; called by every rank."""
        if self._writes_folders:
            _restore_replaced(Path(str(self.args.output_dir)))
        self._wait_for_all()

    def _fsdp_state(self) -> dict[str, torch.Tensor]:
        """The whole state on rank 0, adapters by their own names; every rank must call it."""
        if self.accelerator.is_fsdp2:
            gathered: dict[str, torch.Tensor] = self.accelerator.get_state_dict(self.model)
            return gathered
        with FullyShardedDataParallel.summon_full_params(self.model_wrapped, writeback=False):
            named = self.model_wrapped.named_parameters() if self.is_world_process_zero() else []
            return {name.replace("_fsdp_wrapped_module.", ""): p.detach().cpu().clone() for name, p in named}

    @property
    def _writes_folders(self) -> bool:
        """Rank 0, or the first rank of each machine with `save_on_each_node`."""
        return bool(self.args.should_save)

    def _name_best(self, unfinished: Path, final: Path) -> None:
        """The state of the run names its best checkpoint by the final place."""
        if self.state.best_model_checkpoint == str(unfinished):
            self.state.best_model_checkpoint = str(final)
            self.state.save_to_json(str(unfinished / "trainer_state.json"))

    def _wait_for_all(self) -> None:
        if torch.distributed.is_initialized():
            torch.distributed.barrier()


def _move_into(source: Path, target: Path) -> None:
    """Move files over, each at once; folders (a tokenizer may have one) are replaced."""
    _remove_other_weights(source, target)
    for path in sorted(source.iterdir()):
        if path.is_dir():
            shutil.rmtree(target / path.name, ignore_errors=True)
        os.replace(path, target / path.name)
    source.rmdir()


def _remove_other_weights(source: Path, target: Path) -> None:
    """Remove what an earlier run left in `target` and would be loaded in place of, or with, the files of `source`.

    Before those are moved: a run that is killed in between leaves no model rather than the old one.
    """
    kept = {path.name for path in source.iterdir()}
    stale = _ADAPTER_FILES if _is_base_of_adapter(target, source) else (*_ADAPTER_FILES, *_MODEL_FILES)
    for path in [path for pattern in stale for path in target.glob(pattern) if path.name not in kept]:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


def _is_base_of_adapter(folder: Path, adapter: Path) -> bool:
    """Whether the adapter is for the model in the folder: LoRA may be trained where its base model lies."""
    config = adapter / "adapter_config.json"
    base = json.loads(config.read_text()).get("base_model_name_or_path") if config.is_file() else None
    return base is not None and Path(base).resolve() == folder.resolve()


def _publish(unfinished: Path, final: Path) -> None:
    """Give a complete checkpoint its name; one of the same step, from an earlier run, makes room.

    The old one waits beside `.saving`, which the next save removes, until the new one has the name.
    """
    for path in unfinished.rglob("*"):
        _flush(path)
    replaced = final.parent / REPLACED_FOLDER
    if final.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        replaced.mkdir()
        os.replace(final, replaced / final.name)
    os.replace(unfinished, final)
    _flush(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)
    unfinished.parent.rmdir()


def _restore_replaced(run_dir: Path) -> None:
    """Undo a replacement that was cut off between its two renames."""
    replaced = run_dir / REPLACED_FOLDER
    for old in replaced.glob("checkpoint-*"):
        if not (run_dir / old.name).exists():
            os.replace(old, run_dir / old.name)
    shutil.rmtree(replaced, ignore_errors=True)


def _flush(path: Path) -> None:
    """To the disk, so that a power failure cannot leave a name without its contents."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
