"""Uploading an exported folder to the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path


def require_token(name: str | None) -> str:
    """The token of the environment, asked for before any work is done.

    Raises:
        ValueError: there is none, or the repository has no name.
    """
    if not name or name.count("/") != 1:
        raise ValueError("--push needs --name USER/MODEL, the repository to push to.")
    token = os.environ.get("HF_TOKEN")
    if not token:
        raise ValueError(
            "--push needs the variable HF_TOKEN: a token that may write (export HF_TOKEN=hf_...)."
        )
    return token


def push_folder(folder: Path, name: str, token: str) -> str:
    """Upload the folder; returns its address.

    Raises:
        OSError: the Hub refused it or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token)
    api.create_repo(name, exist_ok=True)
    api.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by GRPO-Gym")
    return f"{api.endpoint}/{name}"
