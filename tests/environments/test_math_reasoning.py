"""The mathematics environment: its data, its mixes, what it says when they fail, and its rewards."""

import asyncio
import itertools
import json

import pytest
import verifiers as vf
from datasets import Dataset
from math_reasoning import UnscorableError, grade, load_environment
from math_reasoning import environment as environment_module
from math_reasoning import sources as sources_module
from math_reasoning.builtin import TASKS, make_problems

ROWS = [{"question": f"What is {i} + {i}?", "answer": str(2 * i)} for i in range(20)]


@pytest.fixture(scope="module")
def builtin():
    env = vf.load_environment(
        "math-reasoning", dataset="builtin", num_train_examples=60, num_eval_examples=24
    )
    yield env
    asyncio.run(env.rubric.teardown())


def leaf(env):
    """The rubric with the rewards; Verifiers puts its own monitors beside it."""
    return env.rubric.rubrics[0]


def make(dataset, **arguments):
    return load_environment(dataset, **arguments)


def test_builtin_problems_are_deterministic_and_disjoint(builtin):
    train, held_out = builtin.get_dataset(), builtin.get_eval_dataset()
    again_train, again_eval = make_problems(90, 24, seed=0)
    assert isinstance(builtin, vf.SingleTurnEnv)
    assert again_train["question"][:60] == train["question"][:]
    assert again_eval["question"][:] == held_out["question"][:]
    assert not set(train["question"]) & set(held_out["question"])
    assert len(set(train["question"])) == 60
    assert set(train["source"]) == set(TASKS)
    assert make_problems(12, 0, seed=1)[0]["question"][:] != train["question"][:12]


def test_the_reference_answers_are_right_and_their_neighbours_are_not(builtin):
    rows = list(builtin.get_dataset())
    for row, other in itertools.pairwise(rows):
        assert grade(row["answer"], rf"\boxed{{{row['answer']}}}", row["question"])
        if row["answer"].split("= ")[-1] != other["answer"].split("= ")[-1]:
            assert not grade(row["answer"], other["answer"], row["question"])


def test_no_question_of_the_builtin_tasks_is_its_own_answer(builtin):
    for row in builtin.get_dataset():
        if row["question"].count("$") >= 2:
            assert not grade(row["answer"], row["question"].split("$")[1], row["question"])


def test_builtin_tasks_can_be_chosen_and_set():
    tasks = {"chain_sum": {"min_terms": 2, "max_terms": 2, "max_digits": 1}}
    train = make("builtin", tasks=tasks, num_train_examples=20, num_eval_examples=5).get_dataset()
    assert set(train["source"]) == {"chain_sum"}
    assert max(map(len, train["question"])) < len("Calculate $10 + 10$.")


def test_too_many_rows_of_a_small_task():
    tasks = {"chain_sum": {"min_terms": 2, "max_terms": 2, "max_digits": 1}}
    with pytest.raises(ValueError, match="too few different problems"):
        make("builtin", tasks=tasks, num_train_examples=1000)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_local_files(tmp_path, suffix):
    path = tmp_path / f"data{suffix}"
    data = Dataset.from_list(ROWS)
    if suffix == ".parquet":
        data.to_parquet(str(path))
    elif suffix == ".csv":
        data.to_csv(str(path))
    else:
        lines = [json.dumps(row) for row in ROWS]
        path.write_text("\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]")
    env = make(str(path), eval_fraction=0.25)
    asked = [*env.get_dataset()["question"], *env.get_eval_dataset()["question"]]
    assert sorted(asked) == sorted(row["question"] for row in ROWS)
    assert len(env.get_eval_dataset()) == 5


def test_columns_by_other_names():
    data = Dataset.from_list([{"problem": r["question"], "result": 1} for r in ROWS])
    row = make(data, field_mapping={"question_field": "problem", "answer_field": "result"}).get_dataset()[0]
    assert row["answer"] == "1"
    assert row["prompt"][-1]["content"] == row["question"]


def test_weights_set_the_shares():
    first, second = (
        Dataset.from_list([{"question": f"{n}{i}", "answer": "1"} for i in range(40)]) for n in "ab"
    )
    mix = [{"dataset": first, "weight": 3}, {"dataset": second, "weight": 1}]
    train = make(mix, num_eval_examples=8).get_dataset()
    counts = [sum(q.startswith(n) for q in train["question"]) for n in "ab"]
    assert counts[0] == 34  # 40 rows but the 6 held out
    assert counts[1] == 11
    with pytest.raises(ValueError, match="allow 1 to 45 without repeats"):
        make(mix, num_eval_examples=8, num_train_examples=60)


def test_no_eval_question_is_trained_on():
    data = Dataset.from_list([{"question": f"q{i % 10}", "answer": "1"} for i in range(40)])
    env = make(data, num_eval_examples=4)
    assert not set(env.get_dataset()["question"]) & set(env.get_eval_dataset()["question"])


def test_rows_without_an_answer_are_left_out(caplog):
    data = Dataset.from_list([*ROWS, {"question": "unanswered", "answer": None}])
    env = make(data, eval_fraction=0.0)
    assert len(env.get_dataset()) == 20
    assert "1 rows" in caplog.text


