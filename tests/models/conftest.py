import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_gym.models import TINY_MODEL_PATH

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))


@pytest.fixture(scope="session")
def tiny_tokenizer():
    return AutoTokenizer.from_pretrained(TINY_MODEL_PATH)


@pytest.fixture(scope="session")
def tiny_model():
    return AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH).eval()
