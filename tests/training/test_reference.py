"""The reference of the KL term is the policy that training starts from, wherever its weights are."""

import shutil

import pytest
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.training import reference
from tests.end_to_end.launching import launch


@pytest.fixture
def two_models(tmp_path):
    """A folder with a model of one layer, and the embedded one in its subfolder."""
    small = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=32, num_attention_heads=2
    )
    LlamaForCausalLM(small).save_pretrained(tmp_path)
    shutil.copytree(TINY_MODEL_PATH, tmp_path / "sub")
    return tmp_path


def test_under_zero3_the_reference_is_the_policy(two_models):
    """Loaded from a subfolder; and a ready model whose weights are no longer those of its files."""
    launch("configs/zero3.yaml", 1, "tests/training/reference_under_zero3.py", two_models, timeout=150)


def test_a_model_without_files_is_refused_under_zero3(monkeypatch):
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    model.config._name_or_path = ""
    next(model.parameters()).ds_id = 0
    monkeypatch.setattr(reference, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(ValueError, match="save_pretrained it and pass the folder"):
        reference.make_reference(model, 0.1, uses_peft=False)
