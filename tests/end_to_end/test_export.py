"""Checkpoints of real runs of two processes, exported without them: loaded by transformers, served by vLLM."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpo_gym.cli import main
from grpo_gym.inference.colocate import ColocatedServer
from grpo_gym.inference.server_api import server_logprobs
from grpo_gym.models import TINY_MODEL_PATH
from tests.end_to_end.conftest import SERVER_FLAGS, TEXT, mean_difference, model_logprobs

ROOT = Path(__file__).parents[2]
RUN = Path(__file__).parent / "export_run.py"
MODES = {"deepspeed_zero2": "ZeRO", "deepspeed_zero3": "ZeRO", "fsdp1": "FSDP", "fsdp2": "FSDP"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The folder of a two-process run of a mode, made when first asked for: adamw/ and lora/."""
    made: dict[str, Path] = {}

    def run(mode: str) -> Path:
        if mode not in made:
            folder = tmp_path_factory.mktemp(mode)
            # LoRA under FSDP1 is refused: PEFT would save empty adapters.
            launch(mode, folder, *(["adamw"] if mode == "fsdp1" else ["adamw", "lora"]))
            made[mode] = folder
        return made[mode]

    return run


def launch(mode: str, folder: Path, *scenarios: str) -> None:
    accelerate = [str(Path(sys.executable).parent / "accelerate"), "launch", "--num-processes", "2"]
    config = ["--config-file", str(ROOT / f"configs/accelerate/{mode}.yaml"), "--main-process-port", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*accelerate, *config, str(RUN), str(folder), *scenarios],
        env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]


def trained_model(folder: Path):
    """The tiny model with the weights the trainer had in the end, gathered by the trainer."""
    model = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    missing, unknown = model.load_state_dict(torch.load(folder / "weights.pt"), strict=False)
    assert missing == ["lm_head.weight"]
    assert not unknown
    return model


@pytest.mark.parametrize("mode", MODES)
def test_a_sharded_checkpoint_becomes_the_trainer_s_model(runs, mode, tmp_path, capsys):
    folder = runs(mode) / "adamw"
    assert main(["export", str(folder / "checkpoint-2"), str(tmp_path / "out")]) == 0
    assert f"from a {MODES[mode]} checkpoint" in capsys.readouterr().out
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = model_logprobs(trained_model(folder))
    assert max(abs(a - b) for a, b in zip(model_logprobs(exported), expected, strict=True)) < 1e-5
    start = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    assert mean_difference(model_logprobs(start), expected) > 1e-3  # training did something
    chat = [{"role": "user", "content": "How many legs has a cow?"}]
    tokenizers = [AutoTokenizer.from_pretrained(place) for place in (tmp_path / "out", TINY_MODEL_PATH)]
    texts = [tokenizer.apply_chat_template(chat, tokenize=False) for tokenizer in tokenizers]
    assert texts[0] == texts[1]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert (tmp_path / "out/generation_config.json").is_file()


@pytest.mark.parametrize("mode", ["deepspeed_zero2", "deepspeed_zero3", "fsdp2"])
def test_adapters_of_a_sharded_checkpoint_are_merged(runs, mode, tmp_path):
    folder = runs(mode) / "lora"
    assert main(["export", str(folder / "checkpoint-2"), str(tmp_path / "out"), "--merge-lora"]) == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    expected = model_logprobs(trained_model(folder))
    assert max(abs(a - b) for a, b in zip(model_logprobs(exported), expected, strict=True)) < 1e-4
    start = AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH)
    assert mean_difference(model_logprobs(start), expected) > 1e-3


@pytest.mark.parametrize("mode", ["deepspeed_zero3", "fsdp2"])
def test_vllm_serves_an_exported_checkpoint(runs, mode, tmp_path):
    folder = runs(mode) / "adamw"
    out = tmp_path / "served"
    assert main(["export", str(folder / "checkpoint-2"), str(out)]) == 0
    server = ColocatedServer(
        str(out), max_model_len=128, extra_args=SERVER_FLAGS, log_path=tmp_path / "server.log"
    )
    server.start(timeout=300)
    try:
        served = server_logprobs(server.base_url, str(out), TEXT)
    finally:
        server.stop()
    expected = model_logprobs(trained_model(folder))
    assert mean_difference(served, expected) < 1e-4
    assert (
        mean_difference(served, model_logprobs(AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH))) > 1e-3
    )
