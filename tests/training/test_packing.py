import random

import pytest
import torch

from grpo_gym.training.packing import (
    PackInput,
    balance_over_ranks,
    pack_groups,
    pad_packs,
    split_for_ranks,
)


def make_group(first_id: int, prompt_length: int, *completion_lengths: int) -> PackInput:
    """Token ids are different everywhere: prompts count from 1000 * first_id, completions further on."""
    token = iter(range(1000 * (first_id + 1), 1000 * (first_id + 2)))
    prompt = [next(token) for _ in range(prompt_length)]
    completions = [
        (first_id + i, [next(token) for _ in range(length)]) for i, length in enumerate(completion_lengths)
    ]
    return PackInput(prompt, completions)


GROUPS = [make_group(0, 5, 3, 1, 4), make_group(3, 2, 6), make_group(4, 7, 2, 2)]


def completions_of(packs) -> dict[int, list[int]]:
    found = {}
    for pack in packs:
        parts = pack.target_ids.split(pack.completion_lengths)
        for rollout_id, part in zip(pack.rollout_ids, parts, strict=True):
            assert rollout_id not in found
            found[rollout_id] = part.tolist()
    return found


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("max_tokens", [1, 8, 13, 1000])
def test_every_completion_is_scored_once_in_order(shared_prefix, max_tokens):
    packs = pack_groups(GROUPS, max_tokens, shared_prefix)
    expected = {rollout_id: ids for group in GROUPS for rollout_id, ids in group.completions}
    assert completions_of(packs) == expected


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_sequences_are_prompt_and_completion_without_its_last_token(shared_prefix):
    (pack,) = pack_groups(GROUPS, 1000, shared_prefix)
    row, positions = pack.input_ids[0].tolist(), pack.position_ids[0].tolist()
    expected = [group.prompt_ids + ids[:-1] for group in GROUPS for _, ids in group.completions]
    places = [[i for span in spans for i in range(*span)] for spans in pack.layout.sequences()]
    assert [[row[i] for i in sequence] for sequence in places] == expected
    assert [[positions[i] for i in sequence] for sequence in places] == [
        list(range(len(s))) for s in expected
    ]


@pytest.mark.parametrize("shared_prefix", [True, False])
def test_each_token_is_predicted_from_the_one_before_it(shared_prefix):
    (pack,) = pack_groups(GROUPS, 1000, shared_prefix)
    predictors = pack.input_ids[0][pack.predict_index].tolist()
    expected = [
        token
        for group in GROUPS
        for _, ids in group.completions
        for token in [group.prompt_ids[-1], *ids[:-1]]
    ]
    assert predictors == expected


def test_shared_prompt_is_in_the_row_once():
    (pack,) = pack_groups(GROUPS, 1000)
    assert pack.input_ids.shape[1] == sum(group.num_tokens() for group in GROUPS)
    row = pack.input_ids[0].tolist()
    assert len(set(row)) == len(row)


def test_rows_stay_within_the_budget():
    assert all(pack.input_ids.shape[1] <= 13 for pack in pack_groups(GROUPS, 13))


def test_group_above_the_budget_repeats_its_prompt():
    group = make_group(0, 5, 4, 4, 4)
    packs = pack_groups([group], 8)
    assert [pack.rollout_ids for pack in packs] == [[0], [1], [2]]
    assert all(pack.input_ids[0, :5].tolist() == group.prompt_ids for pack in packs)


def test_sequence_above_the_budget_gets_a_row_of_its_own():
    packs = pack_groups([make_group(0, 5, 30), make_group(1, 2, 2)], 10)
    assert [pack.rollout_ids for pack in packs] == [[0], [1]]


