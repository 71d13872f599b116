"""Prompts with images on a vf-vllm server: `/v1/chat/completions`, and a check that both sides mean the same ids.

`/v1/completions` takes ids but no pictures. The chat route takes messages, makes ids and pixels of them with the
model's own processor, and returns the ids it used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grpo_gym.inference.sampler import ImagePrompt, InferenceError

CHAT_ROUTE = "/v1/chat/completions"
_SHOWN = 5


def check_servable(processor: Any) -> None:
    """Raise a ValueError for a processor whose pictures would end a vf-vllm server.

    vLLM 0.29 asks the image processors of Idefics3 and SmolVLM how many tiles a picture has. For a picture that
    is not split they say 0; vLLM then gives the model no pixels at all, and its engine dies.

    Args:
        processor: of the model, or a tokenizer.
    """
    images: Any = getattr(processor, "image_processor", None)
    # Whether there are tiles is the same for pictures of all sizes: their longest edge is set.
    if hasattr(images, "do_image_splitting") and images.get_number_of_image_patches(1, 1)[0] == 0:
        raise ValueError(
            "vLLM cannot serve pictures in one piece, as this model's processor makes them: set do_image_splitting "
            "to true in the model's processor_config.json or preprocessor_config.json, with a size whose longest_edge "
            "is larger than that of max_image_size, or sample in process (use_vllm=False; in an evaluation, "
            "backend=local)."
        )


def chat_request(completions_request: Mapping[str, Any], images: ImagePrompt) -> dict[str, Any]:
    """A `/v1/completions` request as a chat request with pictures.

    Args:
        completions_request: for its model and sampling parameters.
        images: messages with data URIs.
    """
    body = {name: value for name, value in completions_request.items() if name not in ("prompt", "logprobs")}
    body |= {"messages": images.messages, "logprobs": True, "top_logprobs": 0, "return_token_ids": True}
    if images.chat_template_kwargs:
        body["chat_template_kwargs"] = images.chat_template_kwargs
    return body


def completions_answer(answer: Mapping[str, Any], prompt_ids: Sequence[int]) -> dict[str, Any]:
    """A chat answer in the form of a `/v1/completions` answer.

    Args:
        answer: of the chat route.
        prompt_ids: the prompt as the trainer sees it, image placeholders expanded.

    Raises:
        InferenceError: the server sampled from another prompt.
    """
    check_same_prompt(answer.get("prompt_token_ids"), prompt_ids)
    choices = []
    for choice in answer["choices"]:
        content = (choice.get("logprobs") or {}).get("content")
        logprobs = None if content is None else [token["logprob"] for token in content]
        choices.append({**choice, "logprobs": {"token_logprobs": logprobs}})
    return {**answer, "choices": choices}


def check_same_prompt(theirs: Sequence[int] | None, ours: Sequence[int]) -> None:
    """Raise an InferenceError unless the server's prompt ids are the trainer's."""
    if theirs is None:
        raise InferenceError("the server returned no prompt_token_ids; it must be a vf-vllm server")
    if list(theirs) == list(ours):
        return
    place = next(
        (i for i, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), min(len(theirs), len(ours))
    )
    raise InferenceError(
        f"the server's prompt has {len(theirs)} tokens, the trainer's {len(ours)}, and they differ from token {place} "
        f"on: {list(theirs[place : place + _SHOWN])} and {list(ours[place : place + _SHOWN])}. Serve the model from "
        "the folder or name that is trained, without --chat-template and --mm-processor-kwargs. (Later turns of a "
        "conversation must tokenize to what was sampled.)"
    )
