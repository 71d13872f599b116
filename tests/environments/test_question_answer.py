"""Questions and answers of one's own: reading them, matching them, and what is said when that fails."""

import asyncio
import json
import re

import pyarrow
import pyarrow.parquet
import pytest
import verifiers as vf
from datasets import Dataset
from question_answer import answers_match, load_environment

ROWS = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(20)]


@pytest.fixture
def data_file(tmp_path):
    """Write rows in the format of the suffix; returns the path."""

    def write(suffix, rows=ROWS):
        path = tmp_path / f"data{suffix}"
        if suffix == ".jsonl":
            path.write_text("\n".join(map(json.dumps, rows)))
        elif suffix == ".json":
            path.write_text(json.dumps(rows))
        elif suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        else:
            separator = {".csv": ",", ".tsv": "\t"}[suffix]
            lines = [separator.join(row) for row in [list(rows[0]), *(map(str, r.values()) for r in rows)]]
            path.write_text("\n".join(lines))
        return str(path)

    return write


def all_rows(env):
    return sorted([*env.get_dataset()["question"], *env.get_eval_dataset()["question"]])


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".parquet"])
def test_every_file_format_gives_the_same_rows(data_file, suffix):
    env = vf.load_environment("question-answer", dataset=data_file(suffix))
    assert isinstance(env, vf.SingleTurnEnv)
    assert all_rows(env) == sorted(row["question"] for row in ROWS)
    assert (len(env.get_dataset()), len(env.get_eval_dataset())) == (18, 2)


def test_a_saved_dataset_and_one_in_memory(tmp_path):
    dataset = Dataset.from_list(ROWS)
    dataset.save_to_disk(str(tmp_path / "saved"))
    assert all_rows(load_environment(dataset)) == all_rows(load_environment(tmp_path / "saved"))


def test_a_folder_with_splits_through_load_dataset(tmp_path):
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (tmp_path / "test.jsonl").write_text("\n".join(map(json.dumps, ROWS[:5])))
    env = load_environment(str(tmp_path), eval_split="test")
    assert (len(env.get_dataset()), len(env.get_eval_dataset())) == (20, 5)
    with pytest.raises(ValueError, match=r"cannot load dataset .*split=validation"):
        load_environment(str(tmp_path), split="validation")


def test_columns_can_be_named_and_numbers_are_text(data_file):
    path = data_file(".jsonl", [{"problem": "1+1", "solution": 2}, {"problem": "1+2", "solution": 3}])
    env = load_environment(path, question_field="problem", answer_field="solution")
    rows = [*env.get_dataset(), *env.get_eval_dataset()]
    assert {row["question"]: row["answer"] for row in rows} == {"1+1": "2", "1+2": "3"}


def test_held_out_rows_do_not_depend_on_how_many_are_trained_on(data_file):
    path = data_file(".jsonl")
    few = load_environment(path, num_train_examples=3, num_eval_examples=4)
    many = load_environment(path, num_eval_examples=4)
    assert few.get_eval_dataset()["question"][:] == many.get_eval_dataset()["question"][:]
    assert (len(few.get_dataset()), len(many.get_dataset())) == (3, 16)
    assert not set(many.get_dataset()["question"]) & set(many.get_eval_dataset()["question"])
    other = load_environment(path, num_eval_examples=4, seed=1)
    assert other.get_eval_dataset()["question"][:] != many.get_eval_dataset()["question"][:]


def test_rewards_of_rollouts(data_file, rollout):
    env = load_environment(data_file(".jsonl"), format_weight=0.2)
    row = env.get_dataset()[0]
    texts = {
        f"<think>add</think><answer>{row['answer']}</answer>": 1.2,
        f"add <answer>{row['answer']}.</answer>": 1.0,
        "<think>add</think><answer>-1</answer>": 0.2,
        f"<answer>{row['answer']}": 0.0,
        row["answer"]: 0.0,
    }
    for text, reward in texts.items():
        (output,) = asyncio.run(rollout(env, [row], lambda question, text=text: text))
        assert output["reward"] == pytest.approx(reward)


