import pytest

from grpo_gym.rollouts.prompts import EnvironmentRows, PromptStream, select_eval_rows


def take(stream, count):
    return [next(stream) for _ in range(count)]


def ids(drawn):
    return [row["example_id"] for _, row in drawn]


def test_every_epoch_has_every_prompt_once_in_another_order(echo_env):
    stream = PromptStream(EnvironmentRows(echo_env, "train"), seed=0)
    first, second = ids(take(stream, 8)), ids(take(stream, 8))
    assert sorted(first) == sorted(second) == list(range(8))
    assert first != second


def test_resumed_stream_goes_on_with_the_very_next_prompt(echo_env):
    rows = EnvironmentRows(echo_env, "train")
    whole = take(PromptStream(rows, seed=3), 13)
    stopped = PromptStream(rows, seed=3)
    take(stopped, 5)
    resumed = PromptStream(rows, seed=3)
    resumed.load_state_dict(stopped.state_dict())
    assert take(resumed, 8) == whole[5:]


def test_tickets_are_unique_over_epochs_and_lead_back_to_their_row(echo_env):
    stream = PromptStream(EnvironmentRows(echo_env, "train"), seed=0)
    drawn = take(stream, 20)
    assert len({ticket for ticket, _ in drawn}) == 20
    assert all(stream.row_at(ticket) == row for ticket, row in drawn)


def test_prompts_that_do_not_fit_are_skipped_and_counted(echo_env):
    stream = PromptStream(
        EnvironmentRows(echo_env, "train"), seed=0, accepts=lambda row: row["example_id"] % 2 == 0
    )
    assert sorted(ids(take(stream, 4))) == [0, 2, 4, 6]
    assert stream.num_skipped > 0


def test_no_prompt_fits_is_an_error_that_says_what_to_do(echo_env):
    stream = PromptStream(EnvironmentRows(echo_env, "train"), seed=0, accepts=lambda row: False)
    with pytest.raises(ValueError, match=r"none of the 8 prompts fits.*raise max_prompt_length"):
        next(stream)


def test_unshuffled_order_is_the_dataset_order(echo_env):
    stream = PromptStream(EnvironmentRows(echo_env, "train"), seed=0, shuffle=False)
    assert ids(take(stream, 8)) == list(range(8))


def test_eval_rows_are_the_same_every_time(echo_env):
    rows = EnvironmentRows(echo_env, "eval")
    assert select_eval_rows(rows, 100) == select_eval_rows(rows, 100)
    assert len(select_eval_rows(rows, 3)) == 3


def test_lazy_environment_is_asked_for_one_row_at_a_time():
    class Lazy:
        def __init__(self):
            self.asked = []

        def num_rows(self, split):
            return 1_000_000

        def row(self, index, split):
            self.asked.append(index)
            return {"example_id": index, "prompt": []}

    env = Lazy()
    stream = PromptStream(EnvironmentRows(env, "train"), seed=0)
    take(stream, 3)
    assert len(env.asked) == 3
