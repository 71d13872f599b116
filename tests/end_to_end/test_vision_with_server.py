"""A vision-language model on a real vf-vllm: the ids and log-probs of both sides, and a training run.

On the CPU vLLM serves Idefics3 only: its code for Qwen-VL, SmolVLM and Gemma 3 needs torchvision.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import sys
from pathlib import Path

import pytest
from visual_tasks import load_environment

from grpo_gym import GRPOConfig, GRPOTrainer
from grpo_gym.inference.colocate import ColocatedServer
from grpo_gym.inference.sampler import InferenceError, SamplingParams
from grpo_gym.inference.vllm_client import VLLMSampler
from grpo_gym.rollouts.types import Rollout
from grpo_gym.vision.loading import part_of
from grpo_gym.vision.renderer import ImageChatRenderer
from tests.vision.conftest import CORPUS, ask, lying_photo, picture, see_through
from tests.vision.test_agreement import trainer_logprobs

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from tiny_vision.families import make, save

PARTS = {"vision_tower", "projector", "language"}


@functools.cache
def policy():
    # With tiles, as checkpoints have it: vLLM ends on a picture that is one tile. Its attention on the CPU has
    # kernels for heads of 32 and more.
    return make("idefics3_tiles", CORPUS, hidden_size=128)


def renderer():
    model, processor = policy()
    return ImageChatRenderer(processor, model.config)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(*policy(), tmp_path_factory.mktemp("idefics3"))


@pytest.fixture(scope="module")
def vision_server(folder, tmp_path_factory):
    log = tmp_path_factory.mktemp("vf-vllm") / "server.log"
    running = ColocatedServer(folder, max_model_len=256, extra_args=["--enforce-eager"], log_path=log)
    running.start(timeout=300)
    yield running
    running.stop()


def sample(url, folder, ids, images, seed=0):
    async def once():
        sampler = VLLMSampler([url], model=folder)
        try:
            return await sampler.sample(ids, SamplingParams(12, temperature=0.9, seed=seed), images=images)
        finally:
            await sampler.close()

    return asyncio.run(once())


def rollout(url, folder, messages, seed=0):
    """What the server samples for a conversation; its prompt must be ours to the token."""
    images = renderer()
    ids, prompt = images.prompt_ids(messages), images.image_prompt(messages)
    result = sample(url, folder, ids, prompt, seed)
    urls = list(prompt.urls) if prompt else []
    mask = [1] * len(result.completion_ids)
    return Rollout(ids, result.completion_ids, result.logprobs, mask, 1.0, images=urls)


def largest_difference(model, rollouts):
    """Between the server's log-probs and those of `model`, in nats."""
    ours = trainer_logprobs(model, renderer(), rollouts)
    pairs = zip(rollouts, ours, strict=True)
    return max(abs(a - b) for r, logprobs in pairs for a, b in zip(r.sampler_logprobs, logprobs, strict=True))


def test_ids_and_logprobs_agree(vision_server, folder):
    conversations = [
        ask("Which?", picture("red")),
        ask("How many?", picture("green", (84, 56)), picture("blue")),
        ask("None."),
        ask("And these?", lying_photo(), see_through()),  # both sides turn and fill them in the same way
    ]
    rollouts = [rollout(vision_server.base_url, folder, c, seed) for seed, c in enumerate(conversations)]
    assert largest_difference(policy()[0], rollouts) < 1e-3
    rollouts[0].images = [picture("blue")]
    assert largest_difference(policy()[0], rollouts[:1]) > 0.01
    rollouts[3].images = [lying_photo(orientation=1), see_through()]
    assert largest_difference(policy()[0], rollouts[3:]) > 0.01


def test_another_prompt_than_the_servers_is_an_error(vision_server, folder):
    images = renderer()
    messages = ask("Which?", picture())
    with pytest.raises(InferenceError, match="they differ from token"):
        sample(
            vision_server.base_url, folder, images.prompt_ids(messages)[:-1], images.image_prompt(messages)
        )


def share_of_letters(completion):
    """A reward that random weights get some of, other than the right answer."""
    text = completion[-1]["content"]
    return sum(c.isalpha() for c in text) / max(1, len(text))


def with_weights_of(model, parts):
    """The policy as it was before training, with some parts of the trained one."""
    mixed = copy.deepcopy(policy()[0])
    trained = {name: value for name, value in model.state_dict().items() if part_of(name) in parts}
    mixed.load_state_dict(trained, strict=False)
    return mixed


def test_training_with_a_server(vision_server, folder, tmp_path):
    args = GRPOConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=16, num_generations=4,
        max_completion_length=6, learning_rate=3e-3, report_to="none", disable_tqdm=True, do_eval=False,
        num_completions_to_print=0, save_strategy="no", eval_num_problems=4, beta=0.0, max_staleness=0,
        use_vllm=True, vllm_server_base_url=vision_server.base_url, scale_rewards="none", num_iterations=1,
        vllm_server_timeout=5,
    )  # fmt: skip
    # The same pictures in every step: what the server keeps of them must not outlive the weights.
    env = load_environment(image_size=56, num_train_examples=4, num_eval_examples=4)
    env.rubric.add_reward_func(share_of_letters)
    trainer = GRPOTrainer(folder, env, args)
    trainer.train()
    steps = [entry for entry in trainer.state.log_history if "reward" in entry]
    assert len(steps) == 3
    assert all(entry["rollouts/failed"] == 0 and entry["grad_norm"] > 0 for entry in steps)
    # Later steps are sampled with pushed weights. (The last push is for step 3: nothing is sampled after it.)
    assert [entry["policy_version"] for entry in steps] == [0, 1, 2]
    assert max(entry["sampling/sampling_logp_difference/max"] for entry in steps) < 1e-3
    # Old weights in any part of the model would have been seen.
    seen = rollout(vision_server.base_url, folder, ask("Which?", picture("red")))
    (seen.sampler_logprobs,) = trainer_logprobs(trainer.model, renderer(), [seen])
    for part in PARTS:
        assert largest_difference(with_weights_of(trainer.model, PARTS - {part}), [seen]) > 0.01, part
