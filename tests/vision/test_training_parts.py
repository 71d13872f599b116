"""Freezing, adapters, the padded micro-batch, and what is refused before weights are loaded."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig
from tiny_vision.families import save
from transformers import AutoConfig
from visual_tasks import load_environment

from grpo_gym import GRPOConfig, GRPOTrainer
from grpo_gym.inference.sampler import ImagePrompt, InferenceError
from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.rollouts.types import Rollout
from grpo_gym.training.logprobs import completion_logprobs, install_logprob_forward
from grpo_gym.training.model_loading import apply_peft, load_renderer
from grpo_gym.training.packing import PackInput, empty_pack, pack_groups
from grpo_gym.vision.loading import freeze_parts, load_processor, part_of, sees_images
from grpo_gym.vision.server_chat import chat_request, check_same_prompt, check_servable, completions_answer
from grpo_gym.vision.training_batch import with_images
from tests.vision.conftest import ask, picture, renderer, tiny

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "idefics3", "smolvlm", "gemma3")


def config(tmp_path, **settings):
    return GRPOConfig(output_dir=str(tmp_path), report_to="none", max_completion_length=8, **settings)


@pytest.mark.parametrize("family", FAMILIES)
def test_freezing(family):
    model = copy.deepcopy(tiny(family)[0])
    freeze_parts(model, vision_tower=True, projector=False)
    trained = {part_of(name) for name, p in model.named_parameters() if p.requires_grad}
    frozen = {part_of(name) for name, p in model.named_parameters() if not p.requires_grad}
    assert (trained, frozen) == ({"projector", "language"}, {"vision_tower"})
    freeze_parts(model, vision_tower=False, projector=True)
    assert {part_of(name) for name, p in model.named_parameters() if p.requires_grad} == {"language"}


def test_a_text_model_has_nothing_to_freeze():
    with pytest.raises(ValueError, match="for vision-language models"):
        freeze_parts(torch.nn.Linear(2, 2), vision_tower=True, projector=False)


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_on_the_language_model_only(family, tmp_path):
    model = copy.deepcopy(tiny(family)[0])
    adapted = apply_peft(
        model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"), config(tmp_path)
    )
    trained = {name for name, p in adapted.named_parameters() if p.requires_grad}
    assert {part_of(name) for name in trained} == {"language"}
    assert any("q_proj" in name for name in trained)
    assert any("down_proj" in name for name in trained)


def test_adapters_elsewhere_for_those_who_ask(tmp_path):
    model = copy.deepcopy(tiny("idefics3")[0])
    peft_config = LoraConfig(
        r=2, target_modules=["q_proj"], exclude_modules=["nothing"], task_type="CAUSAL_LM"
    )
    adapted = apply_peft(model, peft_config, config(tmp_path))
    assert "vision_tower" in {part_of(name) for name, p in adapted.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_is_the_models_own_forward_of_each_sequence(family):
    """Against the processor's output through the plain model, one sequence at a time."""
    model, _ = tiny(family)
    images = renderer(family)
    install_logprob_forward(model)
    rollouts, expected = [], []
    for messages in (
        ask("Which colour?", picture("red")),
        ask("Which?", picture("blue", (84, 56)), picture()),
    ):
        ids, urls = images.prompt_ids(messages), list(images.image_prompt(messages).urls)
        completion = [40, 41, 42]
        rollouts.append(Rollout(ids, completion, [0.0] * 3, [1] * 3, 1.0, images=urls))
        whole = torch.tensor([ids + completion])
        kinds = (whole == images.image_token_id).long()
        extra = {"gemma3": {"token_type_ids": kinds}, "idefics3": {}, "smolvlm": {}}
        more = extra.get(family, {"mm_token_type_ids": kinds})
        with torch.no_grad():
            logits = model(input_ids=whole, **images.pixels(urls), **more).logits[0].log_softmax(-1)
        expected += [logits[len(ids) - 1 + i, token].item() for i, token in enumerate(completion)]
    inputs = [PackInput(r.prompt_ids, [(i, r.completion_ids)]) for i, r in enumerate(rollouts)]
    (pack,) = pack_groups(inputs, max_tokens=1000, shared_prefix=False)
    with torch.no_grad():
        logprobs, _ = completion_logprobs(model, with_images(pack, rollouts, images))
    order = [0, 1, 2, 3, 4, 5] if pack.rollout_ids == [0, 1] else [3, 4, 5, 0, 1, 2]
    assert logprobs.tolist() == pytest.approx([expected[i] for i in order], abs=1e-4)


