"""The copy that generates in this process where the policy itself cannot."""

from types import SimpleNamespace

import pytest
import torch

from grpo_gym.inference import backends
from grpo_gym.inference.backends import LocalBackend
from grpo_gym.training.weights import iter_full_weights
from tests.inference.conftest import make_model


def make_backend(model):
    accelerator = SimpleNamespace(
        is_main_process=True,
        device=torch.device("cpu"),
        state=SimpleNamespace(deepspeed_plugin=None),
        distributed_type="NO",
        unwrap_model=lambda model: model,
    )
    return LocalBackend(
        model, None, accelerator, eos_token_ids={1}, max_model_len=64, seed=0, rollout_dtype="bfloat16"
    )


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_copy_has_the_policys_weights(is_tied):
    model = make_model(tie_word_embeddings=is_tied)
    backend = make_backend(model)
    backend.update(model, 1)
    copy = backend._generating_model()
    assert copy is not model
    for name, weight in model.state_dict().items():
        assert torch.equal(copy.state_dict()[name], weight.bfloat16()), name


def test_tied_weights_may_come_under_any_of_their_names(monkeypatch):
    def renamed(model):
        for name, weight in iter_full_weights(model):
            yield name.replace("model.embed_tokens", "lm_head"), weight

    monkeypatch.setattr(backends, "iter_full_weights", renamed)
    model = make_model(tie_word_embeddings=True)
    backend = make_backend(model)
    backend.update(model, 1)
    assert torch.equal(backend._generating_model().lm_head.weight, model.lm_head.weight.bfloat16())


def test_a_parameter_without_weights_is_an_error(monkeypatch):
    """It would be sampled from as it was initialized, at random."""

    def renamed(model):
        for name, weight in iter_full_weights(model):
            yield name.replace("model.layers.1.", "model.blocks.1."), weight

    monkeypatch.setattr(backends, "iter_full_weights", renamed)
    model = make_model()
    backend = make_backend(model)
    with pytest.raises(RuntimeError, match=r"9 parameters .* got no weights, .*'model\.layers\.1\.self_attn"):
        backend.update(model, 1)
