"""After a weight sync, the server's log-probs of a fixed text must agree with the trainer's.

Served text can look fine with stale weights (a tied LM head that kept its packed copy was off by 0.48
nats), so a sync counts as done only when the log-probs agree.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from grpo_gym.inference.server_api import data_parallel_size, server_logprobs
from grpo_gym.inference.weight_sync import check_canary
from grpo_gym.training.logprobs import completion_logprobs
from grpo_gym.training.packing import PackInput, pack_groups

if TYPE_CHECKING:
    from grpo_gym.training.preflight import Preflight
    from grpo_gym.training.trainer import GRPOTrainer

_MAX_TOKENS = 64


class Canary:
    """Compares log-probs of the first training prompt on a server and in the trainer."""

    def __init__(self, trainer: GRPOTrainer) -> None:
        self._trainer = trainer
        preflight = trainer.preflight
        self.token_ids = _text_ids(preflight)[:_MAX_TOKENS]
        tolerance = trainer.args.vllm_canary_tolerance
        on_gpu = trainer.args.device.type == "cuda"
        self.tolerance = (0.15 if on_gpu else 0.02) if tolerance is None else tolerance
        self.last_difference = 0.0

    def check(self, url: str, ours: list[float]) -> None:
        """Compare every replica of a server with `trainer_logprobs`.

        Raises:
            WeightSyncError: the mean absolute difference is above `vllm_canary_tolerance`.
            ServerError: the server does not answer.
        """
        # The request waits behind the rollouts that the server kept during the sync.
        timeout = self._trainer.args.vllm_request_timeout
        name = self._trainer.preflight.served_model_name
        for rank in _replicas(url):
            theirs = server_logprobs(url, name, self.token_ids, data_parallel_rank=rank, timeout=timeout)
            self.last_difference = check_canary(theirs, ours, self.tolerance)

    @torch.no_grad()
    def trainer_logprobs(self, model: Any) -> list[float]:
        """Log-probs of every token after the first, at temperature 1; called by every rank."""
        text = PackInput(prompt_ids=self.token_ids[:1], completions=[(0, self.token_ids[1:])])
        (pack,) = pack_groups([text], max_tokens=len(self.token_ids), shared_prefix=False)
        was_training = model.training
        model.eval()
        with self._trainer.compute_loss_context_manager():
            logprobs, _ = completion_logprobs(
                model, pack.to(self._trainer.args.device), temperature=1.0, chunk_size=_MAX_TOKENS
            )
        model.train(was_training)
        return logprobs.tolist()


def _text_ids(preflight: Preflight) -> list[int]:
    renderer = preflight.renderer
    return renderer.without_images(renderer.prompt_ids(preflight.first_row["prompt"]))


def _replicas(url: str) -> Sequence[int | None]:
    """Data-parallel ranks of a server, each of which must have the new weights; None: it has but one."""
    size = data_parallel_size(url)
    return range(size) if size > 1 else [None]
