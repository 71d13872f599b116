"""Completions as the report carries them."""

import base64
import gzip
import json
import os
from collections import Counter

import pyarrow.parquet as pq
import pytest

from grpo_gym.reporting.completions import write_completions
from grpo_gym.reporting.packed_completions import CHUNK_CHARACTERS, pack_completions
from grpo_gym.reporting.run_log import RunLog, read_log
from grpo_gym.rollouts.types import RolloutGroup
from tests.reporting.synthetic_run import make_group, make_run


def pack(folder, limit=10**9):
    return pack_completions(folder, read_log(folder), limit)


def unpack(packed):
    """(step, task, prompt, answer, completion, reward) of every completion."""
    chunks = [json.loads(gzip.decompress(base64.b64decode(chunk))) for chunk in packed.chunks]
    rows = []
    for index, group in enumerate(packed.rows["group"]):
        texts, place = chunks[packed.groups["chunk"][group]], packed.groups["place"][group]
        task = packed.tasks[packed.groups["task"][group]]
        completion = texts["completions"][packed.rows["place"][index]]
        reward = packed.rows["reward"][index]
        step = packed.groups["step"][group]
        rows.append((step, task, texts["prompts"][place], texts["answers"][place], completion, reward))
    return rows


def test_everything_comes_back_in_order(tmp_path):
    folder = make_run(tmp_path, steps=3)
    columns = ("step", "task", "prompt", "answer", "completion", "reward")
    expected = [
        tuple(row[name] for name in columns)
        for path in sorted((folder / "completions").iterdir())
        for row in pq.read_table(path).to_pylist()
    ]
    assert unpack(pack(folder)) == expected


def test_long_texts_go_into_several_chunks(tmp_path):
    group = make_group(0, 0, "leg_counting", 6)
    for rollout in group.rollouts:
        rollout.completion_text = "x" * CHUNK_CHARACTERS
    more = [RolloutGroup(i, "leg_counting", f"p{i}", "1", group.rollouts) for i in range(3)]
    write_completions(tmp_path, 0, more)
    packed = pack(tmp_path)
    assert len(packed.chunks) == 3
    assert [row[2] for row in unpack(packed)] == ["p0"] * 6 + ["p1"] * 6 + ["p2"] * 6


@pytest.mark.parametrize("limit", [0, 1, 3, 4, 30, 95, 96])
def test_a_limit_keeps_whole_groups_from_all_over_the_run(tmp_path, limit):
    packed = pack(make_run(tmp_path, steps=6, groups=4, size=4), limit)
    assert packed.total == 96
    kept = unpack(packed)
    assert limit - 4 < len(kept) <= limit
    sizes = set(Counter(packed.rows["group"]).values())
    assert sizes == ({4} if limit >= 4 else {limit} - {0})
    if limit >= 30:
        per_step = Counter(row[0] for row in kept)
        assert set(per_step) == set(range(6))
        assert max(per_step.values()) - min(per_step.values()) <= 4


def test_unscored_and_not_finite_rewards_are_none(tmp_path):
    group = make_group(0, 0, "leg_counting", 3)
    group.rollouts[0].reward, group.rollouts[0].error = None, "scoring failed: boom"
    group.rollouts[1].reward = float("nan")
    write_completions(tmp_path, 0, [group])
    packed = pack(tmp_path)
    assert packed.rows["reward"][:2] == [None, None]
    assert packed.rows["error"] == ["scoring failed: boom", None, None]


def test_a_reward_function_that_appears_later_has_no_values_before(tmp_path):
    groups = [make_group(0, 0, "leg_counting", 2), make_group(0, 1, "leg_counting", 2)]
    for rollout in groups[1].rollouts:
        rollout.metrics = {"late": 1.0}
    write_completions(tmp_path, 0, groups)
    packed = pack(tmp_path)
    assert dict(zip(packed.metrics, packed.rows["metrics"], strict=True))["late"] == [None, None, 1.0, 1.0]


def test_files_of_an_earlier_run_in_the_same_folder_are_left_out(tmp_path):
    make_run(tmp_path, steps=5)
    for step, when in enumerate((100, 100, 900, 900, 100)):
        os.utime(tmp_path / "completions" / f"step_{step:06d}.parquet", (when, when))
    resumed_at_two = RunLog(first_step=2, started=500.0)
    packed = pack_completions(tmp_path, resumed_at_two, 10**9)
    assert sorted(set(packed.groups["step"])) == [0, 1, 2, 3]


def test_a_file_that_is_not_parquet_is_named(tmp_path):
    make_run(tmp_path, steps=1)
    (tmp_path / "completions" / "step_000001.parquet").write_bytes(b"PAR1 and then the disk was full")
    with pytest.raises(ValueError, match=r"step_000001.parquet cannot be read.*move it") as error:
        pack(tmp_path)
    assert "\n" not in str(error.value)


def test_half_written_files_are_not_seen(tmp_path):
    make_run(tmp_path, steps=1)
    (tmp_path / "completions" / "step_000001.tmp").write_bytes(b"PAR1")
    assert {row[0] for row in unpack(pack(tmp_path))} == {0}
