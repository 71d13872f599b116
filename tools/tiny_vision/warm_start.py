"""A short supervised start: afterwards the model sees, but guesses often.

Answers it is shown are wrong now and then, so that it learns what tells the answers apart and still samples
wrong ones: something for reinforcement learning to build on.
"""

from __future__ import annotations

import random
from typing import Any

import torch
import verifiers as vf

from grpo_gym.rollouts.types import Rollout
from grpo_gym.training.logprobs import completion_logprobs, install_logprob_forward
from grpo_gym.training.packing import PackInput, pack_groups
from grpo_gym.vision.renderer import ImageChatRenderer
from grpo_gym.vision.training_batch import with_images


def warm_start(
    model: Any,
    processor: Any,
    env: vf.Environment,
    steps: int = 120,
    batch_size: int = 32,
    wrong: float = 0.5,
    learning_rate: float = 2e-3,
    seed: int = 0,
) -> list[float]:
    """Train on the environment's questions with answers in `<answer>` tags.

    Args:
        model: changed in place.
        processor: of the model.
        env: with `row` and `num_rows`, as `visual_tasks`.
        steps: optimizer steps.
        batch_size: questions per step.
        wrong: share of questions whose shown answer is drawn at random from those of the batch.
        learning_rate: of AdamW.
        seed: of the order and the wrong answers.

    Returns:
        The loss of every step.
    """
    renderer = ImageChatRenderer(processor, model.config)
    install_logprob_forward(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    rng = random.Random(seed)
    losses = []
    for _ in range(steps):
        rows = [env.row(rng.randrange(env.num_rows("train")), "train") for _ in range(batch_size)]
        loss = _loss(model, renderer, rows, wrong, rng)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def _loss(model: Any, renderer: ImageChatRenderer, rows: list[dict], wrong: float, rng: random.Random) -> Any:
    answers = [row["answer"] for row in rows]
    shown = [rng.choice(answers) if rng.random() < wrong else answer for answer in answers]
    rollouts = [_example(renderer, row, answer) for row, answer in zip(rows, shown, strict=True)]
    inputs = [PackInput(r.prompt_ids, [(i, r.completion_ids)]) for i, r in enumerate(rollouts)]
    (pack,) = pack_groups(inputs, max_tokens=2**20, shared_prefix=False)
    logprobs, _ = completion_logprobs(model, with_images(pack, rollouts, renderer))
    return -logprobs.mean()


def _example(renderer: ImageChatRenderer, row: dict, answer: str) -> Rollout:
    images = renderer.image_prompt(row["prompt"])
    ids = renderer.tokenizer(f"<answer>{answer}</answer>", add_special_tokens=False)["input_ids"]
    ids = [*ids, renderer.tokenizer.eos_token_id]
    urls = list(images.urls) if images else []
    return Rollout(
        renderer.prompt_ids(row["prompt"]), ids, [0.0] * len(ids), [1] * len(ids), 0.0, images=urls
    )
