"""The trainer's forward sees the pixels and the tokens that the sampler saw."""

from __future__ import annotations

import pytest
import torch

from grpo_gym.inference.generator import GenerationRequest
from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.rollouts.types import Rollout
from grpo_gym.training.logprobs import completion_logprobs, install_logprob_forward
from grpo_gym.training.packing import PackInput, pack_groups
from grpo_gym.vision.generate import generate_with_images
from grpo_gym.vision.renderer import ImageChatRenderer
from grpo_gym.vision.training_batch import with_images
from tests.vision.conftest import ask, picture, renderer, tiny

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "idefics3", "idefics3_tiles", "smolvlm", "gemma3")


def _prompts():
    return [
        ask("Which colour?", picture("red")),
        ask("Which colour?", picture("blue")),
        ask("How many?", picture("green", (84, 56)), picture("red")),
        ask("No picture at all."),
    ]


def _sample(
    model, images: ImageChatRenderer, max_tokens: int = 12, temperature: float = 0.9
) -> list[Rollout]:
    requests, rollouts = [], []
    for number, messages in enumerate(_prompts()):
        for sample in range(3):
            params = SamplingParams(max_tokens + sample, temperature=temperature, seed=10 * number + sample)
            requests.append(
                GenerationRequest(images.prompt_ids(messages), params, images.image_prompt(messages))
            )
    eos = images.tokenizer.eos_token_id
    results = generate_with_images(model, requests, renderer=images, eos_token_ids={eos}, max_model_len=256)
    for request, result in zip(requests, results, strict=True):
        urls = list(request.images.urls) if request.images else []
        ids, logprobs = result.completion_ids, result.logprobs
        rollouts.append(Rollout(request.prompt_ids, ids, logprobs, [1] * len(ids), reward=1.0, images=urls))
    return rollouts


def trainer_logprobs(model, images, rollouts: list[Rollout], temperature: float = 0.9) -> list[list[float]]:
    install_logprob_forward(model)
    inputs = [PackInput(r.prompt_ids, [(i, r.completion_ids)]) for i, r in enumerate(rollouts)]
    found: dict[int, list[float]] = {}
    for pack in pack_groups(inputs, max_tokens=150, shared_prefix=False):
        batch = with_images(pack, rollouts, images)
        with torch.no_grad():
            logprobs, _ = completion_logprobs(model, batch, temperature, chunk_size=7)
        for rollout_id, part in zip(pack.rollout_ids, logprobs.split(pack.completion_lengths), strict=True):
            found[rollout_id] = part.tolist()
    return [found[i] for i in range(len(rollouts))]


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_logprobs_are_the_trainers(family):
    model, _ = tiny(family)
    images = renderer(family)
    rollouts = _sample(model, images)
    trained = trainer_logprobs(model, images, rollouts)
    for rollout, logprobs in zip(rollouts, trained, strict=True):
        assert logprobs == pytest.approx(rollout.sampler_logprobs, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sampled_image_token_is_text_in_both(family, monkeypatch):
    model, _ = tiny(family)
    images = renderer(family)

    def always_the_image_token(log_probs, uniforms, greedy=None):
        return torch.full((len(log_probs),), images.image_token_id)

    monkeypatch.setattr("grpo_gym.vision.generate.sample_tokens", always_the_image_token)
    rollouts = _sample(model, images, max_tokens=3)
    assert rollouts[0].completion_ids == [images.image_token_id] * 3
    trained = trainer_logprobs(model, images, rollouts)
    for rollout, logprobs in zip(rollouts, trained, strict=True):
        assert logprobs == pytest.approx(rollout.sampler_logprobs, abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_picture_matters(family):
    model, _ = tiny(family)
    images = renderer(family)
    rollouts = _sample(model, images, max_tokens=2)[:1]
    right = trainer_logprobs(model, images, rollouts)[0]
    rollouts[0].images = [picture("blue")]
    wrong = trainer_logprobs(model, images, rollouts)[0]
    assert max(abs(a - b) for a, b in zip(right, wrong, strict=True)) > 1e-3