@pytest.fixture
def hub(monkeypatch):
    """What the hub was asked for; it serves whatever the columns are set to, or is unreachable."""
    asked, columns = [], {}

    def load_dataset(path, name=None, split=None):
        asked.append((path, name, split))
        if not columns:
            raise ConnectionError("Couldn't reach the hub\non any route")
        return Dataset.from_list(
            [{key: f"{value} {split} {i}" for key, value in columns.items()} for i in range(9)]
        )

    monkeypatch.setattr(sources_module, "load_dataset", load_dataset)
    return asked, columns


def test_presets(hub):
    asked, columns = hub
    columns.update(
        question="q", answer="work #### 7", answer_correct="a", problem="p", solution=r"so \boxed{3}"
    )
    assert make("gsm8k").get_dataset()[0]["answer"].startswith("7")
    assert make("math").get_dataset()[0]["answer"].startswith(r"\boxed{3}")
    assert load_environment().get_dataset()[0]["answer"].startswith("a")
    assert asked[:2] == [("openai/gsm8k", "main", "train"), ("openai/gsm8k", "main", "test")]
    assert asked[-1] == ("AmirMohseni/Big-Math-RL-filtered", None, "train")


def test_offline_the_default_is_what_the_package_makes_and_it_says_so(hub, caplog):
    env = load_environment(num_train_examples=12, num_eval_examples=12)  # the tests set HF_HUB_OFFLINE
    assert set(env.get_dataset()["source"]) <= set(TASKS)
    assert "HF_HUB_OFFLINE is set" in caplog.text
    with pytest.raises(ValueError, match="cannot load dataset"):
        load_environment("gsm8k")  # what was asked for is never replaced


def test_offline_a_split_that_is_not_there_is_no_reason_for_other_problems(monkeypatch):
    def load_dataset(path, name=None, split=None):
        raise ValueError(f"Unknown split \"{split}\". Should be one of ['train'].")

    monkeypatch.setattr(sources_module, "load_dataset", load_dataset)
    with pytest.raises(ValueError, match=r"split=trian.*Unknown split") as caught:
        load_environment(split="trian")
    assert "builtin" not in str(caught.value)


def test_an_unreachable_hub_is_one_line_that_names_the_offline_choice(hub, monkeypatch):
    monkeypatch.setattr(environment_module.datasets_config, "HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match='dataset="builtin"') as caught:
        load_environment()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"field_mapping": {"answer_field": "anwser"}}, "has question, answer; did you mean 'answer'"),
        ({"field_mapping": {"answers_field": "answer"}}, "did you mean 'answer_field'"),
        ({"field_mapping": {"image_field": "picture"}}, "use the environment visual-tasks"),
        ({"eval_fraction": 1.0}, "below 1"),
        ({"num_eval_examples": 20}, "cannot hold 20 of the 20"),
        ({"num_train_examples": 99}, "allow 1 to 18"),
        ({"tasks": ["gcd"]}, "tasks belong to dataset='builtin'"),
        ({"answer_regex": "x(y)"}, "finds no group"),
    ],
)
def test_mistakes_are_one_line(arguments, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")) as caught:
        make(Dataset.from_list(ROWS), **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ([], "empty list"),
        ([{"weight": 1}], "each dataset is a name"),
        ([{"dataset": "builtin", "weight": 0}], "above 0"),
        ([{"dataset": "builtin", "wieght": 1}], "did you mean 'weight'"),
        ("nowhere.jsonl", "no file"),
    ],
)
def test_mistakes_in_the_dataset(dataset, message):
    with pytest.raises(ValueError, match=message):
        make(dataset)


def test_rewards_of_rollouts(builtin, rollout):
    rows = [builtin.get_dataset()[i] for i in range(4)]
    answers = {row["question"]: row["answer"] for row in rows}
    well_formed = asyncio.run(
        rollout(builtin, rows, lambda question: f"<think>t</think>\n<answer>{answers[question]}</answer>")
    )
    chatty = asyncio.run(rollout(builtin, rows, lambda question: f"So: <answer>{answers[question]}</answer>"))
    wrong = asyncio.run(rollout(builtin, rows, lambda question: "<think>t</think><answer>10**99</answer>"))
    assert [output["reward"] for output in well_formed] == pytest.approx([1.2] * 4)
    assert [output["reward"] for output in chatty] == pytest.approx([1.0] * 4)
    assert [output["reward"] for output in wrong] == pytest.approx([0.2] * 4)
    assert leaf(builtin).funcs[0].__name__ == "accuracy_reward"


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        (" <think>a\n</think>\n\n<answer>b</answer>\n", 1.0),
        ("x<think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer>.", 0.0),
        ("<think>a</think>x<answer>b</answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a<answer>b</answer></think>", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer><answer>b</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_the_format_reward_is_strict(builtin, response, expected):
    format_reward = leaf(builtin).funcs[1]
    assert format_reward([{"role": "assistant", "content": response}]) == expected


def test_a_deadline_raises_from_the_reward():
    env = make(Dataset.from_list(ROWS), deadline=1e-5)
    with pytest.raises(UnscorableError, match="took longer"):
        asyncio.run(leaf(env).accuracy_reward("<answer>x^2-1</answer>", "(x-1)(x+1)"))
    asyncio.run(env.rubric.teardown())
