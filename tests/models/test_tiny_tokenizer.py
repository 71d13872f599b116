import jinja2
import pytest

TEXTS = [
    "What is 17 + 25?",
    "<think>3*4=12</think>\n<answer>12</answer>",
    "  leading, trailing and   inner   spaces \n\n\ttabs ",
    "naïve Übung, 日本語のテキスト, русский, עברית, 🐄🐜 \u200d \x00",
    "",
    "x" * 500,
]


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_comes_back(tiny_tokenizer, text):
    ids = tiny_tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tiny_tokenizer.decode(ids) == text
    assert tiny_tokenizer.decode(ids, skip_special_tokens=True) == text


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<answer>", "</answer>"])
def test_tags_are_single_tokens_that_stay_in_the_text(tiny_tokenizer, tag):
    ids = tiny_tokenizer(f"a{tag}b", add_special_tokens=False)["input_ids"]
    assert tiny_tokenizer.convert_tokens_to_ids(tag) in ids
    assert tiny_tokenizer.decode(ids, skip_special_tokens=True) == f"a{tag}b"


def test_every_digit_is_a_token(tiny_tokenizer):
    assert len(tiny_tokenizer("2026", add_special_tokens=False)["input_ids"]) == 4


def test_chat_template_renders_all_roles(tiny_tokenizer):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
    ]
    text = tiny_tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<|system|>Be brief.<|end|><|user|>1+1?<|end|><|assistant|>2<|end|><|user|>2+2?<|end|><|assistant|>"
    )


def test_generation_prompt_extends_the_conversation(tiny_tokenizer):
    messages = [{"role": "user", "content": "1+1?"}]
    closed = tiny_tokenizer.apply_chat_template(messages, return_dict=False)
    opened = tiny_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert opened[:-1] == closed
    assert tiny_tokenizer.decode(opened[-1:]) == "<|assistant|>"


def test_chat_template_names_the_role_it_does_not_know(tiny_tokenizer):
    with pytest.raises(jinja2.TemplateError, match="critic"):
        tiny_tokenizer.apply_chat_template([{"role": "critic", "content": "x"}], tokenize=False)


def test_chat_template_shows_tools_calls_and_results(tiny_tokenizer):
    parameters = {"type": "object", "properties": {"expression": {"type": "string"}}}
    tools = [
        {"type": "function", "function": {"name": "calculate", "description": "", "parameters": parameters}}
    ]
    call = {"type": "function", "function": {"name": "calculate", "arguments": {"expression": "6*7"}}}
    messages = [
        {"role": "user", "content": "6*7?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "42"},
    ]
    text = tiny_tokenizer.apply_chat_template(
        messages, tools=tools, tokenize=False, add_generation_prompt=True
    )
    assert text == (
        '<|system|>Tools: calculate(expression). Call one: <tool_call>{"name": ..., "arguments": {...}}</tool_call>'
        '<|end|><|user|>6*7?<|end|><|assistant|><tool_call>{"name": "calculate", "arguments": {"expression": "6*7"}}'
        "</tool_call><|end|><|user|><tool_response>42</tool_response><|end|><|assistant|>"
    )


def test_the_packaged_template_is_the_one_the_tool_writes(tiny_tokenizer):
    from tiny_model.tokenizer import CHAT_TEMPLATE

    assert tiny_tokenizer.chat_template.strip() == CHAT_TEMPLATE.strip()


def test_end_token_ends_and_padding_differs(tiny_tokenizer, tiny_model):
    assert tiny_tokenizer.eos_token_id != tiny_tokenizer.pad_token_id
    assert tiny_model.generation_config.eos_token_id == tiny_tokenizer.eos_token_id
    assert tiny_model.config.eos_token_id == tiny_tokenizer.eos_token_id


def test_default_system_prompt_is_short_in_tokens(tiny_tokenizer):
    from tiny_model.prompts import DEFAULT_SYSTEM_PROMPT

    assert len(tiny_tokenizer(DEFAULT_SYSTEM_PROMPT)["input_ids"]) < 40
