import copy
import inspect
import types

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from grpo_gym.training import logprobs as logprobs_module
from grpo_gym.training.logprobs import (
    LogitTransform,
    check_head_can_be_sharded,
    completion_logprobs,
    install_logprob_forward,
    linear_logprobs,
    packing_support,
    padded_logprobs,
    supports_shared_prefix,
)
from grpo_gym.training.model_forward import PACKABLE_MODEL_TYPES
from grpo_gym.training.packing import PackInput, empty_pack, pack_groups

VOCABULARY = 61
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def make_model(model_type="llama", install=True, **overrides):
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **{**SIZES, **overrides})
    config._experts_implementation = "eager"  # the grouped kernels of mixtures take no float64
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float64).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear) and module.bias is not None:
            torch.nn.init.normal_(module.bias)
    if install:
        install_logprob_forward(model)
    return model


def use_float64_norms(model):
    """Transformers' RMSNorm rounds to float32 even in a float64 model; that rounding is not ours to test."""

    def forward(self, hidden):
        return (
            self.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
        )

    for module in model.modules():
        if type(module).__name__ in {"LlamaRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm"}:
            module.forward = types.MethodType(forward, module)
    return model


def make_groups(seed=0):
    generator = torch.Generator().manual_seed(seed)

    def tokens(length):
        return torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()

    shapes = [(7, [5, 1, 9]), (3, [4]), (12, [2, 2, 8, 3])]
    rollout_ids = iter(range(100))
    return [PackInput(tokens(p), [(next(rollout_ids), tokens(c)) for c in lengths]) for p, lengths in shapes]


def make_batch(shared_prefix=True):
    (batch,) = pack_groups(make_groups(), 1000, shared_prefix)
    return batch


def weights_of(values):
    return torch.linspace(-1, 1, len(values), dtype=values.dtype)


