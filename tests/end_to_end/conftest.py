"""One real vf-vllm on the CPU for all end-to-end tests, with the embedded model."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from grpo_gym.inference.colocate import ColocatedServer
from grpo_gym.models import TINY_MODEL_PATH

SERVER_FLAGS = ["--enforce-eager", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"]
TEXT = list(range(20, 60))
"""Token ids of a fixed text."""


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """A running server; stopped at the end whatever happens."""
    log = tmp_path_factory.mktemp("vf-vllm") / "server.log"
    running = ColocatedServer("tiny", max_model_len=640, extra_args=SERVER_FLAGS, log_path=log)
    running.start(timeout=300)
    yield running
    running.stop()


@torch.no_grad()
def model_logprobs(model, ids=TEXT) -> list[float]:
    """Log-probs of every token after the first, by a plain forward pass."""
    logprobs = model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return logprobs[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0].tolist()


@pytest.fixture
def tiny_model():
    return AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)


def mean_difference(a, b) -> float:
    return sum(abs(x - y) for x, y in zip(a, b, strict=True)) / len(a)
