import functools

import pytest
import torch
from torch.nn.attention.flex_attention import create_mask
from transformers import LlamaConfig, LlamaForCausalLM

from grpo_gym.training import attention
from grpo_gym.training.attention import (
    _sdpa_by_group,
    flex_length,
    flex_mask_mod,
    install_packed_attention,
    packed_attention,
)
from grpo_gym.training.packing import PackInput, PackLayout, pack_groups

HEADS, KEY_HEADS, HEAD_DIM, SCALE = 6, 2, 8, 0.3


def make_layout(shared_prefix: bool = True) -> tuple[PackLayout, int]:
    groups = [
        PackInput([0] * 7, [(0, [0] * 5), (1, [0]), (2, [0] * 9)]),
        PackInput([0] * 3, [(3, [0] * 4)]),
        PackInput([0], [(4, [0]), (5, [0])]),
    ]
    (pack,) = pack_groups(groups, 1000, shared_prefix)
    return pack.layout, pack.input_ids.shape[1]


def dense_mask(layout: PackLayout, length: int, window: int | None = None) -> torch.Tensor:
    """[T, T] bool, from the paths of the layout: a token sees what is before it on its own path."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for spans in layout.sequences():
        path = torch.cat([torch.arange(*span) for span in spans])
        distance = torch.arange(len(path))[:, None] - torch.arange(len(path))[None, :]
        visible = (distance >= 0) & (distance < (window or len(path)))
        mask[path[:, None], path[None, :]] = visible
    return mask


def explicit_attention(query, key, value, mask):
    key, value = (tensor.repeat_interleave(HEADS // KEY_HEADS, dim=1) for tensor in (key, value))
    scores = (query @ key.transpose(-1, -2) * SCALE).masked_fill(~mask, float("-inf"))
    return scores.softmax(-1) @ value


def make_inputs(length: int, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(1, heads, length, HEAD_DIM, generator=generator, dtype=dtype).requires_grad_()
        for heads in (HEADS, KEY_HEADS, KEY_HEADS)
    ]


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("attend", [packed_attention, _sdpa_by_group])
def test_output_and_gradients_are_those_of_explicit_attention(shared_prefix, window, attend):
    layout, length = make_layout(shared_prefix)
    inputs = make_inputs(length)
    expected = explicit_attention(*inputs, dense_mask(layout, length, window))
    output = attend(*inputs, layout, SCALE, window)
    grad = torch.randn_like(output)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-12)
    found = torch.autograd.grad(output, inputs, grad)
    wanted = torch.autograd.grad(expected, inputs, grad)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_large_scores_do_not_overflow_the_merge():
    layout, length = make_layout()
    query, key, value = make_inputs(length)
    expected = explicit_attention(200 * query, key, value, dense_mask(layout, length))
    torch.testing.assert_close(packed_attention(200 * query, key, value, layout, SCALE), expected)


def test_half_precision_stays_close():
    layout, length = make_layout()
    inputs = make_inputs(length, torch.bfloat16)
    expected = explicit_attention(*(tensor.double() for tensor in inputs), dense_mask(layout, length))
    output = packed_attention(*inputs, layout, SCALE)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=0.03)


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("window", [None, 4])
def test_flex_mask_is_the_same_mask(shared_prefix, window):
    layout, length = make_layout(shared_prefix)
    padded = flex_length(length)
    mask = create_mask(
        flex_mask_mod(layout, padded, "cpu", window), None, None, padded, padded, device="cpu"
    )[0, 0]
    assert mask[:length, :length].equal(dense_mask(layout, length, window))
    assert mask[length:].sum() == padded - length, "padding sees itself and nothing else"
    assert not mask[:length, length:].any()


@pytest.fixture
def counted_compilations(monkeypatch):
    """Flex attention compiled by a backend that only counts: [number of graphs]."""
    count = [0]

    def backend(graph, inputs):
        count[0] += 1
        return graph.forward

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    attention._compiled_flex.cache_clear()
    yield count
    attention._compiled_flex.cache_clear()
    torch._dynamo.reset()


def flex_inputs(num_tokens: int, device: str, needs_grad=(True, True, True)) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(num_tokens)
    tensors = [torch.randn(1, heads, num_tokens, 16, generator=generator) for heads in (4, 2, 2)]
    return [t.to(device).requires_grad_(n) for t, n in zip(tensors, needs_grad, strict=True)]


def flex_layout(num_tokens: int) -> PackLayout:
    """Two groups of together that many tokens."""
    prompt, branch = num_tokens // 8, num_tokens // 4
    last = num_tokens - 2 * prompt - 2 * branch
    groups = [
        PackInput([0] * prompt, [(0, [0] * (branch + 1)), (1, [0] * (branch + 1))]),
        PackInput([0] * prompt, [(2, [0] * (last + 1))]),
    ]
    (pack,) = pack_groups(groups, num_tokens)
    assert pack.input_ids.shape[1] == num_tokens
    return pack.layout


def test_more_shapes_than_dynamos_default_stay_compiled(counted_compilations, monkeypatch):
    """Ten shapes are more than the 8 after which Dynamo runs a function as it is."""
    monkeypatch.setattr(attention, "flex_length", lambda length: length)
    shapes = [128 * k for k in range(1, 11)]
    for num_tokens in shapes:
        with torch.no_grad():
            attention._flex(*flex_inputs(num_tokens, "cpu"), flex_layout(num_tokens), SCALE, None)
    assert counted_compilations[0] == 2 * len(shapes), "the mask and the attention of each shape"


def test_running_out_of_variants_is_an_error(counted_compilations, monkeypatch):
    monkeypatch.setattr(attention, "flex_length", lambda length: length)
    monkeypatch.setattr(attention, "MAX_COMPILED_VARIANTS", 1)
    with torch.no_grad():
        attention._flex(*flex_inputs(128, "cpu"), flex_layout(128), SCALE, None)
        with pytest.raises(torch._dynamo.exc.FailOnRecompileLimitHit):
            attention._flex(*flex_inputs(256, "cpu"), flex_layout(256), SCALE, None)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("window", [None, 64])
@pytest.mark.parametrize("needs_grad", [(True, True, True), (True, False, True)], ids=["all", "lora"])
def test_flex_is_the_same_attention(needs_grad, window):
    """Every power of two up to 4096, and both sides of one."""
    for num_tokens in (40, 256, 257, 700, 1500, 4000):
        layout, inputs = flex_layout(num_tokens), flex_inputs(num_tokens, "cuda", needs_grad)
        expected = _sdpa_by_group(*inputs, layout, SCALE, window)
        output = attention._flex(*inputs, layout, SCALE, window)
        torch.testing.assert_close(output, expected, rtol=0, atol=5e-3)
        trained = [tensor for tensor in inputs if tensor.requires_grad]
        grad = torch.randn_like(output)
        found, wanted = (torch.autograd.grad(each, trained, grad) for each in (output, expected))
        torch.testing.assert_close(found, wanted, rtol=0, atol=2e-2)


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_model_without_a_layout_is_what_it_was(implementation):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4
    )
    model = LlamaForCausalLM._from_config(config, attn_implementation=implementation).eval()
    ids = torch.randint(0, 50, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    before = model(ids, attention_mask=mask).logits
    install_packed_attention(model)
    install_packed_attention(model)
    assert model(ids, attention_mask=mask).logits.equal(before)
    assert model.generate(
        ids, attention_mask=mask, max_new_tokens=3, do_sample=False, pad_token_id=0
    ).shape == (2, 12)


def test_attention_dropout_is_refused():
    config = LlamaConfig(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4
    )
    config.attention_dropout = 0.1
    model = LlamaForCausalLM._from_config(config).train()
    install_packed_attention(model)
    layout, length = make_layout()
    with pytest.raises(ValueError, match="attention_dropout=0"):
        model.model(torch.zeros(1, length, dtype=torch.long), packed_layout=layout)
