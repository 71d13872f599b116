import random
from collections import Counter

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import GPT2Config, GPT2LMHeadModel, MambaConfig, MambaForCausalLM

from grpo_gym.inference.generator import GenerationRequest, generate
from grpo_gym.inference.sampler import PromptTooLongError, SamplingParams
from tests.inference.conftest import ARCHITECTURES, VOCAB, make_model, plain_logprobs

EOS = {3, 5, 8}


def ragged_requests(seed=0, num_prompts=7):
    """Prompts of 1..17 tokens, groups of 1..4, allowances of 5 or 40 tokens, in mixed order."""
    rng = random.Random(seed)
    requests = []
    for _ in range(num_prompts):
        prompt = [rng.randrange(VOCAB) for _ in range(rng.choice([1, 4, 4, 9, 17]))]
        for _ in range(rng.choice([1, 3, 4])):
            requests.append(request(prompt, max_tokens=rng.choice([5, 40]), seed=len(requests)))
    rng.shuffle(requests)
    return requests


def request(prompt, **params):
    return GenerationRequest(list(prompt), SamplingParams(**({"max_tokens": 10} | params)))


@pytest.mark.parametrize("max_batch_size", [256, 5, 1])
@pytest.mark.parametrize("architecture", list(ARCHITECTURES))
def test_logprobs_are_those_of_a_plain_forward_pass(architecture, max_batch_size):
    model = make_model(architecture, torch.float64)
    requests = ragged_requests()
    results = generate(model, requests, eos_token_ids=EOS, max_batch_size=max_batch_size)
    for req, result in zip(requests, results, strict=True):
        expected = plain_logprobs(model, req.prompt_ids, result.completion_ids)
        assert torch.tensor(result.logprobs, dtype=torch.float64).allclose(expected, rtol=0, atol=1e-9)


def test_float32_logprobs_agree_too(model):
    requests = ragged_requests(1)
    for req, result in zip(requests, generate(model, requests, eos_token_ids=EOS), strict=True):
        expected = plain_logprobs(model, req.prompt_ids, result.completion_ids)
        torch.testing.assert_close(torch.tensor(result.logprobs), expected, rtol=0, atol=1e-4)


def test_long_completions_cross_chunks():
    model = make_model(dtype=torch.float64)
    requests = [request([1, 2, 3], max_tokens=110, seed=1), request([4], max_tokens=70, seed=2)]
    for req, result in zip(requests, generate(model, requests, eos_token_ids=set()), strict=True):
        assert len(result.completion_ids) == req.params.max_tokens
        expected = plain_logprobs(model, req.prompt_ids, result.completion_ids)
        assert torch.tensor(result.logprobs, dtype=torch.float64).allclose(expected, rtol=0, atol=1e-9)


def test_neighbours_and_order_do_not_change_what_is_sampled():
    model = make_model(dtype=torch.float64)
    requests = ragged_requests(2)
    together = generate(model, requests, eos_token_ids=EOS)
    alone = [generate(model, [req], eos_token_ids=EOS)[0] for req in requests]
    backwards = generate(model, requests[::-1], eos_token_ids=EOS, max_batch_tokens=150)[::-1]
    ids = [result.completion_ids for result in together]
    assert (
        ids == [result.completion_ids for result in alone] == [result.completion_ids for result in backwards]
    )


def test_the_same_call_gives_the_same_bits(model):
    first, second = (generate(model, ragged_requests(3), eos_token_ids=EOS) for _ in range(2))
    assert first == second


def test_seeds_differ_and_unseeded_requests_follow_the_global_generator(model):
    seeded = generate(model, [request([1], seed=i) for i in range(8)], eos_token_ids=set())
    assert len({tuple(result.completion_ids) for result in seeded}) == 8
    runs = []
    for _ in range(2):
        torch.manual_seed(7)
        runs.append(generate(model, [request([1]) for _ in range(4)], eos_token_ids=set()))
    assert runs[0] == runs[1]
    assert len({tuple(result.completion_ids) for result in runs[0]}) == 4


def test_eos_is_kept_and_says_stop(model):
    requests = [request([1, 2], seed=i, max_tokens=60) for i in range(30)]
    results = generate(model, requests, eos_token_ids=EOS)
    assert {result.finish_reason for result in results} == {"stop", "length"}
    for result in results:
        assert len(result.logprobs) == len(result.completion_ids)
        assert not EOS & set(result.completion_ids[:-1])
        assert (result.completion_ids[-1] in EOS) == (result.finish_reason == "stop")
        assert result.finish_reason == "stop" or len(result.completion_ids) == 60


