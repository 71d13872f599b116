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

from grpo_gym.inference.cleanup import closed_on_error
from grpo_gym.inference.colocate import ColocatedServer
from grpo_gym.inference.generator import GenerationResult
from grpo_gym.inference.local_sampler import LocalSampler
from grpo_gym.inference.rollout_dtype import resolve_rollout_dtype
from grpo_gym.inference.sampler import Sampler
from grpo_gym.inference.server_api import ServerError
from grpo_gym.inference.vllm_client import VLLMSampler
from grpo_gym.inference.weight_sync import ServerWeightSync, WeightSyncError
from grpo_gym.training.adapter_weights import serialize_adapter
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


class LogprobCanary(Protocol):
    """Tells whether a server has the trainer's weights."""

    def trainer_logprobs(self, model: Any) -> list[float]:
        """The trainer's log-probs of a fixed text; called by every rank."""
        ...

    def check(self, url: str, ours: list[float]) -> None:
        """Raise WeightSyncError when a server's differ, ServerError when it does not answer."""
        ...


class LocalBackend:
    """Generation in this process (rank 0), with the trained model itself, or a copy of it.

    A copy is needed where the model is sharded, and where `rollout_dtype` is not the policy's own.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        accelerator: Accelerator,
        eos_token_ids: set[int],
        max_model_len: int,
        seed: int,
        generate_batch: Callable[..., list[GenerationResult]] | None = None,
        rollout_dtype: str | None = None,
    ) -> None:
        self._accelerator = accelerator
        dtype = resolve_rollout_dtype(rollout_dtype, model.dtype, accelerator.device)
        self._needs_copy = is_sharded(accelerator) or dtype != model.dtype
        self._copy: PreTrainedModel | None = None
        if self._needs_copy and accelerator.is_main_process:
            self._copy = _empty_copy(model).to(dtype)  # type: ignore[arg-type]
            if not is_sharded(accelerator):
                self._copy.to(accelerator.device)
        self._live: PreTrainedModel = model
        self.sampler: LocalSampler | None = None
        if accelerator.is_main_process:
            self.sampler = LocalSampler(
                self._generating_model,
                tokenizer,
                max_model_len=max_model_len,
                eos_token_ids=eos_token_ids,
                seed=seed,
                generate_batch=generate_batch,
            )

    def update(self, model: Any, version: int) -> None:
        """The live model needs no copying; otherwise the weights are gathered into rank 0's copy."""
        self._live = self._accelerator.unwrap_model(model)
        if self._needs_copy:
            self._fill_copy(model)
        if self.sampler is not None:
            self.sampler.policy_version = version

    def close(self) -> None:
        """Nothing was started."""

    def _generating_model(self) -> PreTrainedModel:
        return self._copy if self._copy is not None else self._live

    def _fill_copy(self, model: Any) -> None:
        """Gather the weights on every rank; rank 0 keeps them.

        Raises:
            RuntimeError: a parameter of the copy got none.
        """
        targets = {} if self._copy is None else dict(self._copy.named_parameters(remove_duplicate=False))
        filled: set[int] = set()
        for name, weight in iter_full_weights(model):
            # Tied weights come once, under any of their names.
            if name in targets and id(targets[name]) not in filled:
                targets[name].data.copy_(weight)
                filled.add(id(targets[name]))
        empty = [name for name, target in targets.items() if id(target) not in filled]
        if empty:
            raise RuntimeError(
                f"{len(empty)} parameters of the model that generates got no weights, the first is {empty[0]!r}: they "
                "have other names in the trained model. Sample with use_vllm=true, or leave out rollout_dtype."
            )


