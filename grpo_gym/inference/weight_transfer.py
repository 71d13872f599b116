"""vLLM's side of weight sync: engines for vLLM's native weight transfer that receive whole buckets.

`vf-vllm` names `WorkerExtension` on vLLM's command line, so that every worker process imports this module
and finds the two engines registered: "vf_nccl" (GPU to GPU) and "gloo" (CPU).

What crosses the wire: HTTP requests carry JSON (names, dtypes, shapes), the group carries the bytes of
tensors, its store carries addresses and NCCL's id as bytes. Nothing that is received from a trainer is
unpickled by these engines. vLLM itself still pickles between its own processes on one machine (and, on
several nodes, between them) when it starts; that traffic never includes a trainer. vLLM's stock "nccl" engine
unpickles the NCCL id and its "ipc" engine memory handles: neither is used here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from vllm.distributed.weight_transfer import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.model_executor.model_loader.reload.types import LayerReloadingInfo

from grpo_gym.inference.weight_sync_pipeline import half_of_the_threads
from grpo_gym.inference.weight_transfer_buckets import BucketSpec
from grpo_gym.inference.weight_transfer_group import GlooGroup, Rendezvous, TransferGroup, join_store
from grpo_gym.inference.weight_transfer_shared import map_shared


class _PackedLater(UnquantizedEmbeddingMethod):  # type: ignore[misc]
    """Of an embedding in the middle of a reload."""

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Not yet."""


class GlooEngine(NCCLWeightTransferEngine):
    """Receives buckets over gloo; the life cycle of an update is that of vLLM's NCCL engine.

    Works for models on a GPU too, by way of the CPU: NCCL refuses two processes on one GPU, which is what a
    colocated server and its trainer are.
    """

    init_info_cls = Rendezvous  # type: ignore[assignment]
    update_info_cls = BucketSpec  # type: ignore[assignment]
    _group: TransferGroup | None = None
    _loading: Sequence[LayerReloadingInfo] = ()

    def init_transfer_engine(self, init_info: Rendezvous) -> None:  # type: ignore[override]
        """Join the trainer's group; a group of an earlier trainer is left.

        Raises:
            RuntimeError: the trainer's store or group did not come up in time.
        """
        self.shutdown()
        config = self.parallel_config
        rank = config.data_parallel_index * config.world_size + config.rank + init_info.rank_offset
        self._group = self._join(rank, init_info)

    def _join(self, rank: int, meeting: Rendezvous) -> TransferGroup:
        return GlooGroup(join_store(meeting), rank, meeting)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one bucket and load it (vLLM's own method synchronizes a GPU that need not exist)."""
        self.receive_weights(self.parse_update_info(update_info))  # type: ignore[arg-type]

    def receive_weights(self, update_info: BucketSpec) -> None:  # type: ignore[override]
        """Receive one bucket and hand its parameters to the model's weight loader.

        Where the trainer runs on this machine the bytes are read from its shared memory, else broadcast into a
        fresh buffer: vLLM's layer-wise reload keeps the views until a layer is complete.

        Raises:
            RuntimeError: no trainer has connected, or the transfer broke off.
        """
        if self._group is None:
            raise RuntimeError("No trainer has connected: call /init_weight_transfer_engine first.")
        from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check

        num_bytes = update_info.offsets()[-1]
        if update_info.shared_path:
            flat = map_shared(update_info.shared_path, num_bytes)
        else:
            flat = torch.empty(num_bytes, dtype=torch.uint8, device=self._bucket_device())
            self._group.broadcast(flat)
        flat = flat.to(self.device)
        with disable_mtp_completeness_check(), half_of_the_threads():
            self.model.load_weights(update_info.unpack(flat))  # type: ignore[operator]
        if update_info.shared_path:
            copy_pending(self._loading, flat)

    def _bucket_device(self) -> torch.device:
        return torch.device("cpu")

    def start_weight_update(self) -> None:
        """Begin the reload; embeddings are not packed in it but once, at the end, and only those that are heads."""
        super().start_weight_update()
        self._loading = [get_layerwise_info(layer) for layer in self.model.modules()]
        for layer in self._embeddings():
            # Its own type only: quantized methods convert weights, which has to happen while the layer is loaded.
            if type(layer.quant_method) is UnquantizedEmbeddingMethod:
                layer.quant_method = _PackedLater()

    def finish_weight_update(self) -> None:
        """Finish the reload, and pack the LM head.

        On CPU the LM head multiplies with its own packed copy of the embedding. A tied head has no weight of
        its own to reload, so its copy would stay that of the old weights.
        """
        super().finish_weight_update()
        self._loading = []
        embeddings = self._embeddings()
        for layer in embeddings:
            if isinstance(layer.quant_method, _PackedLater):
                layer.quant_method = UnquantizedEmbeddingMethod()
        # Without a head of its own, an embedding is the head. Packing one that is only looked up would be wasted.
        for head in [layer for layer in embeddings if isinstance(layer, ParallelLMHead)] or embeddings:
            head.quant_method.process_weights_after_loading(head)

    def _embeddings(self) -> list[VocabParallelEmbedding]:
        return [module for module in self.model.modules() if isinstance(module, VocabParallelEmbedding)]

    def shutdown(self) -> None:
        """Leave the trainer's group."""
        if self._group is not None:
            self._group.close()
            self._group = None


def copy_pending(layers: Iterable[LayerReloadingInfo], flat: torch.Tensor) -> None:
    """Copy what layers that are not complete yet still hold of a bucket, before its memory is written again."""
    start, end = flat.data_ptr(), flat.data_ptr() + flat.numel()
    for layer in layers:
        for _, bound in layer.loaded_weights:
            for name, value in bound.arguments.items():
                if isinstance(value, torch.Tensor) and start <= value.data_ptr() < end:
                    bound.arguments[name] = value.clone()


class NcclEngine(GlooEngine):
    """Receives buckets over NCCL, from the trainer's GPU to the worker's."""

    def _join(self, rank: int, meeting: Rendezvous) -> TransferGroup:
        from grpo_gym.inference.weight_transfer_nccl import NcclGroup

        device = torch.device("cuda", torch.accelerator.current_device_index())
        return NcclGroup(join_store(meeting), rank, meeting, device)

    def _bucket_device(self) -> torch.device:
        return torch.device(self.device)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """Receive one bucket, load it, and wait until the GPU has done so."""
        super().update_weights(update_info)
        torch.accelerator.synchronize()


ENGINES: dict[str, type[GlooEngine]] = {"gloo": GlooEngine, "vf_nccl": NcclEngine}


def register() -> None:
    """Make the engines known to vLLM in this process; does nothing the second time."""
    for name, engine in ENGINES.items():
        if name not in WeightTransferEngineFactory._registry:
            WeightTransferEngineFactory.register_engine(name, engine)


register()


class WorkerExtension:
    """Empty: naming it makes every vLLM worker import this module."""
