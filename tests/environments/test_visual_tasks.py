"""Drawn shapes, rendered tasks, your own pictures."""

from __future__ import annotations

import asyncio
import base64
import io
import json

import pytest
import verifiers as vf
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from visual_tasks import data_uri, load_environment, read_picture
from visual_tasks.answers import answers_match, parse_answer
from visual_tasks.shapes import COLOURS
from visual_tasks.text_pictures import draw_text

from grpo_gym.rollouts.scoring import leaf_rubrics


def picture_of(row):
    (part,) = [p for p in row["prompt"][-1]["content"] if p["type"] == "image_url"]
    url = part["image_url"]["url"]
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))


def colours_in(picture):
    return {colour for _, colour in picture.convert("RGB").getcolors(10_000)}


def score(env, row, answer):
    state = {"prompt": row["prompt"], "completion": [{"role": "assistant", "content": answer}]}
    state |= {"answer": row["answer"], "info": row["info"], "timing": {}, "trajectory": [], "task": "x"}
    total = 0.0
    rubric = next(rubric for rubric in leaf_rubrics(env.rubric) if len(rubric.funcs) == 2)
    for func, weight in zip(rubric.funcs, rubric.weights, strict=True):
        names = func.__code__.co_varnames[: func.__code__.co_argcount]
        result = func(**{name: state[name] for name in names})
        total += weight * (asyncio.run(result) if asyncio.iscoroutine(result) else result)
    return total


def test_the_answer_is_the_colour_in_the_picture():
    env = vf.load_environment("visual-tasks", colours=["red", "blue", "grey"])
    for index in range(20):
        row = env.row(index)
        assert colours_in(picture_of(row)) == {(255, 255, 255), COLOURS[row["answer"]]}
        assert "One of: red, blue, grey." in row["question"]


def test_its_parser_says_which_tags_it_wants():
    assert load_environment().parser.get_fields() == ["answer"]
    assert load_environment(think=True).parser.get_fields() == ["think", "answer"]


def test_counts_are_those_of_the_picture():
    env = load_environment(task="count", image_size=90, max_shapes=1)
    answers = {env.row(i)["answer"] for i in range(20)}
    assert answers == {"0", "1"}
    assert {env.row(i)["question"].split()[2] for i in range(40)} == {"circles", "squares", "triangles"}


def test_rows_are_fixed_by_seed_split_and_index():
    one, two = load_environment(), load_environment(num_train_examples=5)
    assert one.row(3) == two.row(3)
    assert one.row(3) != one.row(3, "eval")
    assert one.row(3) != load_environment(seed=1).row(3)
    assert (one.num_rows("train"), two.num_rows("train"), one.num_rows("eval")) == (1000, 5, 100)


def test_the_whole_split_is_a_dataset_too():
    env = load_environment(num_train_examples=3, num_eval_examples=2)
    assert len(env.get_dataset()) == 3
    assert len(env.get_eval_dataset()) == 2
    message = env.get_dataset()[0]["prompt"][-1]
    assert message["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")


@pytest.mark.parametrize(
    ("given", "answer", "right"),
    [("Red", "red", True), (" red. ", "red", True), ("blue", "red", False), ("03", "3", True), ("3.0", "3", True),
     ("three", "3", False), ("", "red", False)],
)  # fmt: skip
def test_answers(given, answer, right):
    assert answers_match(given, answer) is right


def test_the_last_closed_answer_counts():
    assert parse_answer("<answer>red</answer> no, <answer>blue</answer>") == "blue"
    assert parse_answer("<answer>red") is None


def test_reward_and_format():
    env = load_environment(format_weight=0.5)
    row = env.row(0)
    assert score(env, row, f"<answer>{row['answer']}</answer>") == 1.5
    assert score(env, row, f"It is <answer>{row['answer']}</answer>") == 1.0
    assert score(env, row, "<answer>pink</answer>") == 0.5
    assert score(env, row, row["answer"]) == 0.0


