"""What several tests share: the embedded model's tokenizer, a scripted sampler, a small environment."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "0")):
    # Each worker its share of the cores, before torch is imported; the processes it starts inherit it.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import pytest
import verifiers as vf
from datasets import Dataset
from transformers import AutoTokenizer

from grpo_gym.inference.sampler import SampleResult
from grpo_gym.models import TINY_MODEL_PATH


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(TINY_MODEL_PATH)


class ScriptedSampler:
    """Answers with `answer(prompt text, request number)`; an exception it returns is raised."""

    def __init__(self, tokenizer, answer):
        self.tokenizer = tokenizer
        self.answer = answer
        self.requests = []
        self.policy_version = 0

    async def sample(self, prompt_ids, params):
        self.requests.append((list(prompt_ids), params))
        text = self.answer(self.tokenizer.decode(prompt_ids), len(self.requests) - 1)
        if isinstance(text, Exception):
            raise text
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]
        return SampleResult(ids, [-0.25] * len(ids), "stop", self.policy_version)

    async def close(self):
        pass


@pytest.fixture
def scripted_sampler(tokenizer):
    return lambda answer: ScriptedSampler(tokenizer, answer)


def echo_dataset(count: int = 8) -> Dataset:
    return Dataset.from_dict(
        {"question": [f"say {i}" for i in range(count)], "answer": [str(i) for i in range(count)]}
    )


@pytest.fixture
def echo_env():
    """Questions "say N"; 1.0 for an <answer> that is N."""
    parser = vf.XMLParser(["answer"])

    def correct(completion, answer):
        return float(parser.parse_answer(completion) == answer)

    return vf.SingleTurnEnv(
        dataset=echo_dataset(),
        eval_dataset=echo_dataset(4),
        parser=parser,
        rubric=vf.Rubric([correct], parser=parser),
    )
