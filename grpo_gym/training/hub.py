"""Pushing to the Hub: whether it can work is asked before training, not found out after it."""

from __future__ import annotations

from huggingface_hub import get_token
from huggingface_hub.constants import is_offline_mode
from transformers import TrainingArguments


def check_hub(args: TrainingArguments) -> None:
    """Check that a model that is to be pushed can be.

    Raises:
        ValueError: `push_to_hub` without a token, or with the Hub switched off.
    """
    if not args.push_to_hub:
        return
    if is_offline_mode():
        raise ValueError("push_to_hub=True, but HF_HUB_OFFLINE is set; unset it, or use push_to_hub=False.")
    if not (args.hub_token or get_token()):
        raise ValueError(
            "push_to_hub=True, but there is no token; set HF_TOKEN (in the environment or in .env) to a token that "
            "may write, or run `hf auth login`."
        )
