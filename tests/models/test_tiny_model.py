import re

import pytest
import torch

from grpo_gym.models import TINY_MODEL_PATH


def test_shipped_weights_are_under_ten_megabytes():
    assert sum(file.stat().st_size for file in TINY_MODEL_PATH.glob("*.safetensors")) < 10_000_000


def test_loads_as_a_float32_llama(tiny_model, tiny_tokenizer):
    assert tiny_model.config.architectures == ["LlamaForCausalLM"]
    assert {p.dtype for p in tiny_model.parameters()} == {torch.float32}
    assert tiny_model.config.vocab_size == len(tiny_tokenizer)
    assert tiny_model.config.max_position_embeddings >= 1024


def test_no_sampling_defaults_hide_in_the_generation_config(tiny_model):
    hidden = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "do_sample"}
    assert not hidden & set(tiny_model.generation_config.to_diff_dict())


def test_the_next_token_depends_on_the_question(tiny_model, tiny_tokenizer):
    from tiny_model.train import encode_prompt

    logits = []
    for question in ("What is 17 + 25?", "What is 18 + 25?"):
        ids = tiny_tokenizer(encode_prompt(tiny_tokenizer, question, None), return_tensors="pt")["input_ids"]
        logits.append(tiny_model(ids).logits[0, -1])
    assert not torch.allclose(*logits)


@pytest.fixture(scope="module")
def leg_counting(tiny_model, tiny_tokenizer):
    from tiny_model.measure import measure
    from tiny_model.tasks import held_out_leg_counting

    return measure(tiny_model, tiny_tokenizer, held_out_leg_counting(400), seed=0)


def test_sampled_accuracy_leaves_grpo_room_to_rise(leg_counting):
    assert 0.25 <= leg_counting.accuracy <= 0.5


def test_worked_answers_are_a_minority_and_nearly_always_right(leg_counting):
    assert 0.1 < leg_counting.worked_share < 0.35
    assert leg_counting.worked_accuracy > 0.85


def test_guesses_in_tags_are_common_and_worse(leg_counting):
    assert leg_counting.tagged_share > 0.25
    assert leg_counting.tagged_accuracy < leg_counting.worked_accuracy - 0.2


def test_answers_are_short_and_end(leg_counting):
    assert leg_counting.mean_length < 60
    assert leg_counting.clipped < 0.01


@pytest.mark.parametrize("system_prompt", [None, "Think in <think> tags, then give <answer>...</answer>."])
def test_answers_plain_sums_under_other_system_prompts(tiny_model, tiny_tokenizer, system_prompt):
    from random import Random

    from tiny_model.measure import measure
    from tiny_model.tasks import plain_sum

    rng = Random(5)
    problems = [plain_sum(rng) for _ in range(400)]
    measured = measure(tiny_model, tiny_tokenizer, problems, 0, system_prompt)
    assert measured.worked_accuracy > 0.7
    assert 0.1 < measured.worked_share < 0.35
    assert measured.clipped < 0.02


def test_readme_states_the_parameter_count(tiny_model):
    stated = re.search(r"([\d,]+) parameters", (TINY_MODEL_PATH.parent / "README.md").read_text())
    assert stated is not None
    assert int(stated.group(1).replace(",", "")) == tiny_model.num_parameters()