def test_reasoning_gym_questions_become_pictures():
    env = load_environment(gym="chain_sum", num_train_examples=4, num_eval_examples=2, image_width=300)
    row = env.row(1)
    plain = vf.load_environment(
        "reasoning-gym-tasks", gym="chain_sum", num_train_examples=4, num_eval_examples=2
    )
    assert row["answer"] == plain.row(1)["answer"]
    assert row["question"] == plain.row(1)["question"]
    assert row["question"] not in json.dumps(row["prompt"])
    assert picture_of(row).width == 300
    assert (
        asyncio.run(
            env.check_answer_reward_func(f"<answer>{row['answer']}</answer>", row["info"], row["question"])
        )
        == 1
    )
    assert len(env.get_dataset()) == 4


def test_text_is_wrapped_and_drawn():
    short, long = draw_text("one"), draw_text("word " * 100)
    assert long.height > 3 * short.height
    assert (0, 0, 0) in colours_in(short)
    assert short.width == long.width == 448


@pytest.fixture
def own(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "a.png")
    Image.new("RGB", (4, 4), "blue").save(tmp_path / "b.png")
    rows = [
        {"pic": f"{name}.png", "ask": "Which?", "reply": reply}
        for name, reply in (("a", "red"), ("b", "blue"))
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


FIELDS = {"image_field": "pic", "question_field": "ask", "answer_field": "reply"}


def test_your_own_pictures(own):
    env = load_environment(dataset=own, num_eval_examples=1, **FIELDS)
    rows = [env.row(0), env.row(0, "eval")]
    assert {row["answer"] for row in rows} == {"red", "blue"}
    for row in rows:
        assert picture_of(row).getpixel((0, 0)) == {"red": (255, 0, 0), "blue": (0, 0, 255)}[row["answer"]]


def test_pictures_of_a_hugging_face_dataset():
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), "red").save(buffer, format="PNG")
    features = Features({"image": ImageFeature(), "question": Value("string"), "answer": Value("string")})
    rows = [{"image": {"bytes": buffer.getvalue(), "path": None}, "question": "?", "answer": "red"}]
    env = load_environment(dataset=Dataset.from_list(rows, features=features), num_eval_examples=0)
    assert picture_of(env.row(0)).getpixel((0, 0)) == (255, 0, 0)


def test_a_data_uri_is_a_picture_too():
    assert read_picture(data_uri(Image.new("RGB", (2, 2), "red"))).getpixel((0, 0)) == (255, 0, 0)


def test_a_photo_is_upright_and_nothing_turns_black(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned to the right by a quarter
    photo = Image.new("RGB", (32, 16), "blue")
    photo.paste("red", (0, 0, 32, 8))
    photo.save(tmp_path / "photo.jpg", exif=exif, quality=95)
    upright = read_picture("photo.jpg", tmp_path)
    assert upright.size == read_picture(Image.open(tmp_path / "photo.jpg")).size == (16, 32)
    assert upright.getpixel((2, 16))[2] > 200
    assert read_picture(Image.new("RGBA", (2, 2), (9, 9, 9, 0))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("cell", "said"),
    [("missing.png", "missing.png"), ("own.jsonl", "cannot identify"), (None, "there is no picture")],
)
def test_a_bad_picture_is_one_clear_line(own, cell, said):
    data = Dataset.from_list([{"pic": cell, "ask": "Which?", "reply": "red"}])
    data.to_json(own)
    with pytest.raises(ValueError, match="row 0 of the dataset, column 'pic'") as caught:
        load_environment(dataset=own, num_eval_examples=0, **FIELDS).row(0)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task": "shape"}, "unknown task 'shape'"),
        ({"colours": ["red", "pink"]}, "choose at least two of"),
        ({"max_shapes": 10}, "choose 1 to 9"),
        ({"image_size": 3}, "at least 16 pixels"),
        ({"gym": "chain_sum", "dataset": "x.jsonl"}, "both set"),
        ({"config": {}}, "config is no argument"),
        ({"dataset": "nothing-here.jsonl"}, "cannot be read"),
    ],
)
def test_impossible_arguments(arguments, said):
    with pytest.raises(ValueError, match=said):
        load_environment(**arguments)


def test_a_missing_column_names_those_there_are(own):
    with pytest.raises(ValueError, match="no column 'image'; it has pic, ask, reply"):
        load_environment(dataset=own, num_eval_examples=1)