def test_answers_without_thinking(data_file, rollout):
    env = load_environment(data_file(".jsonl"), think=False)
    row = env.get_dataset()[0]
    assert "<think>" not in row["prompt"][0]["content"]
    for text, reward in (
        (f"<answer>{row['answer']}</answer>", 1.2),
        (f"So <answer>{row['answer']}</answer>", 1.0),
    ):
        (output,) = asyncio.run(rollout(env, [row], lambda question, text=text: text))
        assert output["reward"] == pytest.approx(reward)


def test_answer_regex_keeps_the_final_answer(data_file):
    path = data_file(".jsonl", [{"question": f"q{i}", "answer": f"long story\n#### {i}"} for i in range(3)])
    env = load_environment(path, answer_regex=r"####\s*(.+)", match="numeric")
    assert sorted([*env.get_dataset()["answer"], *env.get_eval_dataset()["answer"]]) == ["0", "1", "2"]
    with pytest.raises(ValueError, match="finds no group in the answer of row 0"):
        load_environment(path, answer_regex=r"Answer: (.+)")


@pytest.mark.parametrize(
    ("match", "given", "expected", "same"),
    [
        ("exact", " Paris ", "Paris", True),
        ("exact", "paris", "Paris", False),
        ("normalized", "  the  CAT. ", "The cat", True),
        ("normalized", "ＡＢＣ", "abc", True),
        ("normalized", "the dog", "the cat", False),
        ("normalized", "1.5", "15", False),
        ("numeric", "$1,000.00", "1000", True),
        ("numeric", "1/2", "0.5", True),
        ("numeric", "-$5", "-5", True),
        ("numeric", "−3", "-3", True),
        ("numeric", "1e3", "1000", True),
        ("numeric", "50%", "50", True),
        ("numeric", "0.333333333", "1/3", True),
        ("numeric", "0.33", "1/3", False),
        ("numeric", "12345678901234567890123", "12345678901234567890123", True),
        ("numeric", "1,00", "100", False),
        ("numeric", "1/0", "1", False),
        ("numeric", "about 5", "5", False),
        ("numeric", "1e999999999", "5", False),
        ("numeric", ".", "0", False),
        ("numeric", "", "0", False),
    ],
)
def test_matching(match, given, expected, same):
    assert answers_match(given, expected, match) is same


@pytest.mark.parametrize(
    ("rows", "arguments", "message"),
    [
        (
            [{"questions": "q", "answer": "a"}],
            {},
            "no column 'question'; it has questions, answer; did you mean question_field='questions'",
        ),
        (
            [{"question": "q", "target": "a"}],
            {},
            "it has question, target; set answer_field",
        ),
        ([{"question": "q", "answer": None}], {}, "row 0: 'answer' is empty"),
        ([{"question": " ", "answer": "a"}], {}, "row 0: 'question' is empty"),
        ([{"question": "q", "answer": ["a"]}], {}, "row 0: 'answer' holds list ['a']"),
        ([], {}, "has no rows"),
        (ROWS[:1], {}, "cannot hold 1 of 1 rows out"),
        (ROWS, {"num_eval_examples": 20}, "cannot hold 20 of 20 rows out"),
        (ROWS, {"num_train_examples": 500}, "num_train_examples=500, but there are 18 rows"),
        (ROWS, {"eval_fraction": 1.0}, "eval_fraction must be"),
        (ROWS, {"match": "fuzzy"}, "unknown match 'fuzzy'; choose one of exact, normalized, numeric"),
        (
            [{"question": "q", "answer": "Paris"}] * 2,
            {"match": "numeric"},
            "'Paris' is not a number",
        ),
    ],
)
def test_bad_input_is_one_clear_line(data_file, rows, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        load_environment(data_file(".jsonl", rows), **arguments)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match=r"no file 'missing\.jsonl'"):
        load_environment("missing.jsonl")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"question": "q", "answer": "a"}\n{"question": \n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        load_environment(str(broken))
    broken.write_text("[1, 2]\n")
    with pytest.raises(ValueError, match="line 1: expected an object"):
        load_environment(str(broken))
