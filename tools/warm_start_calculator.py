"""A short supervised warm start: the embedded model learns to call the calculator, and to do so only sometimes.

    python tools/warm_start_calculator.py --output outputs/tiny-calculator
    grpo-gym train configs/experiments/calculator_tiny.yaml

GRPO makes more frequent what happens sometimes and scores better. The embedded model has never seen a tool call, so
it is shown conversations of the environment `calculator-tools` in two manners: a call, its result and the answer; or
an answer at once. Products of two-digit numbers cannot be guessed by two million parameters.
"""

from __future__ import annotations

import argparse
import json
from random import Random

import torch
import verifiers as vf
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from grpo_gym.models import resolve_model
from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.rollouts.tool_calls import offered_tools

Example = tuple[list[int], list[int]]
"""Token ids, and a mask that is 1 on what the assistant says."""


def call_text(expression: str) -> str:
    """A call of the calculator, as Qwen's template writes it."""
    call = {"name": "calculate", "arguments": {"expression": expression}}
    return f"<tool_call>{json.dumps(call)}</tool_call>"


def demonstration(env: vf.Environment, row: dict, renderer: ChatRenderer, with_call: bool) -> Example:
    """One conversation, built turn by turn from ids as a rollout is."""
    tools = offered_tools(env, row)
    messages = list(row["prompt"])
    ids = renderer.prompt_ids(messages, tools)
    mask = [0] * len(ids)
    if with_call:
        expression = row["question"].removeprefix("What is ").removesuffix("?")
        ids, mask = _say(renderer, ids, mask, call_text(expression))
        messages += [
            {"role": "assistant", "content": call_text(expression)},
            {"role": "tool", "content": row["answer"]},
        ]
        longer = renderer.extend_ids(ids, messages, len(messages) - 1, tools)
        ids, mask = longer, mask + [0] * (len(longer) - len(ids))
    return _say(renderer, ids, mask, f"<answer>{row['answer']}</answer>")


def _say(renderer: ChatRenderer, ids: list[int], mask: list[int], text: str) -> Example:
    tokenizer = renderer.tokenizer
    said = [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    return ids + said, mask + [1] * len(said)


def demonstrations(renderer: ChatRenderer, count: int, share_of_calls: float, seed: int) -> list[Example]:
    """`count` conversations; `share_of_calls` of them with a call, whatever the question."""
    # A seed of its own: other problems than those of the environment's default seed.
    env = vf.load_environment(
        "calculator-tools",
        operators=["*"],
        seed=seed + 10**6,
        num_train_examples=count,
        num_eval_examples=0,
        system_prompt=None,
    )
    rng = Random(seed)
    rows = env.get_dataset()
    return [demonstration(env, row, renderer, rng.random() < share_of_calls) for row in rows]


def train(model: PreTrainedModel, examples: list[Example], batch_size: int, learning_rate: float) -> None:
    """One pass over the examples, the loss on what the assistant says."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    num_steps = len(examples) // batch_size
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, num_steps)
    model.train()
    for step in range(num_steps):
        loss = _loss(model, examples[step * batch_size : (step + 1) * batch_size])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 20 == 0 or step == num_steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.eval()


def _loss(model: PreTrainedModel, batch: list[Example]) -> torch.Tensor:
    ids = pad_sequence([torch.tensor(ids) for ids, _ in batch], batch_first=True)
    said = pad_sequence([torch.tensor(mask) for _, mask in batch], batch_first=True).bool()
    attention = pad_sequence([torch.ones(len(ids)) for ids, _ in batch], batch_first=True)
    labels = ids.masked_fill(~said, -100)
    loss: torch.Tensor = model(input_ids=ids, attention_mask=attention, labels=labels).loss
    return loss


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", default="outputs/tiny-calculator", help="folder of the warmed-up model")
    parser.add_argument("--count", type=int, default=1920, help="conversations")
    parser.add_argument(
        "--share-of-calls", type=float, default=0.5, help="share of conversations with a call"
    )
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    name = resolve_model("tiny")
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name)
    renderer = ChatRenderer(tokenizer)
    examples = demonstrations(renderer, arguments.count, arguments.share_of_calls, arguments.seed)
    train(model, examples, arguments.batch_size, arguments.learning_rate)
    model.save_pretrained(arguments.output)
    tokenizer.save_pretrained(arguments.output)
    print(f"model: {arguments.output}")


if __name__ == "__main__":
    main()