class ServerBackend:
    """Generation on vf-vllm servers that run elsewhere.

    A server that dies is left out, and taken back at the first weight sync after it was started again: it is
    sampled from once the canary has found the current weights on it.

    Args:
        urls: base URLs of independent servers.
        model_name: the name the servers serve.
        accelerator: of the trainer; only the main process talks to the servers.
        request_timeout: seconds one completion may take.
        server_timeout: seconds to wait at a weight sync for a server to come back, when all are gone.
        canary: compares log-probs after every sync.
        adapter: a `LoraConfig` when only the LoRA adapter is sent; None sends whole weights.
        takeover: use servers that another trainer holds.
    """

    def __init__(
        self,
        urls: Sequence[str],
        model_name: str,
        accelerator: Accelerator,
        request_timeout: float,
        server_timeout: float,
        canary: LogprobCanary,
        adapter: Any | None = None,
        takeover: bool = False,
    ) -> None:
        self._adapter = adapter
        self._server_timeout = server_timeout
        self._canary = canary
        self.sampler: VLLMSampler | None = None
        self._sync: ServerWeightSync | None = None
        if accelerator.is_main_process:
            self._sync = ServerWeightSync(urls)
            # Where one cannot be used none stays held, so that another try is not refused.
            with closed_on_error(self._sync.close):
                self._connect(self._sync, accelerator.device, takeover)
                self.sampler = VLLMSampler(urls, model=model_name, request_timeout=request_timeout)

    def _connect(self, sync: ServerWeightSync, device: torch.device, takeover: bool) -> None:
        """Hold the servers and see whether they can be used."""
        sync.connect(device, force=takeover)
        if self._adapter is not None:
            sync.check_adapter(self._adapter.r, self._adapter.target_modules)

    def update(self, model: Any, version: int) -> None:
        """Push the weights and check with the canary that the servers' log-probs are the trainer's.

        Raises:
            WeightSyncError: no server is left, or one serves other weights than it was given.
        """
        back: list[str] = []
        if self._sync is not None:
            back = self._sync.refresh(self._server_timeout)
        self._send(model, version)
        ours = self._canary.trainer_logprobs(model)
        if self._sync is not None:
            self._use_servers(self._sync, version, back, ours)

    def _send(self, model: Any, version: int) -> None:
        """Gather on every rank, send from rank 0."""
        if self._adapter is not None:
            adapter = serialize_adapter(model, self._adapter)
            if self._sync is not None:
                self._sync.push_adapter(adapter, version)
            return
        weights = iter_full_weights(model)
        if self._sync is not None:
            self._sync.push(weights, version)
            return
        for _ in weights:  # take part in the gathering that rank 0 sends from
            pass

    def _use_servers(self, sync: ServerWeightSync, version: int, back: list[str], ours: list[float]) -> None:
        """Sample from the servers that took the weights; those that came `back` must show it first."""
        assert self.sampler is not None
        self.sampler.policy_version = version
        self.sampler.use({url: start for url, start in sync.instances.items() if url not in back})
        for url in list(sync.instances):
            try:
                self._canary.check(url, ours)
            except ServerError as error:
                sync.drop(url, str(error))
            except WeightSyncError as error:
                if url not in back:
                    raise
                sync.drop(url, str(error))
        self.sampler.use(sync.instances)

    def close(self) -> None:
        """Leave the weight-transfer group; the servers go on."""
        if self._sync is not None:
            self._sync.close()


class ColocatedBackend(ServerBackend):
    """A `ServerBackend` whose server this process starts on its own device, and stops."""

    def __init__(self, server: ColocatedServer | None, **kwargs: Any) -> None:
        self._server = server
        with closed_on_error(self._stop_server):
            super().__init__(**kwargs)

    def close(self) -> None:
        """Leave the group and stop the server."""
        try:
            super().close()
        finally:
            self._stop_server()

    def _stop_server(self) -> None:
        if self._server is not None:
            self._server.stop()


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether no rank holds the whole model (ZeRO-3, FSDP)."""
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:
        return bool(plugin.zero_stage == 3)
    return str(accelerator.distributed_type).endswith("FSDP")


def _empty_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A model of the same architecture, without adapters, with room for the gathered weights."""
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()  # type: ignore[operator]
    config = copy.deepcopy(model.config)
    with torch.device("cpu"):
        return type(model)(config).eval()