def test_a_prompt_is_computed_once_for_its_group(model):
    prompts = [list(range(10, 30)), list(range(30, 45))]
    requests = [request(prompt, seed=i, max_tokens=6) for i, prompt in enumerate(prompts * 4)]
    tokens = []
    hook = model.model.embed_tokens.register_forward_hook(
        lambda module, args, out: tokens.append(args[0].numel())
    )
    generate(model, requests, eos_token_ids=set())
    hook.remove()
    # The first token of each completion comes with the prompt; the last one is never fed back.
    assert sum(tokens) == 20 + 15 + 8 * 5


def test_finished_sequences_leave_and_waiting_ones_join(model):
    requests = [request([i], seed=i, max_tokens=40 if i == 0 else 4) for i in range(1, 33)] + [
        request([0], seed=0, max_tokens=40)
    ]
    rows = []
    hook = model.lm_head.register_forward_hook(lambda module, args, out: rows.append(args[0].shape[1]))
    generate(model, requests, eos_token_ids=set(), max_batch_size=8)
    hook.remove()
    assert max(rows) <= 8 + 8  # rows that decode, and prompts that join
    assert len(rows) < 2 * 40  # waves of 8 one after the other: 40 + 4 x 4; one by one: 168
    assert rows[-1] == 1


def test_greedy_is_what_transformers_generates(model):
    prompts = [[1, 2, 3], [9], [7, 7, 20, 30]]
    results = generate(model, [request(p, temperature=0, max_tokens=20) for p in prompts], eos_token_ids={3})
    for prompt, result in zip(prompts, results, strict=True):
        expected = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=20, eos_token_id=3, pad_token_id=0
        )
        assert result.completion_ids == expected[0, len(prompt) :].tolist()
        torch.testing.assert_close(
            torch.tensor(result.logprobs),
            plain_logprobs(model, prompt, result.completion_ids),
            atol=1e-4,
            rtol=0,
        )


def test_first_tokens_follow_the_models_distribution(model):
    count = 4000
    requests = [request([1, 2, 3], seed=i, max_tokens=1, temperature=1.5) for i in range(count)]
    results = generate(model, requests, eos_token_ids=set(), max_batch_size=1000)
    observed = Counter(result.completion_ids[0] for result in results)
    with torch.no_grad():
        expected = (model(torch.tensor([[1, 2, 3]])).logits[0, -1] / 1.5).softmax(-1) * count
    likely = [i for i in range(VOCAB) if expected[i] >= 5]
    chi_square = sum((observed[i] - float(expected[i])) ** 2 / float(expected[i]) for i in likely)
    assert len(likely) > 10
    assert chi_square < len(likely) + 4 * (2 * len(likely)) ** 0.5  # mean + 4 standard deviations


@pytest.mark.parametrize(
    "filters", [{"top_p": 0.7}, {"top_k": 4}, {"min_p": 0.2}, {"top_p": 0.8, "top_k": 6}]
)
def test_filtered_logprobs_are_normalised_over_what_is_left(model, filters):
    requests = [request([1, 2], seed=i, max_tokens=1, **filters) for i in range(300)]
    results = generate(model, requests, eos_token_ids=set(), max_batch_size=300)
    logprobs = {result.completion_ids[0]: result.logprobs[0] for result in results}
    unfiltered = {t: float(plain_logprobs(model, [1, 2], [t])[0]) for t in range(VOCAB)}
    kept = sorted(logprobs, key=unfiltered.__getitem__, reverse=True)
    most_likely = sorted(unfiltered, key=unfiltered.__getitem__, reverse=True)[: len(kept)]
    assert kept == most_likely
    assert 1 < len(kept) < VOCAB / 2
    assert sum(torch.tensor(list(logprobs.values())).exp()) == pytest.approx(1, abs=0.05)
    shift = {round(logprobs[t] - unfiltered[t], 3) for t in kept}
    assert max(shift) - min(shift) < 0.003


def test_repetition_penalty_spares_new_tokens(model):
    loops = generate(model, [request([4, 4], temperature=0, max_tokens=40)], eos_token_ids=set())[0]
    spread = generate(
        model, [request([4, 4], temperature=0, max_tokens=40, repetition_penalty=50.0)], eos_token_ids=set()
    )[0]
    assert len(set(spread.completion_ids)) > len(set(loops.completion_ids))


