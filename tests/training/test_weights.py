import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.training.weights import iter_full_weights, plain_name


def plain_model():
    return AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)


def randomize_adapters(model):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)


@pytest.mark.parametrize("bucket_bytes", [1, 2**20, 2**40])
def test_every_weight_of_the_checkpoint_comes_once(bucket_bytes):
    model = plain_model()
    weights = list(iter_full_weights(model, bucket_bytes))
    assert [name for name, _ in weights] == [name for name, _ in model.named_parameters()]
    assert all(torch.equal(weight, model.get_parameter(name)) for name, weight in weights)


@pytest.mark.parametrize("extra", [{}, {"use_rslora": True}, {"modules_to_save": ["norm"]}])
def test_lora_is_sent_as_the_merged_checkpoint_and_the_policy_is_not_touched(extra):
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **extra)
    model = get_peft_model(plain_model(), config)
    randomize_adapters(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    sent = dict(iter_full_weights(model))
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert not any(weight.requires_grad for weight in sent.values())
    merged = dict(model.merge_and_unload().named_parameters())
    assert set(sent) == set(merged)
    for name, weight in sent.items():
        assert torch.allclose(weight, merged[name], atol=1e-6), name


@pytest.mark.parametrize(
    ("wrapped", "plain"),
    [
        ("module.model.norm.weight", "model.norm.weight"),
        ("module.module.model.norm.weight", "model.norm.weight"),
        ("_orig_mod.model._fsdp_wrapped_module.norm.weight", "model.norm.weight"),
        (
            "base_model.model.model.layers.0.mlp.up_proj.base_layer.weight",
            "model.layers.0.mlp.up_proj.weight",
        ),
        ("base_model.model.model.norm.modules_to_save.default.weight", "model.norm.weight"),
        ("model.some_module.weight", "model.some_module.weight"),
    ],
)
def test_names_are_those_of_the_checkpoint(wrapped, plain):
    assert plain_name(wrapped) == plain
