"""Byte-level BPE trained on the warm-start corpus; any text round-trips.

Two choices keep prompts short for a toy: merges may cross spaces, so that a boilerplate sentence is a few
tokens, and each digit and operator is a token of its own, so that arithmetic sees them.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 1024
MAX_LENGTH = 2048
PAD, END, SYSTEM, USER, ASSISTANT = "<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL_TOKENS = (PAD, END, SYSTEM, USER, ASSISTANT)
# Ordinary tokens: decoding with skip_special_tokens keeps them, as parsers of <answer> need.
TAGS = ("<think>", "</think>", "<answer>", "</answer>")

# System, user and assistant turns; tools as signatures, calls and results in Qwen's tags.
CHAT_TEMPLATE = """\
{%- if tools -%}
{{- '<|system|>Tools:' -}}
{%- for tool in tools -%}
{{- ' ' + tool['function']['name'] + '(' + tool['function']['parameters']['properties'] | join(', ') + ')' -}}
{%- endfor -%}
{{- '. Call one: <tool_call>{"name": ..., "arguments": {...}}</tool_call><|end|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- if message['role'] == 'tool' -%}
{{- '<|user|><tool_response>' + message['content'] + '</tool_response><|end|>' -}}
{%- elif message['role'] in ['system', 'user', 'assistant'] -%}
{{- '<|' + message['role'] + '|>' + (message['content'] or '') -}}
{%- for call in message['tool_calls'] or [] -%}
{{- '<tool_call>{"name": "' + call['function']['name'] + '", "arguments": ' -}}
{{- call['function']['arguments'] | tojson + '}</tool_call>' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- else -%}
{{- raise_exception('this chat template knows the roles system, user, assistant and tool, not ' + message['role']) -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def train_tokenizer(corpus: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train on the corpus's texts (given without chat tokens)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r'[-+*=<"]'), behavior="isolated"),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(TAGS),
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[SYSTEM, USER, ASSISTANT],
        chat_template=CHAT_TEMPLATE,
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
