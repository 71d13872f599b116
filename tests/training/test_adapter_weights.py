"""What is sent as an adapter is what PEFT would have saved."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from grpo_gym.inference.adapter_endpoint import write_adapter
from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.training.adapter_weights import (
    adapted_modules,
    adapter_config_of,
    check_adapter,
    serialize_adapter,
)

LORA = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", use_rslora=True)


def plain_model():
    return AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)


@pytest.fixture
def policy():
    model = get_peft_model(plain_model(), LORA)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def test_the_file_is_that_of_peft(policy, tmp_path):
    policy.save_pretrained(tmp_path / "peft")
    write_adapter(serialize_adapter(policy, adapter_config_of(policy)), tmp_path / "sent")
    ours, theirs = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("sent", "peft"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_model_with_the_sent_adapter_is_the_policy(policy, tmp_path):
    write_adapter(serialize_adapter(policy, adapter_config_of(policy)), tmp_path / "sent")
    served = PeftModel.from_pretrained(plain_model(), tmp_path / "sent").eval()
    ids = torch.arange(20, 60)[None]
    with torch.no_grad():
        assert torch.equal(served(ids).logits, policy(ids).logits)
        assert not torch.equal(served(ids).logits, plain_model().eval()(ids).logits)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["norm"]}, "modules_to_save"),
        ({"alpha_pattern": {"q_proj": 3}}, "alpha_pattern"),
        ({"bias": "all"}, "bias"),
    ],
)
def test_what_vllm_cannot_serve_is_refused_before_training(options, named):
    with pytest.raises(ValueError, match=rf"{named}; use lora_sync='merge'"):
        check_adapter(LoraConfig(r=4, target_modules=["q_proj"], **options), {"q_proj"})
    check_adapter(LoraConfig(r=4, target_modules=["q_proj"]), {"q_proj"})


def test_no_adapter_is_refused():
    with pytest.raises(ValueError, match="needs a LoraConfig"):
        check_adapter(adapter_config_of(plain_model()), set())


def test_modules_are_named_even_when_they_were_given_as_a_pattern():
    model = get_peft_model(plain_model(), LoraConfig(r=2, target_modules=r".*\.(q|down)_proj"))
    assert adapted_modules(model) == {"q_proj", "down_proj"}
    with pytest.raises(ValueError, match="lm_head or embed_tokens"):
        check_adapter(adapter_config_of(model), {"lm_head", "q_proj"})


def test_a_body_that_is_no_adapter_is_refused(tmp_path):
    for body in (b"", b"garbage that is long enough", (2).to_bytes(8, "little") + b"{}"):
        with pytest.raises(ValueError, match="not a LoRA adapter"):
            write_adapter(body, tmp_path)
