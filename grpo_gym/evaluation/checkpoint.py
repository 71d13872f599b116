"""Which model an evaluation is about, checked before anything is loaded."""

from __future__ import annotations

import hashlib
import os
import urllib.error
import urllib.request
from pathlib import Path

from grpo_gym.config.errors import ConfigError
from grpo_gym.evaluation.config import EvalConfig
from grpo_gym.models import default_model, resolve_model

_SAMPLE_BYTES = 2**20
_REACH_SECONDS = 15.0


def check_model(config: EvalConfig) -> None:
    """Raise a ConfigError when the model is not there or its URL does not answer."""
    if config.resolved_backend == "openai":
        check_url(str(config.base_url), api_key(config))
    else:
        local_checkpoint(config)


def model_label(config: EvalConfig) -> str:
    """The model as the user named it, or the default of this machine."""
    return config.model or default_model()


def local_checkpoint(config: EvalConfig) -> str:
    """The folder or Hub name to load.

    Raises:
        ConfigError: it is neither a folder with a model nor a name that can be loaded.
    """
    try:
        name = resolve_model(model_label(config))
    except FileNotFoundError as error:
        raise ConfigError(f"model: {error}") from error
    folder = Path(name).expanduser()
    if folder.is_dir():
        return str(_checked_folder(folder))
    if name.startswith((".", "/", "~")):
        raise ConfigError(f"model: no folder '{name}'; give a checkpoint, a Hugging Face name or tiny.")
    _check_hub_name(name)
    return name


def _checked_folder(folder: Path) -> Path:
    if any((folder / name).is_file() for name in ("config.json", "adapter_config.json")):
        return folder
    inside = sorted(folder.glob("checkpoint-*"), key=lambda path: path.stat().st_mtime)
    hint = f"; did you mean '{inside[-1]}'?" if inside else "; give the folder that holds config.json."
    raise ConfigError(f"model: there is no model in '{folder}'{hint}")


def _check_hub_name(name: str) -> None:
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(name)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"model: '{name}' is no folder here, and could not be loaded by name ({reason})."
        ) from error


def model_fingerprint(config: EvalConfig) -> str:
    """What tells one set of weights from another under the same name.

    Of a folder a digest of the start and the end of its weight files, so that a checkpoint that was trained
    on under the same path counts as another model; of anything else its name.
    """
    if config.resolved_backend == "openai":
        return str(config.model)
    folder = Path(local_checkpoint(config))
    if not folder.is_dir():
        return str(folder)
    digest = hashlib.sha256()
    for path in _weight_files(folder):
        digest.update(f"{path.name} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            digest.update(file.read(_SAMPLE_BYTES))
            file.seek(max(0, path.stat().st_size - _SAMPLE_BYTES))
            digest.update(file.read())
    return f"weights {digest.hexdigest()[:16]}"


def _weight_files(folder: Path) -> list[Path]:
    """Files of whole weights or adapters, and those of sharded adapters where they are the only ones."""
    found = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if (folder / "adapter_config.json").is_file() and not any(folder.glob("adapter_model.*")):
        found += folder.glob("pytorch_model_fsdp_0/*.distcp")
        found += folder.glob("global_step*/*_optim_states.pt")
    return sorted(found)


def api_key(config: EvalConfig) -> str | None:
    """The key in the variable `api_key_var`.

    Raises:
        ConfigError: the variable is not set.
    """
    if config.api_key_var is None:
        return None
    key = os.environ.get(config.api_key_var)
    if not key:
        raise ConfigError(f"api_key_var: {config.api_key_var} is not set; export it, or put it into .env.")
    return key


def check_url(base_url: str, key: str | None) -> None:
    """Raise a ConfigError when nobody answers at `base_url`, or the key is refused."""
    if not base_url.startswith(("http://", "https://")):
        raise ConfigError(f"base_url: '{base_url}' must start with http:// or https://.")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(f"{base_url.rstrip('/')}/models", headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=_REACH_SECONDS):
            return
    except urllib.error.HTTPError as error:
        # Not every API lists its models; one that refuses the key will refuse the questions, too.
        if error.code in (401, 403):
            raise ConfigError(
                f"base_url: {base_url} refuses the key (HTTP {error.code}); set api_key_var to the variable that "
                "holds it."
            ) from error
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConfigError(
            f"base_url: {base_url} does not answer ({reason}); start the server, or correct the URL."
        ) from error