def gradients(model, logprobs):
    model.zero_grad(set_to_none=True)
    (logprobs * weights_of(logprobs)).sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_as_padded(model, batch, tolerance=1e-9, temperature=1.0, chunk_size=4):
    logprobs, entropy = completion_logprobs(model, batch, temperature, chunk_size)
    expected, expected_entropy = padded_logprobs(model, batch, temperature)
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(entropy, expected_entropy, rtol=0, atol=tolerance)
    assert not entropy.requires_grad
    found, wanted = gradients(model, logprobs), gradients(model, expected)
    assert found.keys() == wanted.keys()
    assert max(g.abs().max() for g in wanted.values()) > 1e-3
    torch.testing.assert_close(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("checkpointing", [None, False, True], ids=["plain", "checkpoint", "reentrant"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "qwen3"])
def test_gradients_are_those_of_the_padded_batch(model_type, shared_prefix, tied, checkpointing):
    model = use_float64_norms(make_model(model_type, tie_word_embeddings=tied))
    if checkpointing is not None:
        model.gradient_checkpointing_enable({"use_reentrant": checkpointing})
        model.enable_input_require_grads()
    assert supports_shared_prefix(model) == (True, "")
    assert_same_as_padded(model, make_batch(shared_prefix))


@pytest.mark.parametrize("key_heads", [1, 4])
def test_grouped_queries(key_heads):
    assert_same_as_padded(use_float64_norms(make_model(num_key_value_heads=key_heads)), make_batch())


@pytest.mark.parametrize("chunk_size", [1, 7, 34, 1000])
@pytest.mark.parametrize("temperature", [0.5, 1.3])
def test_temperature_and_chunk_size(temperature, chunk_size):
    model = use_float64_norms(make_model("qwen2"))
    assert_same_as_padded(model, make_batch(), temperature=temperature, chunk_size=chunk_size)


# Norms of these architectures differ and round to float32, hence the tolerance; a wrong mask is off by 1e-2.
@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("model_type", sorted(PACKABLE_MODEL_TYPES - {"llama", "qwen2", "qwen3"}))
def test_every_packable_architecture(model_type, shared_prefix):
    overrides = (
        {"sliding_window": None} if model_type in {"mistral", "ministral3", "phi3", "starcoder2"} else {}
    )
    if model_type in {"qwen2_moe", "qwen3_moe", "mixtral"}:
        overrides |= {
            "moe_intermediate_size": 16,
            "num_experts": 4,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        }
    model = make_model(model_type, **overrides)
    assert supports_shared_prefix(model) == (True, "")
    assert_same_as_padded(model, make_batch(shared_prefix), tolerance=2e-5)


def test_sliding_window_is_packed_without_sharing():
    model = make_model("mistral", sliding_window=4)
    assert packing_support(model) == ("separate", "mistral attends through a sliding window")
    assert supports_shared_prefix(model)[0] is False
    assert_same_as_padded(model, make_batch(shared_prefix=False), tolerance=2e-5)


@pytest.mark.parametrize("model_type", ["gemma2", "gpt_neox"])
@pytest.mark.parametrize("shared_prefix", [True, False])
def test_other_architectures_are_padded_inside(model_type, shared_prefix):
    """Gemma 2 soft-caps its attention scores and its logits."""
    model = make_model(model_type, attn_implementation="eager")
    support, reason = packing_support(model)
    assert support == "padded"
    assert model_type in reason
    assert_same_as_padded(model, make_batch(shared_prefix), tolerance=2e-5)


@pytest.mark.parametrize(
    ("config", "support"),
    [
        (
            {"model_type": "qwen2", "use_sliding_window": True, "max_window_layers": 1, "sliding_window": 8},
            "separate",
        ),
        ({"model_type": "qwen3_next"}, "padded"),
        ({"model_type": "qwen2_5_vl"}, "padded"),
        (
            {
                "model_type": "llama",
                "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
            },
            "separate",
        ),
    ],
)
def test_what_cannot_share_a_prefix_says_why(config, support):
    config = AutoConfig.for_model(**config)
    assert packing_support(config)[0] == support
    supported, reason = supports_shared_prefix(config)
    assert not supported
    assert config.model_type in reason


@pytest.mark.parametrize("name", ["final_logit_softcapping", "logit_scale", "logits_scaling"])
def test_logit_transforms(name):
    """A reference with logits written out: softcap(scale * logits) / temperature."""
    model = make_model()
    setattr(model.config, name, 3.0)
    batch = make_batch()
    logprobs, _ = completion_logprobs(model, batch, temperature=0.7, chunk_size=5)
    found = gradients(model, logprobs)
    hidden = model.model(
        input_ids=batch.input_ids,
        position_ids=batch.position_ids,
        packed_layout=batch.layout,
        attention_mask=torch.ones(1, 1, 1, 1),
    ).last_hidden_state[0][batch.predict_index]
    raw = model.lm_head(hidden)
    logits = {
        "final_logit_softcapping": 3 * torch.tanh(raw / 3),
        "logit_scale": raw * 3,
        "logits_scaling": raw / 3,
    }
    expected = (logits[name] / 0.7).log_softmax(-1)[torch.arange(len(hidden)), batch.target_ids]
    torch.testing.assert_close(logprobs, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found, gradients(model, expected), rtol=0, atol=1e-12)


def test_unknown_logit_transform_is_refused():
    model = make_model("gpt_neox", install=False)
    original = type(model).forward

    def shifted(self, *args, **kwargs):
        output = original(self, *args, **kwargs)
        output.logits = output.logits * 1.01
        return output

    model.forward = types.MethodType(shifted, model)
    install_logprob_forward(model)
    with pytest.raises(ValueError, match="not known here"):
        completion_logprobs(model, make_batch())


def test_hyperclovax_multiplies_where_granite_divides():
    model = make_model("hyperclovax", logits_scaling=3.0)
    assert_same_as_padded(model, make_batch(), tolerance=2e-5)


def test_head_with_a_bias():
    model = make_model()
    model.lm_head.bias = torch.nn.Parameter(torch.randn(VOCABULARY, dtype=torch.float64))
    use_float64_norms(model)
    assert_same_as_padded(model, make_batch())


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_completions_do_not_see_each_other(shared_prefix):
    model, groups = make_model(), make_groups()
    changed = copy.deepcopy(groups)
    changed[0].completions[2] = (2, [3] * 9)
    before, after = (
        completion_logprobs(model, pack_groups(g, 1000, shared_prefix)[0])[0] for g in (groups, changed)
    )
    (batch,) = pack_groups(groups, 1000, shared_prefix)
    others = torch.tensor([batch.rollout_ids[i] != 2 for i in batch.sequence_index])
    torch.testing.assert_close(before[others], after[others], rtol=0, atol=1e-12)
    assert (before[~others] - after[~others]).abs().max() > 1e-3


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_completions_see_their_whole_prompt_and_no_other(shared_prefix):
    model, groups = make_model(), make_groups()
    changed = copy.deepcopy(groups)
    changed[0].prompt_ids[0] = 3 + (changed[0].prompt_ids[0] + 1) % 50
    before, after = (
        completion_logprobs(model, pack_groups(g, 1000, shared_prefix)[0])[0] for g in (groups, changed)
    )
    (batch,) = pack_groups(groups, 1000, shared_prefix)
    own = torch.tensor([batch.rollout_ids[i] < 3 for i in batch.sequence_index])
    assert ((before - after).abs() > 1e-9).equal(own)


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        self.numel = max([self.numel, *sizes])
        return result


def test_gradients_that_meet_in_a_prompt_are_added_in_the_same_order_every_time():
    """Bitwise resume depends on it. The first tokens of all completions are predicted at one position."""
    model = make_model().float()
    batch = pack_groups([PackInput([5, 6, 7], [(i, [3 + i % 7]) for i in range(4096)])], 10_000)[0]
    threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        runs = [gradients(model, completion_logprobs(model, batch)[0]) for _ in range(8)]
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(runs[0][name], run[name]) for run in runs for name in run)