def test_parameters_are_per_request(model):
    mixed = [
        request([1, 2], temperature=0),
        request([1, 2], seed=1, temperature=2.0),
        request([1, 2], seed=1, top_k=1),
        request([1, 2], seed=2),
    ]
    results = generate(model, mixed, eos_token_ids=set())
    assert results[0].completion_ids == results[2].completion_ids
    assert results[2].logprobs == [0.0] * 10
    for index, temperature in ((1, 2.0), (3, 1.0)):
        expected = plain_logprobs(model, [1, 2], results[index].completion_ids, temperature)
        torch.testing.assert_close(torch.tensor(results[index].logprobs), expected, atol=1e-4, rtol=0)


def test_stop_strings_end_the_completion(model):
    free = generate(model, [request([1], seed=5, max_tokens=30)], eos_token_ids=set())[0].completion_ids
    stop = f"<{free[10]}><{free[11]}>"
    text = "".join(f"<{i}>" for i in free)
    first = text.index(stop) + len(stop)
    length = text[:first].count(">")
    result = generate(
        model,
        [request([1], seed=5, max_tokens=30, stop=("never", stop))],
        eos_token_ids=set(),
        decode=lambda ids: "".join(f"<{i}>" for i in ids),
    )[0]
    assert result.completion_ids == free[:length]
    assert result.finish_reason == "stop"
    with pytest.raises(ValueError, match="decode"):
        generate(model, [request([1], stop=("x",))], eos_token_ids=set())


def test_the_context_ends_a_completion_and_too_long_prompts_are_named(model):
    result = generate(model, [request([1] * 120, max_tokens=50)], eos_token_ids=set())[0]
    assert len(result.completion_ids) == 8
    assert result.finish_reason == "length"
    with pytest.raises(PromptTooLongError, match="128 tokens leaves no room in a context of 128"):
        generate(model, [request([1] * 128)], eos_token_ids=set())
    with pytest.raises(ValueError, match="empty prompt"):
        generate(model, [request([])], eos_token_ids=set())


def test_the_model_comes_back_as_it_was():
    model = make_model()
    model.train()
    model.model.layers[0].eval()
    model.gradient_checkpointing_enable()
    modes = [module.training for module in model.modules()]
    attention = model.config._attn_implementation
    generate(model, [request([1, 2], seed=0)], eos_token_ids=set())
    with pytest.raises(IndexError):
        generate(model, [request([VOCAB + 10_000])], eos_token_ids=set())
    assert [module.training for module in model.modules()] == modes
    assert model.config._attn_implementation == attention
    model(torch.tensor([[1, 2, 3]]), labels=torch.tensor([[1, 2, 3]])).loss.backward()
    assert model.lm_head.weight.grad.abs().sum() > 0


def test_dropout_is_off_while_generating():
    model = make_model(attention_dropout=0.5)
    expected = generate(model, [request([1, 2], seed=0)], eos_token_ids=set())
    model.train()
    assert generate(model, [request([1, 2], seed=0)], eos_token_ids=set()) == expected


def test_lora_adapters_take_part():
    model = get_peft_model(
        make_model(), LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    )
    result = generate(model, [request([1, 2, 3], seed=0)], eos_token_ids=set())[0]
    with_adapter = plain_logprobs(model.eval(), [1, 2, 3], result.completion_ids)
    torch.testing.assert_close(torch.tensor(result.logprobs), with_adapter, atol=1e-4, rtol=0)
    with model.disable_adapter():
        without = plain_logprobs(model, [1, 2, 3], result.completion_ids)
    assert (without - with_adapter).abs().max() > 0.01


def test_learned_positions_work_as_well():
    torch.manual_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.3)
    )
    results = generate(model, [request([1, 2, 3], seed=i) for i in range(3)], eos_token_ids=EOS)
    for result in results:
        expected = plain_logprobs(model.eval(), [1, 2, 3], result.completion_ids)
        torch.testing.assert_close(torch.tensor(result.logprobs), expected, atol=1e-4, rtol=0)


def test_models_without_attention_are_refused():
    model = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4))
    with pytest.raises(ValueError, match="use_vllm=True"):
        generate(model, [request([1, 2])], eos_token_ids=set(), max_model_len=64)


def test_no_requests_no_results(model):
    assert generate(model, [], eos_token_ids=set()) == []
