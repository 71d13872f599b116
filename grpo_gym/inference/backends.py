"""The three places tokens come from, behind one interface: a server, a colocated server, this process.

Every rank has a backend, because gathering the weights is a collective under ZeRO-3 and FSDP; only
rank 0 has a sampler.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from grpo_gym.inference.colocate import ColocatedServer
from grpo_gym.inference.local_sampler import LocalSampler
from grpo_gym.inference.sampler import Sampler
from grpo_gym.inference.vllm_client import VLLMSampler
from grpo_gym.inference.weight_sync import ServerWeightSync
from grpo_gym.training.weights import iter_full_weights


class Backend(Protocol):
    """Samples with the newest policy it was given."""

    @property
    def sampler(self) -> Sampler | None:
        """The sampler on rank 0, None on other ranks."""
        ...

    def update(self, model: Any, version: int) -> None:
        """Sample with the weights of `model` from now on; called by every rank."""
        ...

    def close(self) -> None:
        """Stop servers and release connections that this backend started."""
        ...


class LocalBackend:
    """Generation in this process (rank 0), with the trained model itself or, where it is sharded, a copy of it."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        eos_token_ids: set[int],
        max_model_len: int,
        seed: int,
    ) -> None:
        self._accelerator = accelerator
        self._copy = _empty_copy(model) if is_sharded(accelerator) and accelerator.is_main_process else None
        self._live: PreTrainedModel = model
        self.sampler: LocalSampler | None = None
        if accelerator.is_main_process:
            self.sampler = LocalSampler(
                self._generating_model,
                tokenizer,
                max_model_len=max_model_len,
                eos_token_ids=eos_token_ids,
                seed=seed,
            )

    def update(self, model: Any, version: int) -> None:
        """The live model needs no copying; a sharded one is gathered into rank 0's copy."""
        self._live = self._accelerator.unwrap_model(model)
        if is_sharded(self._accelerator):
            self._fill_copy(model)
        if self.sampler is not None:
            self.sampler.policy_version = version

    def close(self) -> None:
        """Nothing was started."""

    def _generating_model(self) -> PreTrainedModel:
        return self._copy if self._copy is not None else self._live

    def _fill_copy(self, model: Any) -> None:
        targets = dict(self._copy.named_parameters()) if self._copy is not None else {}
        for name, weight in iter_full_weights(model):
            if name in targets:
                targets[name].data.copy_(weight)


class ServerBackend:
    """Generation on vf-vllm servers that run elsewhere.

    Args:
        urls: base URLs of independent servers.
        model_name: the name the servers serve.
        device: this rank's device, for the weight transfer.
        canary: after every sync, called with a URL; raises when the server's log-probs are not the trainer's.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model_name: str,
        accelerator: Accelerator,
        request_timeout: float,
        canary: Callable[[str, Any], None],
    ) -> None:
        self._accelerator = accelerator
        self._urls = list(urls)
        self._canary = canary
        self.sampler: VLLMSampler | None = None
        self._sync: ServerWeightSync | None = None
        if accelerator.is_main_process:
            self.sampler = VLLMSampler(self._urls, model=model_name, request_timeout=request_timeout)
            self._sync = ServerWeightSync(self._urls)
            self._sync.connect(accelerator.device)

    def update(self, model: Any, version: int) -> None:
        """Push the weights and check with the canary that the servers' log-probs are the trainer's."""
        weights = iter_full_weights(model)
        if self._sync is None:
            for _ in weights:  # take part in the gathering that rank 0 sends from
                pass
        else:
            assert self.sampler is not None
            self._sync.push(weights, version)
            self.sampler.policy_version = version
        for url in self._urls:
            self._canary(url, model)

    def close(self) -> None:
        """Leave the weight-transfer group; the servers go on."""
        if self._sync is not None:
            self._sync.close()


class ColocatedBackend(ServerBackend):
    """A `ServerBackend` whose server this process starts on its own device, and stops."""

    def __init__(self, server: ColocatedServer | None, **kwargs: Any) -> None:
        self._server = server
        super().__init__(**kwargs)

    def close(self) -> None:
        """Leave the group and stop the server."""
        try:
            super().close()
        finally:
            if self._server is not None:
                self._server.stop()


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no rank holds the whole model (ZeRO-3, FSDP)."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        return bool(plugin.zero_stage == 3)
    return str(accelerator.distributed_type).endswith("FSDP")


def _empty_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same architecture with room for the gathered weights."""
    config = copy.deepcopy(model.config)
    with torch.device("cpu"):
        return type(model)(config).eval()