@pytest.mark.parametrize("lora_head", [False, True])
def test_logits_of_all_tokens_never_exist(lora_head):
    vocabulary = 3000
    model = make_model(vocab_size=vocabulary, install=False, hidden_size=16, num_hidden_layers=1)
    if lora_head:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head"])).train()
    install_logprob_forward(model.get_base_model() if lora_head else model)
    batch = make_batch()
    with LargestTensor() as packed:
        completion_logprobs(model, batch, chunk_size=4)[0].sum().backward()
    assert packed.numel <= max(4, 16) * vocabulary
    with LargestTensor() as padded:
        padded_logprobs(model, batch)[0].sum().backward()
    assert padded.numel > len(batch.target_ids) * vocabulary > packed.numel


@pytest.mark.parametrize("targets", [["q_proj", "v_proj"], ["q_proj", "lm_head"]])
def test_lora(targets):
    model = get_peft_model(
        use_float64_norms(make_model(install=False)), LoraConfig(r=3, target_modules=targets)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    install_logprob_forward(model.get_base_model())
    assert_same_as_padded(model.double().train(), make_batch())


@pytest.mark.parametrize(
    "settings",
    [{"target_modules": ["lm_head"]}, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}],
)
def test_an_adapted_head_is_refused_where_its_calls_communicate(settings, monkeypatch):
    """One call for all tokens would hold [tokens, vocabulary]; calls by chunks would differ between ranks."""
    model = get_peft_model(make_model(install=False), LoraConfig(r=2, **settings))
    install_logprob_forward(model.get_base_model())
    with pytest.raises(ValueError, match="leave lm_head out of target_modules and modules_to_save") as error:
        check_head_can_be_sharded(model)
    assert "\n" not in str(error.value)
    monkeypatch.setattr(logprobs_module, "_is_partitioned", lambda head: True)
    with pytest.raises(ValueError, match="leave lm_head out"):
        completion_logprobs(model, make_batch())


def test_adapters_elsewhere_may_be_sharded():
    model = get_peft_model(make_model(install=False), LoraConfig(r=2, target_modules=["q_proj"]))
    install_logprob_forward(model.get_base_model())
    check_head_can_be_sharded(model)


