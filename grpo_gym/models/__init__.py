"""Model names that need no download: the packaged tiny model and the unpacked SmolLM2."""

from __future__ import annotations

import os
from pathlib import Path

TINY_MODEL_PATH: Path = Path(__file__).resolve().parent / "tiny"
GPU_DEFAULT_MODEL = "Qwen/Qwen2.5-1.5B-Instruct"


def smollm2_path() -> Path:
    """Where `tools/smollm2.py` unpacks SmolLM2-135M-Instruct.

    `$GRPO_GYM_CACHE/smollm2-135m-instruct`; the cache is `~/.cache/grpo_gym` when the variable is unset.
    """
    cache = os.environ.get("GRPO_GYM_CACHE")
    root = Path(cache).expanduser() if cache else Path.home() / ".cache" / "grpo_gym"
    return root / "smollm2-135m-instruct"


def resolve_model(name_or_path: str) -> str:
    """Turn the short names `tiny` and `smollm2` into directories; leave any other name or path as it is.

    Raises:
        FileNotFoundError: `smollm2` is asked for and was not unpacked yet.
    """
    if name_or_path == "tiny":
        return str(TINY_MODEL_PATH)
    if name_or_path != "smollm2":
        return name_or_path
    path = smollm2_path()
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"smollm2 is not in {path}: make it with `python tools/smollm2.py`")
    return str(path)


def default_model() -> str:
    """The model a script takes when none is named: Qwen2.5-1.5B-Instruct on CUDA, the tiny model on CPU."""
    import torch  # here, since importing this module must stay cheap

    return GPU_DEFAULT_MODEL if torch.cuda.is_available() else str(TINY_MODEL_PATH)
