import json

import pytest

from grpo_gym.evaluation.journal import Journal

SETTINGS = {"model": "m", "temperature": 1.0, "datasets": {"sums": {"seed": 0, "params": {"n": 2}}}}


def fill(folder, count=3):
    with Journal(folder, SETTINGS) as journal:
        for number in range(count):
            journal.add(("sums", number, 0), {"id": str(number), "sample": {}})
    return folder / "completions.jsonl"


def test_what_was_added_is_there_the_next_time(tmp_path):
    fill(tmp_path)
    with Journal(tmp_path, SETTINGS) as journal:
        assert sorted(journal.records) == [("sums", 0, 0), ("sums", 1, 0), ("sums", 2, 0)]


def test_a_record_is_in_the_file_as_soon_as_it_is_added(tmp_path):
    with Journal(tmp_path, SETTINGS) as journal:
        journal.add(("sums", 0, 0), {"id": "x"})
        assert len(journal.path.read_text().splitlines()) == 2


def test_a_torn_last_line_is_cut_off_and_the_file_goes_on(tmp_path):
    path = fill(tmp_path)
    path.write_bytes(path.read_bytes()[:-9])
    with Journal(tmp_path, SETTINGS) as journal:
        assert len(journal.records) == 2
        journal.add(("sums", 2, 0), {"id": "2"})
    assert [json.loads(line).get("id") for line in path.read_text().splitlines()] == [None, "0", "1", "2"]


def test_a_torn_first_line_is_a_new_file(tmp_path):
    path = fill(tmp_path)
    path.write_bytes(path.read_bytes()[:20])
    with Journal(tmp_path, SETTINGS) as journal:
        assert journal.records == {}
    assert json.loads(path.read_text())["settings"] == SETTINGS


def test_a_damaged_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    path = fill(tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:5], *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match=r"completions.jsonl:2: the line is damaged"):
        Journal(tmp_path, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0.5}, r"temperature is 0.5, but the completions .* were made with 1.0"),
        ({"datasets": {"sums": {"seed": 1, "params": {"n": 2}}}}, r"datasets.sums.seed is 1, .* with 0"),
        ({"datasets": {"sums": {"seed": 0, "params": {"n": 3}}}}, r"datasets.sums.params.n is 3, .* with 2"),
        ({"datasets": {"sums": {"seed": 0, "params": {}}}}, r"datasets.sums.params"),
    ],
)
def test_changed_settings_name_the_key_and_the_way_out(tmp_path, changes, message):
    fill(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        Journal(tmp_path, {**SETTINGS, **changes})
    assert "choose another output_dir, or delete that file" in str(error.value)


def test_a_dataset_can_be_added_and_is_checked_from_then_on(tmp_path):
    fill(tmp_path)
    more = {**SETTINGS, "datasets": {**SETTINGS["datasets"], "maze": {"seed": 0}}}
    with Journal(tmp_path, more) as journal:
        assert len(journal.records) == 3
        journal.add(("maze", 0, 0), {"id": "m"})
    with Journal(tmp_path, SETTINGS) as journal:
        assert len(journal.records) == 4
    with pytest.raises(ValueError, match=r"datasets.maze.seed"):
        Journal(tmp_path, {**SETTINGS, "datasets": {"maze": {"seed": 5}}})


def test_two_evaluations_do_not_write_to_one_file(tmp_path):
    with Journal(tmp_path, SETTINGS), pytest.raises(ValueError, match="another evaluation is writing"):
        Journal(tmp_path, SETTINGS)