def test_prompt_learning_is_refused():
    model = make_model()
    with pytest.raises(ValueError, match="use LoRA"):
        model(packed=object(), inputs_embeds=torch.zeros(1, 2, 32))


@pytest.mark.parametrize("lora_head", [False, True])
def test_batch_without_targets_still_reaches_every_parameter(lora_head):
    model = make_model(install=False)
    if lora_head:
        model = get_peft_model(model, LoraConfig(r=2, target_modules=["lm_head", "q_proj"]))
    install_logprob_forward(model.get_base_model() if lora_head else model)
    logprobs, entropy = completion_logprobs(model, empty_pack())
    assert logprobs.shape == entropy.shape == (0,)
    logprobs.sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    assert all(p.grad is not None and not p.grad.any() for p in trained)


def test_autocast_scores_in_float32():
    model = make_model().float()
    batch = make_batch()
    exact, _ = completion_logprobs(model, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logprobs, entropy = completion_logprobs(model, batch)
        reference, _ = padded_logprobs(model, batch)
    assert logprobs.dtype == entropy.dtype == torch.float32
    torch.testing.assert_close(logprobs, exact, rtol=0, atol=0.05)
    found, wanted = gradients(model, logprobs), gradients(model, reference)
    for name, grad in found.items():
        assert torch.cosine_similarity(grad.flatten(), wanted[name].flatten(), dim=0) > 0.99, name


def test_bfloat16_model():
    model = make_model().bfloat16()
    logprobs, _ = completion_logprobs(model, make_batch(), chunk_size=5)
    assert logprobs.dtype == torch.float32
    assert all(g.dtype == torch.bfloat16 and g.isfinite().all() for g in gradients(model, logprobs).values())


def test_gradients_of_a_bfloat16_head_do_not_get_worse_with_more_chunks():
    generator = torch.Generator().manual_seed(0)
    # Hidden states with a common direction: contributions add up and soon dwarf a single chunk's.
    hidden = 1 + torch.randn(2048, 16, generator=generator)
    head = torch.nn.Linear(16, 8).bfloat16()
    targets = torch.randint(0, 8, (2048,), generator=generator)

    def head_gradients(chunk_size, dtype=torch.bfloat16):
        weight, bias = (p.detach().to(dtype).requires_grad_() for p in (head.weight, head.bias))
        inputs = hidden.bfloat16().to(dtype)
        logprobs, _ = linear_logprobs(inputs, weight, bias, targets, LogitTransform(), chunk_size)
        return torch.autograd.grad(logprobs.sum(), (weight, bias))

    exact = head_gradients(2048, torch.float64)
    for one, many, reference in zip(head_gradients(2048), head_gradients(4), exact, strict=True):
        assert one.dtype == many.dtype == torch.bfloat16
        errors = [(g.double() - reference).norm() / reference.norm() for g in (one, many)]
        assert errors[1] < 1.5 * errors[0] < 0.02


def test_no_grad_gives_the_same_numbers():
    model, batch = make_model(), make_batch()
    with torch.no_grad():
        frozen, _ = completion_logprobs(model, batch)
    assert not frozen.requires_grad
    torch.testing.assert_close(frozen, completion_logprobs(model, batch)[0], rtol=0, atol=0)


def test_installing_leaves_the_model_as_it_was():
    model = make_model(install=False).eval()
    ids = torch.tensor([[5, 6, 7]])
    before, signature = model(ids).logits, inspect.signature(model.forward)
    install_logprob_forward(model)
    install_logprob_forward(model)
    assert model(ids).logits.equal(before)
    assert inspect.signature(model.forward) == signature
    assert model.generate(ids, max_new_tokens=2, do_sample=False).shape == (1, 5)


def test_a_copy_of_the_model_uses_its_own_weights():
    model, batch = make_model(), make_batch()
    reference = copy.deepcopy(model)
    before = completion_logprobs(reference, batch)[0]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert completion_logprobs(reference, batch)[0].equal(before)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="must be positive"):
        completion_logprobs(make_model(), make_batch(), temperature=0.0)
