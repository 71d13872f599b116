"""Tool calls in sampled text: the same ones that vLLM's parsers find."""

import json

import pytest

from grpo_gym.rollouts.tool_calls import read_hermes, read_llama3_json, reader_for, template_tool_calls


def calls_of(read, text):
    content, calls = read(text)
    return content, [(call.name, json.loads(call.arguments)) for call in calls]


SUM = '{"name": "add", "arguments": {"a": 1, "b": 2}}'
ADD = ("add", {"a": 1, "b": 2})


TABLE = [
    (f"<tool_call>{SUM}</tool_call>", ("", [ADD])),
    (f"<think>sum</think>\n<tool_call>\n{SUM}\n</tool_call>", ("<think>sum</think>", [ADD])),
    (f"<tool_call>{SUM}</tool_call>\n<tool_call>{SUM}</tool_call>", ("", [ADD, ADD])),
    (f"<tool_call>{SUM}", ("", [ADD])),  # vLLM reads a call that lacks its closing tag, too
    ("no call", ("no call", [])),
    ("", ("", [])),
    ('<tool_call>{"name": "add", "arg', ('<tool_call>{"name": "add", "arg', [])),
    ("<tool_call>add(1, 2)</tool_call>", ("<tool_call>add(1, 2)</tool_call>", [])),
    ('<tool_call>["add"]</tool_call>', ('<tool_call>["add"]</tool_call>', [])),
    (
        '<tool_call>{"name": 3, "arguments": {}}</tool_call>',
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', []),
    ),
    ('<tool_call>{"name": "add"}</tool_call>', ('<tool_call>{"name": "add"}</tool_call>', [])),
    (SUM, (SUM, [])),
    ('<tool_call>{"name": "add", "arguments": null}</tool_call>', ("", [("add", None)])),
    ("<tool_call></tool_call>", ("<tool_call></tool_call>", [])),
]


@pytest.mark.parametrize(("text", "expected"), TABLE)
def test_hermes(text, expected):
    assert calls_of(read_hermes, text) == expected


def test_one_unreadable_call_makes_the_message_text():
    text = f"<tool_call>{SUM}</tool_call><tool_call>broken</tool_call>"
    assert calls_of(read_hermes, text) == (text, [])


def test_arguments_that_are_no_mapping_are_left_to_the_environment():
    assert calls_of(read_hermes, '<tool_call>{"name": "add", "arguments": "1"}</tool_call>') == (
        "",
        [("add", "1")],
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"name": "add", "parameters": {"a": 1, "b": 2}}', ("", [ADD])),
        (f"<|python_tag|>{SUM}", ("", [ADD])),
        (f"{SUM}; {SUM}", ("", [ADD, ADD])),
        ("the answer is {}", ("the answer is {}", [])),
        ('{"name": "add", "parameters": ', ('{"name": "add", "parameters": ', [])),
        ('{"answer": 3}', ('{"answer": 3}', [])),
    ],
)
def test_llama(text, expected):
    assert calls_of(read_llama3_json, text) == expected


def test_the_format_is_the_templates():
    assert reader_for("... <tool_call> ...") is read_hermes
    assert reader_for("... <|python_tag|> ...") is read_llama3_json
    assert reader_for(None) is read_hermes


def test_calls_have_ids_of_their_own():
    _, calls = read_hermes(f"<tool_call>{SUM}</tool_call>" * 3)
    assert len({call.id for call in calls}) == 3


def test_templates_get_openais_nesting_with_arguments_as_a_mapping():
    _, calls = read_hermes(f"<tool_call>{SUM}</tool_call>")
    (written,) = template_tool_calls([calls[0].model_dump()])
    assert written["function"] == {"name": "add", "arguments": {"a": 1, "b": 2}}
    assert template_tool_calls([written]) == [written]


def test_vllms_own_parser_agrees(tokenizer):
    parsers = pytest.importorskip("vllm.tool_parsers.hermes_tool_parser", exc_type=ImportError)
    parser = parsers.Hermes2ProToolParser(tokenizer)
    for text, (content, expected) in TABLE:
        found = parser.extract_tool_calls(text, request=None)
        assert [(c.function.name, json.loads(c.function.arguments)) for c in found.tool_calls] == expected, (
            text
        )
        assert (found.content or "").strip() == content