def test_an_empty_micro_batch_of_several_ranks_still_reaches_the_vision_tower(monkeypatch):
    model = copy.deepcopy(tiny("idefics3")[0])
    images = renderer("idefics3")
    install_logprob_forward(model)
    messages = ask("Which colour?", picture())
    urls = list(images.image_prompt(messages).urls)
    rollout = Rollout(images.prompt_ids(messages), [40, 41], [0.0] * 2, [1, 1], 1.0, images=urls)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    logprobs, _ = completion_logprobs(model, with_images(empty_pack(), [rollout], images))
    assert len(logprobs) == 0
    logprobs.sum().backward()
    assert all(
        p.grad is not None
        for name, p in model.named_parameters()
        if "vision_model" in name and "head" not in name
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_processor_loads_without_torchvision(family, tmp_path):
    model, processor = tiny(family)
    save(model, processor, tmp_path)
    again = load_processor(str(tmp_path), AutoConfig.from_pretrained(tmp_path))
    assert type(again).__name__ == type(processor).__name__
    messages = ask("Which colour?", picture())
    processing_class, ours = load_renderer(str(tmp_path), None)
    assert type(processing_class).__name__ == type(processor).__name__
    assert ours.prompt_ids(messages) == renderer(family).prompt_ids(messages)


def test_which_models_see():
    assert sees_images(tiny("qwen2_5_vl")[0].config)
    assert not sees_images(tiny("qwen2_5_vl")[0].config.text_config)
    assert not sees_images(AutoConfig.from_pretrained(TINY_MODEL_PATH))


def test_a_text_model_is_refused_before_it_is_loaded(tmp_path):
    with pytest.raises(ValueError, match="sees text only"):
        GRPOTrainer("tiny", load_environment(image_size=56), config(tmp_path))


def test_a_tokenizer_is_not_enough(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="pass its processor"):
        load_renderer(tiny("idefics3")[0], tokenizer)


def test_prompts_are_measured_with_their_pictures(tmp_path):
    env = load_environment(image_size=56, num_train_examples=20, num_eval_examples=4)
    model, processor = tiny("idefics3")
    length = len(renderer("idefics3").prompt_ids(env.row(0)["prompt"]))
    images_alone = (
        renderer("idefics3").prompt_ids(env.row(0)["prompt"]).count(renderer("idefics3").image_token_id)
    )
    shortest = min(len(renderer("idefics3").prompt_ids(env.row(i)["prompt"])) for i in range(20))
    assert images_alone == 4
    with pytest.raises(ValueError, match="none of the 20 prompts fits"):
        GRPOTrainer(copy.deepcopy(model), env, config(tmp_path, max_prompt_length=shortest - 1), processor)
    assert GRPOTrainer(copy.deepcopy(model), env, config(tmp_path, max_prompt_length=length + 20), processor)


@pytest.mark.parametrize("family", ["idefics3", "smolvlm"])
def test_pictures_that_would_end_a_server_are_refused(family, tokenizer, tmp_path):
    model, processor = tiny(family)
    env = load_environment(image_size=56, num_train_examples=20, num_eval_examples=4)
    with pytest.raises(ValueError, match="do_image_splitting") as caught:
        GRPOTrainer(copy.deepcopy(model), env, config(tmp_path, use_vllm=True), processor)
    assert "\n" not in str(caught.value)
    for fine in (tiny("idefics3_tiles")[1], tiny("qwen2_5_vl")[1], tiny("gemma3")[1], tokenizer):
        check_servable(fine)


def test_the_server_must_have_seen_the_same_ids():
    check_same_prompt([1, 2, 3], [1, 2, 3])
    with pytest.raises(InferenceError, match="differ from token 1 on") as caught:
        check_same_prompt([1, 5, 3], [1, 2, 3])
    assert "\n" not in str(caught.value)
    with pytest.raises(InferenceError, match="the server's prompt has 2 tokens, the trainer's 3"):
        check_same_prompt([1, 2], [1, 2, 3])
    with pytest.raises(InferenceError, match="no prompt_token_ids"):
        check_same_prompt(None, [1])


def test_chat_requests_and_answers():
    messages = ask("?", picture())
    body = chat_request(
        {"model": "m", "prompt": [1], "logprobs": 0, "max_tokens": 3, "seed": 4},
        ImagePrompt((picture(),), messages),
    )
    assert body == {
        "model": "m", "max_tokens": 3, "seed": 4, "messages": messages, "logprobs": True, "top_logprobs": 0,
        "return_token_ids": True,
    }  # fmt: skip
    choice = {
        "token_ids": [7, 8],
        "logprobs": {"content": [{"logprob": -1.0}, {"logprob": -2.0}]},
        "finish_reason": "stop",
    }
    answer = completions_answer({"prompt_token_ids": [1, 2], "choices": [choice]}, [1, 2])
    assert answer["choices"][0]["logprobs"] == {"token_logprobs": [-1.0, -2.0]}
    assert answer["choices"][0]["token_ids"] == [7, 8]
