"""gradient_checkpointing, torch_dtype, attn_implementation and where a model comes from: each really takes effect."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.models.llama import modeling_llama

from grpo_gym import GRPOTrainer
from grpo_gym.inference.colocate import source_flags
from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.training import model_loading
from tests.training.test_trainer import config, legs_env


class KeepsGradients(GRPOTrainer):
    """Remembers the gradients of its last step and how often a decoder layer ran for them."""

    def training_step(self, model, inputs, num_items_in_batch=None):
        self._current_batch(model)  # sampling, which runs the layers too, is over before counting starts
        calls = []
        hook = self.model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
        batch = self._batch
        self._current_batch = lambda model: batch
        loss = super().training_step(model, inputs, num_items_in_batch)
        hook.remove()
        del self._current_batch
        self.layer_calls = len(calls)
        self.gradients = {name: p.grad.clone() for name, p in self.model.named_parameters()}
        return loss


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_gradient_checkpointing_is_on_and_changes_no_gradient(tmp_path, shared_prefix):
    runs = {}
    for checkpointing in (False, True):
        args = config(
            tmp_path / str(checkpointing),
            max_steps=1,
            gradient_checkpointing=checkpointing,
            shared_prefix=shared_prefix,
        )
        runs[checkpointing] = KeepsGradients("tiny", legs_env(), args)
        runs[checkpointing].train()
    assert runs[True].model.is_activation_checkpointing
    assert not runs[False].model.is_activation_checkpointing
    assert runs[True].layer_calls == 2 * runs[False].layer_calls  # once more in the backward pass
    plain, checkpointed = runs[False].gradients, runs[True].gradients
    assert any(gradient.abs().max() > 0 for gradient in plain.values())
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-5, atol=1e-7)


def test_sampling_between_checkpointed_steps_is_still_the_policys(tmp_path):
    """Checkpointed layers drop the cache in training mode; the in-process generator must not lose it."""
    trainer = GRPOTrainer("tiny", legs_env(), config(tmp_path, max_steps=2, gradient_checkpointing=True))
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["sampling/sampling_logp_difference/max"] < 1e-3 for entry in steps] == [True, True]


@pytest.mark.parametrize(("torch_dtype", "expected"), [(None, "float32"), ("bfloat16", "bfloat16")])
def test_weights_are_in_the_dtype_asked_for_and_are_saved_in_it(tmp_path, torch_dtype, expected):
    trainer = GRPOTrainer("tiny", legs_env(), config(tmp_path, max_steps=1, torch_dtype=torch_dtype))
    assert {p.dtype for p in trainer.model.parameters()} == {getattr(torch, expected)}
    trainer.train()
    assert {p.dtype for p in trainer.model.parameters()} == {getattr(torch, expected)}
    with safe_open(Path(trainer.args.output_dir) / "model.safetensors", "pt") as saved:
        assert {saved.get_tensor(name).dtype for name in saved.keys()} == {getattr(torch, expected)}  # noqa: SIM118


@pytest.mark.parametrize(("name", "is_eager"), [("eager", True), ("sdpa", False), (None, False)])
def test_attention_is_the_one_asked_for(tmp_path, monkeypatch, name, is_eager):
    calls = []
    eager = modeling_llama.eager_attention_forward
    monkeypatch.setattr(
        modeling_llama, "eager_attention_forward", lambda *a, **k: (calls.append(1), eager(*a, **k))[1]
    )
    trainer = GRPOTrainer("tiny", legs_env(), config(tmp_path, attn_implementation=name))
    trainer.model(torch.tensor([[5, 6, 7]]))
    assert bool(calls) == is_eager


def test_flash_attention_that_is_not_installed_becomes_sdpa_and_says_so(monkeypatch):
    monkeypatch.setattr(model_loading, "is_flash_attn_2_available", lambda: False)
    with pytest.warns(UserWarning, match="flash-attn is not installed here, so sdpa is used"):
        assert model_loading.available_attention("flash_attention_2") == "sdpa"
    monkeypatch.setattr(model_loading, "is_flash_attn_2_available", lambda: True)
    assert model_loading.available_attention("flash_attention_2") == "flash_attention_2"


CUSTOM_CODE = """
from transformers import LlamaConfig, LlamaForCausalLM


class HerdConfig(LlamaConfig):
    model_type = "herd"


class HerdForCausalLM(LlamaForCausalLM):
    config_class = HerdConfig
"""


@pytest.fixture
def custom_model(tmp_path):
    """The embedded model as one whose class comes with the weights."""
    folder = tmp_path / "herd"
    shutil.copytree(TINY_MODEL_PATH, folder)
    path = folder / "config.json"
    auto_map = {"AutoConfig": "herd.HerdConfig", "AutoModelForCausalLM": "herd.HerdForCausalLM"}
    written = {**json.loads(path.read_text()), "model_type": "herd", "auto_map": auto_map}
    path.write_text(json.dumps({**written, "architectures": ["HerdForCausalLM"]}))
    (folder / "herd.py").write_text(CUSTOM_CODE)
    return str(folder)


def test_trust_remote_code_reaches_configuration_tokenizer_and_weights(tmp_path, custom_model):
    with pytest.raises(ValueError, match="trust_remote_code"):
        GRPOTrainer(custom_model, legs_env(), config(tmp_path))
    trusting = config(tmp_path, model_init_kwargs={"trust_remote_code": True})
    trainer = GRPOTrainer(custom_model, legs_env(), trusting)
    assert type(trainer.model).__name__ == "HerdForCausalLM"
    assert source_flags(trusting.model_init_kwargs) == ["--trust-remote-code"]


def test_the_tokenizer_is_of_the_revision_of_the_weights(monkeypatch):
    asked = {}

    def from_pretrained(name, **kwargs):
        asked[name] = kwargs
        return real(str(TINY_MODEL_PATH))

    real = AutoTokenizer.from_pretrained
    monkeypatch.setattr(model_loading.AutoTokenizer, "from_pretrained", from_pretrained)
    kwargs = {"revision": "v2", "dtype": "bfloat16"}
    model_loading.load_tokenizer("someone/model", None, kwargs)
    assert asked == {"someone/model": {"revision": "v2"}}
    assert source_flags(kwargs) == ["--revision", "v2"]


def test_an_adapter_keeps_the_revision_of_its_base_model(tmp_path):
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    args = config(tmp_path, model_init_kwargs={"revision": "v2"})
    lora = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    model_loading.apply_peft(model, lora, args).save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter/adapter_config.json").read_text())["revision"] == "v2"
