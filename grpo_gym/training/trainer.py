"""`GRPOTrainer`: a Verifiers environment in, a better model out.

transformers' `Trainer` runs the loop, schedules, checkpoints and logs. What GRPO adds is here: where the
rollouts of a step come from, and a `training_step` that runs its own passes over packed micro-batches, so
that one step of the Trainer is one optimizer step, whatever its size.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import verifiers as vf
from torch import Tensor, nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin, Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput

from grpo_gym.evaluation.during_training import (
    baseline_only_once,
    evaluation_params,
    record_evaluation,
    wants_final_evaluation,
    write_train_results,
)
from grpo_gym.inference.backends import is_sharded
from grpo_gym.inference.cleanup import closed_on_error
from grpo_gym.reporting.callbacks import add_reporting_callbacks
from grpo_gym.reporting.completions import print_completions, write_completions
from grpo_gym.reporting.progress import RolloutProgressCallback
from grpo_gym.reporting.summary import print_evaluation, print_where_things_are
from grpo_gym.rollouts.manager import RolloutManager
from grpo_gym.rollouts.source import StepRollouts
from grpo_gym.training import model_loading
from grpo_gym.training.checkpoints import AtomicCheckpoints
from grpo_gym.training.config import GRPOConfig
from grpo_gym.training.death_watch import watch_other_machines
from grpo_gym.training.launch_checks import check_sharding
from grpo_gym.training.logprobs import check_head_can_be_sharded
from grpo_gym.training.metrics import MetricsBuffer, Reduction, rollout_metrics
from grpo_gym.training.model_files import check_adapters_can_be_saved, save_model_files
from grpo_gym.training.policy_loss import PolicyLoss
from grpo_gym.training.preemption import PreemptionCallback
from grpo_gym.training.preflight import Preflight
from grpo_gym.training.reference import make_reference, place_reference
from grpo_gym.training.renamed_weights import RenamedWeights
from grpo_gym.training.resume import choose_checkpoint, load_rollout_state, save_rollout_state
from grpo_gym.training.rollout_setup import build_rollouts
from grpo_gym.training.step_batch import StepBatch, make_step_batch
from grpo_gym.vision.loading import freeze_parts


class GRPOTrainer(AtomicCheckpoints, RenamedWeights, Trainer):
    """Trains a causal language model, or a vision-language model, on a Verifiers environment with GRPO.

    Args:
        model: a name or path, "tiny" for the embedded model, or a ready model.
        env: any Verifiers environment.
        args: settings; the defaults when None.
        processing_class: the tokenizer (of a vision-language model the processor); the model's own when None.
        peft_config: a peft configuration, for LoRA and its kin.
        callbacks: more transformers callbacks.
        optimizers: ready optimizer and schedule, as in `Trainer`.

    Raises:
        ValueError: settings, data, server and model do not fit together; raised before weights are loaded.
    """

    args: GRPOConfig

    def __init__(
        self,
        model: str | PreTrainedModel,
        env: vf.Environment,
        args: GRPOConfig | None = None,
        processing_class: PreTrainedTokenizerBase | ProcessorMixin | None = None,
        peft_config: Any | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        args = _one_batch_per_step(args or GRPOConfig())
        self.env = env
        self.preflight = Preflight(model, env, args, processing_class)
        watch_other_machines()  # before weights are loaded: that is where ranks run out of memory
        policy = model_loading.load_model(model, args)
        freeze_parts(policy, args.freeze_vision_tower, args.freeze_multimodal_projector)
        reference = make_reference(policy, args.beta, peft_config is not None, args.model_init_kwargs)
        policy = model_loading.apply_peft(policy, peft_config, args)
        model_loading.disable_dropout(policy)
        self.policy_loss = PolicyLoss(policy, reference, args, self.preflight.renderer)
        self.rollouts: RolloutManager | None = None
        self.last_groups: StepRollouts | None = None
        self._batch: StepBatch | None = None
        self._buffer = MetricsBuffer()
        super().__init__(
            model=policy,
            args=args,
            eval_dataset=self.preflight.eval_rows,
            processing_class=self.preflight.processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        check_sharding(args, self.is_deepspeed_enabled, self.is_fsdp_enabled)
        if is_sharded(self.accelerator):
            check_head_can_be_sharded(policy)
        check_adapters_can_be_saved(self)
        self.model_accepts_loss_kwargs = False
        self._replace_progress_callbacks()
        self.preemption = PreemptionCallback()
        self.add_callback(self.preemption)
        self._place_reference()

    # ---- the hooks of transformers' Trainer -------------------------------------------------------------

    def train(  # type: ignore[override]
        self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any
    ) -> TrainOutput:
        """Train, evaluate before and after, and save the model to `output_dir`.

        SIGUSR1 and SIGTERM end it after the current step, with a checkpoint and `Preempted` (a SystemExit).
        """
        self.restore_replaced_checkpoints()
        checkpoint = choose_checkpoint(resume_from_checkpoint, str(self.args.output_dir))
        with self.preemption.listening(), self._open_rollouts():
            if checkpoint:
                load_rollout_state(self, checkpoint)
            with baseline_only_once(self.args, checkpoint):
                output = super().train(resume_from_checkpoint=checkpoint, **kwargs)
            self.preemption.raise_if_stopped(self)
            if wants_final_evaluation(self.args, self.state):
                self.evaluate()
        write_train_results(self, output)
        self.save_model()
        self.save_state()
        print_where_things_are(self)
        return output

    def get_train_dataloader(self) -> DataLoader:
        """One item per optimizer step: prompts come from the prompt stream, which checkpoints know."""
        steps: Any = range(self.preflight.steps_per_epoch)
        return DataLoader(steps, batch_size=1, collate_fn=_step_number)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Nothing, when the run went on from its last step: transformers would take one step more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def training_step(
        self, model: nn.Module, inputs: dict[str, Any], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Forward and backward of one whole optimizer step; returns this rank's loss."""
        model.train()
        batch = self._current_batch(model)
        start = time.perf_counter()
        reduction = Reduction()
        loss = self._forward_backward(model, batch, reduction)
        self._buffer.add(reduction.reduce(self.accelerator))
        self._collect_metrics(time.perf_counter() - start)
        return loss

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: list[str] | None = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Sample the fixed held-out problems with the policy as it is now.

        In process the seeds are the same every time, too; a server samples unseeded.
        """
        params = evaluation_params(self.args)
        with self._open_rollouts() as rollouts:
            rollouts.sync(self.model_wrapped, self.state.global_step)
            groups = rollouts.evaluate(self.preflight.eval_rows, self.args.eval_num_samples, params)
        metrics = record_evaluation(self, groups, metric_key_prefix)
        if self.is_world_process_zero():
            problems = f"{len(groups)} {'held-out' if self.preflight.has_eval_set else 'TRAINING'} problems"
            print_evaluation(metrics, self.state.global_step, f"{problems} x {self.args.eval_num_samples}")
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add what was collected since the last training log."""
        if "loss" in logs:
            logs = {**logs, **self._buffer.drain()}
        super().log(logs, start_time)

    def _save_more(self, folder: Path) -> None:
        save_model_files(self, folder)
        save_rollout_state(self, folder)

    @contextlib.contextmanager
    def _open_rollouts(self) -> Iterator[RolloutManager]:
        """The rollout side, built when needed and closed by whoever built it."""
        if self.rollouts is not None and self.rollouts.is_open:
            yield self.rollouts
            return
        self.rollouts = build_rollouts(self)
        with closed_on_error(self.rollouts.close):
            yield self.rollouts
        self.rollouts.close()

    # ---- one optimizer step -----------------------------------------------------------------------------

    def _current_batch(self, model: nn.Module) -> StepBatch:
        """New rollouts every `num_iterations` steps, the same ones in between."""
        assert self.rollouts is not None
        if self._batch is not None and self.state.global_step % self.args.num_iterations != 0:
            self.rollouts.sync_seconds = 0.0
            return self._batch
        self.rollouts.sync(model, self.state.global_step)
        step = self.rollouts.next_step()
        self.use_rollouts(step)
        self._report_rollouts(step)
        assert self._batch is not None
        return self._batch

    @property
    def step_batch(self) -> StepBatch | None:
        """The rollouts of the current step with their advantages; None before the first."""
        return self._batch

    def use_rollouts(self, step: StepRollouts) -> None:
        """Train on these rollouts from now on."""
        self.last_groups = step
        self.policy_loss.new_rollouts()
        self._batch = make_step_batch(
            step.groups,
            self.args.loss_type,
            str(self.args.scale_rewards),
            self.args.max_completion_length,
            self.args.mask_truncated_completions,
            self.args.per_device_train_batch_size,
        )

    def _forward_backward(self, model: nn.Module, batch: StepBatch, reduction: Reduction) -> Tensor:
        world_size = self.accelerator.num_processes
        packs = self.policy_loss.micro_batches(batch, self.accelerator.process_index, world_size)
        total = torch.zeros((), device=self.args.device)
        for index, pack in enumerate(packs):
            is_last = index == len(packs) - 1
            with self._gradient_sync(model, is_last), self.compute_loss_context_manager():
                loss = self.policy_loss(model, pack, batch, reduction)
                # DDP, ZeRO and FSDP average gradients over ranks; the loss is a sum over them.
                self.accelerator.backward(loss * world_size)
            total += loss.detach()
        return total * world_size

    def _gradient_sync(self, model: nn.Module, is_last: bool) -> contextlib.AbstractContextManager:
        """Communicate gradients with the last micro-batch of the step only."""
        self.accelerator.gradient_state._set_sync_gradients(is_last)
        if is_last or self.is_deepspeed_enabled:
            return contextlib.nullcontext()
        return self.accelerator.no_sync(model)

    # ---- reporting --------------------------------------------------------------------------------------

    def _report_rollouts(self, step: StepRollouts) -> None:
        if not self.is_world_process_zero() or not self.args.log_completions:
            return
        number = self.state.global_step
        write_completions(str(self.args.output_dir), number, step.groups)
        if self.args.num_completions_to_print and number % self.args.log_completions_steps == 0:
            print_completions(step.groups, number, self.args.num_completions_to_print)

    def _collect_metrics(self, train_seconds: float) -> None:
        """Metrics of the rollouts trained on, and where the time went."""
        assert self.rollouts is not None
        assert self.last_groups is not None
        step = self.last_groups
        rollout_seconds = step.seconds / self.args.num_iterations
        seconds = train_seconds + rollout_seconds + self.rollouts.sync_seconds
        tokens = step.num_completion_tokens / self.args.num_iterations
        self._buffer.add({**rollout_metrics(step.groups), **step.metrics()})
        self._buffer.add(
            {
                "time/rollout": rollout_seconds,
                "time/train": train_seconds,
                "time/sync": self.rollouts.sync_seconds,
                "tokens_per_second": tokens / seconds,
                "policy_version": float(self.rollouts.version or 0),
                "prompts/skipped_too_long": float(self.preflight.stream.num_skipped),
            }
        )

    # ---- construction -----------------------------------------------------------------------------------

    def _replace_progress_callbacks(self) -> None:
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        if not self.args.disable_tqdm:
            self.add_callback(RolloutProgressCallback())
        add_reporting_callbacks(self)

    def _place_reference(self) -> None:
        reference = self.policy_loss.reference
        if reference is None:
            return
        self.policy_loss.reference = place_reference(reference, self.accelerator)


def _one_batch_per_step(args: GRPOConfig) -> GRPOConfig:
    """The Trainer's own accumulation is off: `training_step` accumulates over packed micro-batches itself."""
    return dataclasses.replace(
        args, gradient_accumulation_steps=1, completions_per_step=args.completions_per_step
    )


def _step_number(items: list[int]) -> dict[str, int]:
    return {"step_in_epoch": items[0]}
