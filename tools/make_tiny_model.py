"""Make the tiny model that ships with grpo_gym: tokenizer, supervised warm start, measurement.

    python tools/make_tiny_model.py --output grpo_gym/models/tiny --seed 0

It needs no download and no GPU. The data, the manners of answering and the figures are described in
grpo_gym/models/README.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from random import Random

import torch
from tiny_model.manners import write_answer
from tiny_model.measure import measure
from tiny_model.prompts import sample_system_prompt
from tiny_model.tasks import held_out_leg_counting, training_problems
from tiny_model.tokenizer import train_tokenizer
from tiny_model.train import Recipe, warm_start
from transformers import GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast


def make_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on a sample of the warm-start corpus."""
    rng = Random(seed)
    problems = training_problems(6_000, seed)
    corpus: list[str] = []
    for problem in problems:
        corpus += [sample_system_prompt(rng) or "", problem.question, write_answer(problem, "worked", rng)]
        corpus.append(write_answer(problem, "untagged", rng))
    return train_tokenizer(corpus)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write weights, configuration, generation defaults, tokenizer and chat template."""
    # No sampling defaults: servers would apply them over a trainer's back.
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(output)
    (output / "model.safetensors").chmod(0o644)  # written as 0600, which an installed package must not be
    tokenizer.save_pretrained(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="directory to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=Recipe().steps, help="training steps (batches of 64)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    started = time.monotonic()
    tokenizer = make_tokenizer(arguments.seed)
    recipe = dataclasses.replace(Recipe(), steps=arguments.steps)
    model = warm_start(tokenizer, recipe, arguments.seed)
    save(model, tokenizer, arguments.output)
    print(f"{model.num_parameters():,} parameters, {time.monotonic() - started:.0f} s -> {arguments.output}")
    print(json.dumps(dataclasses.asdict(measure(model, tokenizer, held_out_leg_counting())), indent=2))


if __name__ == "__main__":
    main()