def test_padded_batches_stay_within_the_budget():
    groups = [make_group(0, 10, 390), *(make_group(i, 5, *[16] * 6) for i in range(1, 61, 6))]
    packs = pack_groups(groups, 1600, shared_prefix=False, padded=True)
    shapes = [
        (len(lengths), max(lengths))
        for pack in packs
        for lengths in [[sum(end - start for start, end in spans) for spans in pack.layout.sequences()]]
    ]
    assert shapes == [(4, 399), (57, 20)]
    assert completions_of(packs).keys() == set(range(61))
    assert len(pack_groups(groups, 100, shared_prefix=False, padded=True)[0].rollout_ids) == 1
    with pytest.raises(ValueError, match="shared_prefix=False"):
        pack_groups(groups, 100, padded=True)


@pytest.mark.parametrize(
    ("group", "message"),
    [(PackInput([], [(0, [1])]), "prompt has no tokens"), (PackInput([1], [(7, [])]), "rollout 7")],
)
def test_unpackable_input_is_refused(group, message):
    with pytest.raises(ValueError, match=message):
        pack_groups([group], 10)


def test_pad_packs_appends_batches_without_targets():
    packs = pad_packs(pack_groups(GROUPS, 1000), 3)
    assert [len(pack.target_ids) for pack in packs] == [18, 0, 0]
    assert packs[2].rollout_ids == []
    with pytest.raises(ValueError, match="more than 1"):
        pad_packs(packs, 1)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 5])
def test_ranks_share_the_groups(num_ranks):
    groups = [make_group(i, 3 + 7 * i % 11, 2 + i % 5, 3) for i in range(12)]
    shares = balance_over_ranks(groups, num_ranks)
    assert sorted(index for share in shares for index in share) == list(range(12))
    loads = [sum(groups[i].num_tokens() for i in share) for share in shares]
    assert max(loads) - min(loads) <= max(group.num_tokens() for group in groups)


def test_one_group_is_split_over_all_ranks():
    pieces = split_for_ranks([make_group(0, 4, *range(10, 26))], 4)
    loads = [sum(pieces[i].num_tokens() for i in share) for share in balance_over_ranks(pieces, 4)]
    assert min(loads) > 0
    assert max(loads) < 1.3 * min(loads)
    assert sorted(i for piece in pieces for i, _ in piece.completions) == list(range(16))


def heaviest(groups, num_ranks, shared_prefix=True) -> int:
    shares = balance_over_ranks(groups, num_ranks, shared_prefix)
    return max(sum(groups[i].num_tokens(shared_prefix) for i in share) for share in shares)


def test_a_long_prompt_is_not_computed_twice_for_nothing():
    groups = [make_group(0, 600, 140, 120), make_group(2, 600, 130, 120)]
    assert split_for_ranks(groups, 2) == groups


@pytest.mark.parametrize("shared_prefix", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
def test_splitting_never_makes_the_heaviest_rank_heavier(num_ranks, shared_prefix):
    rng = random.Random(num_ranks)
    for _ in range(60):
        prompt = rng.choice([1, 20, 300])
        groups = [
            make_group(
                10 * i, rng.randint(1, prompt), *(rng.randint(1, 60) for _ in range(rng.randint(1, 8)))
            )
            for i in range(rng.randint(1, 2 * num_ranks))
        ]
        pieces = split_for_ranks(groups, num_ranks, shared_prefix)
        before, after = (heaviest(each, num_ranks, shared_prefix) for each in (groups, pieces))
        assert after < before or (after == before and pieces == groups)
        completions = [sorted(c for group in each for c in group.completions) for each in (groups, pieces)]
        assert completions[0] == completions[1]


def test_prompts_that_are_repeated_anyway_count_once_per_completion():
    many, few = make_group(0, 50, 10, 10, 10, 10), make_group(4, 50, 30)
    assert [many.num_tokens(), many.num_tokens(shared_prefix=False)] == [86, 236]
    assert split_for_ranks([many, few], 2) == [many, few]
    assert heaviest(split_for_ranks([many, few], 2, shared_prefix=False), 2, shared_prefix=False) == 197


def test_to_moves_every_tensor():
    (pack,) = pack_groups(GROUPS, 1000)
    moved = pack.to("meta")
    tensors = [value for name in pack.__slots__ if isinstance(value := getattr(moved, name), torch.Tensor)]
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert len(tensors) == 5
