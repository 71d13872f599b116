"""Supervised training: loss on the answer's tokens only, each token of a batch with the same weight."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tiny_model.manners import Mix, write_answer
from tiny_model.prompts import sample_system_prompt
from tiny_model.tasks import Problem, training_problems
from tiny_model.tokenizer import MAX_LENGTH

IGNORED = -100
FIRST_MIX = Mix(worked=0.6, tagged=0.2)
FINAL_MIX = Mix(worked=0.2, tagged=0.4)


@dataclass(frozen=True, slots=True)
class Recipe:
    """How the warm start runs.

    The first `1 - final_share` of the steps show mostly worked answers, since these are what must become
    right; the last steps show the mix that the shipped model samples.
    """

    steps: int = 1400
    batch_size: int = 64
    micro_batch_size: int = 16
    learning_rate: float = 3e-3
    warmup_steps: int = 60
    weight_decay: float = 0.05
    first_mix: Mix = FIRST_MIX
    final_mix: Mix = FINAL_MIX
    final_share: float = 0.3


def build_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """An untrained Llama of about two million parameters."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=6,
        head_dim=32,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def encode_prompt(tokenizer: PreTrainedTokenizerFast, question: str, system_prompt: str | None) -> str:
    """The rendered prompt, ending where the assistant begins."""
    messages = [{"role": "user", "content": question}]
    if system_prompt is not None:
        messages.insert(0, {"role": "system", "content": system_prompt})
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


Example = tuple[list[int], list[int]]


def encode_examples(
    tokenizer: PreTrainedTokenizerFast, problems: list[Problem], mix: Mix, rng: Random
) -> list[Example]:
    """Prompt ids and answer ids (with the end token) of each problem."""
    prompts = [encode_prompt(tokenizer, p.question, sample_system_prompt(rng)) for p in problems]
    answers = [write_answer(p, mix.sample(rng), rng) for p in problems]
    prompt_ids = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    answer_ids = tokenizer(answers, add_special_tokens=False)["input_ids"]
    return [(p, [*a, tokenizer.eos_token_id]) for p, a in zip(prompt_ids, answer_ids, strict=True)]


def collate(batch: list[Example], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right-padded ids and labels, both int64 of shape (batch, length)."""
    length = max(len(prompt) + len(answer) for prompt, answer in batch)
    ids = torch.full((len(batch), length), pad_id)
    labels = torch.full((len(batch), length), IGNORED)
    for row, (prompt, answer) in enumerate(batch):
        end = len(prompt) + len(answer)
        ids[row, :end] = torch.tensor(prompt + answer)
        labels[row, len(prompt) : end] = torch.tensor(answer)
    return ids, labels


def micro_batches(batch: list[Example], size: int) -> Iterator[list[Example]]:
    """Parts of like length, to pad little.

    Whole batches of like length would part the manners: worked answers are long, and the mean over a
    batch's tokens would then make their first tokens, where the manner is chosen, too rare.
    """
    ordered = sorted(batch, key=lambda example: len(example[0]) + len(example[1]))
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]


def learning_rate(step: int, recipe: Recipe) -> float:
    """Linear warm-up, then a cosine to zero."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    progress = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def answer_loss(model: LlamaForCausalLM, ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Summed negative log-likelihood of the answer tokens, in nats.

    Right padding needs no attention mask under causal attention: nothing real looks at the padding.
    """
    hidden = model.model(input_ids=ids[:, :-1]).last_hidden_state
    targets = labels[:, 1:]
    kept = targets != IGNORED
    return cross_entropy(model.lm_head(hidden[kept]), targets[kept], reduction="sum")


def accumulate_gradient(model: LlamaForCausalLM, batch: list[Example], micro_size: int, pad_id: int) -> float:
    """Add the gradient of the batch's mean loss per answer token; returns that loss."""
    tokens = sum(len(answer) for _, answer in batch)
    total = 0.0
    for part in micro_batches(batch, micro_size):
        loss = answer_loss(model, *collate(part, pad_id)) / tokens
        loss.backward()
        total += loss.item()
    return total


def warm_start(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> LlamaForCausalLM:
    """Train a fresh model; prints the loss now and then."""
    torch.manual_seed(seed)
    model = build_model(tokenizer)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=recipe.weight_decay
    )
    started = time.monotonic()
    for step, batch in enumerate(_batches(tokenizer, recipe, seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        optimizer.zero_grad()
        loss = accumulate_gradient(model, batch, recipe.micro_batch_size, tokenizer.pad_token_id)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step == recipe.steps - 1:
            print(f"step {step:5d}  loss {loss:.4f}  {time.monotonic() - started:6.0f} s", flush=True)
    return model.eval()


def _batches(tokenizer: PreTrainedTokenizerFast, recipe: Recipe, seed: int) -> Iterator[list[Example]]:
    rng = Random(seed)
    final_steps = round(recipe.steps * recipe.final_share)
    # More than needed: reserved and negative ones are left out.
    count = round(recipe.steps * recipe.batch_size * 1.1)
    problems = training_problems(count, seed)
    first = (recipe.steps - final_steps) * recipe.batch_size
    last = first + final_steps * recipe.batch_size
    for chunk, mix in ((problems[:first], recipe.first_mix), (problems[first:last], recipe.final_mix)):
        examples = encode_examples(tokenizer, chunk, mix, rng)
        for start in range(0, len(examples), recipe.batch_size):
            yield examples[start : start + recipe.batch_size]
