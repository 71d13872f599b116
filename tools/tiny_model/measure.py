"""Sampled accuracy at temperature 1, by manner."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tiny_model.prompts import DEFAULT_SYSTEM_PROMPT
from tiny_model.tasks import Problem
from tiny_model.train import encode_prompt


@dataclass(frozen=True, slots=True)
class Measurement:
    """Exact-match accuracy; `worked_*` and `tagged_*` concern the answers written in that manner."""

    accuracy: float
    worked_share: float
    worked_accuracy: float
    tagged_share: float
    tagged_accuracy: float
    mean_length: float
    clipped: float


@torch.no_grad()
def sample_texts(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompts: list[str], max_new_tokens: int = 96
) -> tuple[list[str], list[int]]:
    """One completion per prompt at temperature 1, and their lengths in tokens with the end token."""
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    output = model.generate(  # type: ignore[misc]  # transformers annotates `self` too narrowly
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=max_new_tokens,
    )
    completions = output[:, inputs["input_ids"].shape[1] :]
    lengths = (completions != tokenizer.pad_token_id).sum(-1).tolist()
    return tokenizer.batch_decode(completions, skip_special_tokens=True), lengths


def extract_answer(text: str) -> str | None:
    """The first `<answer>`, as `vf.XMLParser` takes from messages."""
    match = re.search(r"<answer>\s*(.*?)\s*</answer>", text, re.DOTALL)
    return match.group(1) if match else None


def _mean(values: list[bool] | list[int]) -> float:
    return sum(values) / len(values) if values else float("nan")


def measure(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    problems: list[Problem],
    seed: int = 0,
    system_prompt: str | None = DEFAULT_SYSTEM_PROMPT,
    max_new_tokens: int = 96,
) -> Measurement:
    """Sample one answer per problem and score it."""
    torch.manual_seed(seed)
    prompts = [encode_prompt(tokenizer, problem.question, system_prompt) for problem in problems]
    texts, lengths = sample_texts(model, tokenizer, prompts, max_new_tokens)
    right = [extract_answer(t) == p.answer for t, p in zip(texts, problems, strict=True)]
    worked = [text.startswith("<think>") for text in texts]
    tagged = [text.startswith("<answer>") for text in texts]
    return Measurement(
        accuracy=_mean(right),
        worked_share=_mean(worked),
        worked_accuracy=_mean([r for r, w in zip(right, worked, strict=True) if w]),
        tagged_share=_mean(tagged),
        tagged_accuracy=_mean([r for r, t in zip(right, tagged, strict=True) if t]),
        mean_length=_mean(lengths),
        clipped=_mean([length >= max_new_tokens for length in lengths]),
    )
