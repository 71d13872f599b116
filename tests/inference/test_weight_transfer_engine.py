"""vLLM's layer-wise reload fed from shared memory that is written again while layers are incomplete."""

import pytest
import torch
from torch import nn

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.model_executor.model_loader.reload.layerwise import (
    get_layerwise_info,
    initialize_layerwise_reload,
    record_metadata_for_reloading,
)

from grpo_gym.inference.weight_transfer import GlooEngine, copy_pending
from grpo_gym.inference.weight_transfer_buckets import iter_buckets
from grpo_gym.inference.weight_transfer_shared import shared_buffer


class Toy(nn.Module):
    """Three layers of two parameters, loaded by name as vLLM's models are."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(16, 24) for _ in range(3))
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def load_weights(self, weights):
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        parameters = dict(self.named_parameters())
        for name, weight in weights:
            loader = getattr(parameters[name], "weight_loader", default_weight_loader)
            loader(parameters[name], weight)


def engine_of(model):
    engine = GlooEngine.__new__(GlooEngine)
    engine.model, engine.device, engine._group = model, torch.device("cpu"), object()
    engine.model_config = None
    return engine


@pytest.mark.parametrize("bucket_bytes", [512, 1024, 2000, 10**6])
def test_weights_read_from_shared_memory_arrive_whole(bucket_bytes):
    """The buffer is scribbled over after every bucket, as the trainer does with the next one."""
    model = Toy()
    storages = [parameter.data_ptr() for parameter in model.parameters()]
    record_metadata_for_reloading(model)
    new = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    engine = engine_of(model)
    engine.start_weight_update()
    for spec, flat in iter_buckets(new.items(), bucket_bytes, allocate=shared_buffer, num_buffers=2):
        assert spec.shared_path
        engine.receive_weights(spec)
        flat.fill_(255)
    engine.finish_weight_update()
    loaded = dict(model.named_parameters())
    assert all(torch.equal(loaded[name], weight) for name, weight in new.items())
    assert [parameter.data_ptr() for parameter in model.parameters()] == storages


def test_without_the_copies_the_scribble_would_arrive(monkeypatch):
    """The test above can fail: a layer whose two parameters lie in different buckets is loaded late."""
    monkeypatch.setattr("grpo_gym.inference.weight_transfer.copy_pending", lambda layers, flat: None)
    with pytest.raises(AssertionError):
        test_weights_read_from_shared_memory_arrive_whole(512)


def test_only_what_lies_in_the_bucket_is_copied():
    model = Toy()
    record_metadata_for_reloading(model)
    initialize_layerwise_reload(model)
    flat, elsewhere = torch.zeros(16 * 24 * 4, dtype=torch.uint8), torch.ones(24, 16)
    model.load_weights(
        [("layers.0.weight", flat.view(torch.float32).view(24, 16)), ("layers.1.weight", elsewhere)]
    )
    layers = [get_layerwise_info(model.layers[i]) for i in (0, 1)]
    copy_pending(layers, flat)
    held = [layer.loaded_weights[0][1].arguments["loaded_weight"] for layer in layers]
    assert held[0].data_ptr() != flat.data_ptr()
    assert held[1] is elsewhere
