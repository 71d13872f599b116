"""The environment as a user sees it: rows, rewards, seeds, sizes."""

import asyncio
import json
import random
import threading
from collections import Counter

import pytest
import verifiers as vf
from reasoning_gym.factory import DATASETS
from reasoning_gym.games.countdown import CountdownDataset
from reasoning_gym_tasks import LazyReasoningGymEnv, UnscorableError, load_environment, task_names

from grpo_gym.rollouts.prompts import LazyRows


def answered(text):
    return [{"role": "assistant", "content": text}]


def score(env, row, text):
    return asyncio.run(env.check_answer_reward_func(answered(text), row["info"], row["question"]))


@pytest.fixture
def generated(monkeypatch):
    """Counts of the entries each task's dataset class generates."""
    counts = Counter()

    def watch(name):
        dataset_class = DATASETS[name][0]
        generate = dataset_class.__getitem__

        def counting(self, index):
            counts[name] += 1
            return generate(self, index)

        monkeypatch.setattr(dataset_class, "__getitem__", counting)
        return counts

    return watch


def test_verifiers_finds_it_by_either_spelling():
    for env_id in ("reasoning_gym_tasks", "reasoning-gym-tasks"):
        env = vf.load_environment(env_id, gym="leg_counting", num_train_examples=3, num_eval_examples=2)
        assert isinstance(env, vf.ReasoningGymEnv)
        assert (len(env.get_dataset()), len(env.get_eval_dataset())) == (3, 2)


def test_is_what_the_trainer_takes_for_lazy_rows():
    assert isinstance(load_environment(), LazyRows)


def test_a_misspelt_argument_is_refused():
    with pytest.raises(TypeError, match="num_train_example"):
        load_environment("leg_counting", num_train_example=5)


def test_rollouts_of_the_right_answer_score_one_and_of_a_wrong_one_zero(rollout):
    env = load_environment("leg_counting", num_eval_examples=3)
    rows = env.get_eval_dataset().to_list()
    answers = {row["question"]: row["answer"] for row in rows}
    right = asyncio.run(rollout(env, rows, lambda question: f"So: <answer>{answers[question]}</answer>"))
    wrong = asyncio.run(rollout(env, rows, lambda question: "<answer>-1</answer>"))
    assert [output["reward"] for output in right] == [1.0] * 3
    assert [output["reward"] for output in wrong] == [0.0] * 3
    assert right[0]["metrics"]["format_reward_func"] == 1.0


def test_format_weight_is_added(rollout):
    env = load_environment("leg_counting", parser_fields=["think", "answer"], format_weight=0.2)
    row = env.row(0)
    texts = {
        f"<think>legs</think>\n<answer>{row['answer']}</answer>": 1.2,
        "<think>legs</think>\n<answer>-1</answer>": 0.2,
        f"legs <answer>{row['answer']}</answer>": 1.0,
    }
    for text, reward in texts.items():
        (output,) = asyncio.run(rollout(env, [row], lambda question, text=text: text))
        assert output["reward"] == pytest.approx(reward)


@pytest.mark.parametrize("text", ["", "None", "True", "<answer>True", "True</answer>", "<answer> </answer>"])
@pytest.mark.parametrize("task", ["game_of_life_halting", "acre", "syllogism"])
def test_no_closed_answer_scores_zero(task, text):
    env = load_environment(task, num_train_examples=4)
    assert [score(env, env.row(i), text) for i in range(4)] == [0.0] * 4


def test_game_of_life_halting_can_be_answered_wrongly():
    env = load_environment("game_of_life_halting")
    row = env.row(0)
    wrong = {"True": "False", "False": "True"}[row["answer"]]
    assert score(env, row, f"<answer>{row['answer']}</answer>") == 1.0
    assert score(env, row, f"<answer>{wrong}</answer>") == 0.0


def test_a_blank_answer_counts_where_it_is_the_right_one():
    env = load_environment("ab", num_train_examples=1000)
    row = next(row for row in map(env.row, range(1000)) if row["answer"] == "")
    assert score(env, row, "<answer></answer>") == 1.0
    assert score(env, row, "everything cancels") == 0.0


def test_the_last_answer_counts():
    env = load_environment("leg_counting")
    row = env.row(0)
    assert score(env, row, f"<answer>-1</answer> no: <answer>{row['answer']}</answer>") == 1.0
    assert score(env, row, f"<answer>{row['answer']}</answer> no: <answer>-1</answer>") == 0.0


def test_a_row_says_where_it_comes_from():
    row = load_environment("leg_counting", {"min_animals": 2, "max_animals": 3}).row(7, "eval")
    assert row["info"]["source_dataset"] == "leg_counting"
    assert (row["info"]["split"], row["info"]["index"], row["example_id"]) == ("eval", 7, 7)
    assert json.loads(row["info"]["difficulty"])["num_animals"] == [2, 3]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]
    assert "task" not in row
    assert "task" not in row["info"]


def test_lazy_rows_are_the_rows_of_the_dataset():
    env = load_environment(["leg_counting", "n_queens"], num_train_examples=6, num_eval_examples=4)
    assert env.get_dataset().to_list() == [env.row(i, "train") for i in range(6)]
    assert env.get_eval_dataset().to_list() == [env.row(i, "eval") for i in range(4)]


def test_system_prompt_and_few_shot():
    shots = [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "<answer>2</answer>"}]
    env = load_environment("leg_counting", num_train_examples=2, system_prompt=None, few_shot=shots)
    assert env.row(0)["prompt"][:2] == shots
    assert env.get_dataset()[0]["prompt"] == env.row(0)["prompt"]
    think = load_environment("leg_counting", parser_fields=["think", "answer"]).row(0)["prompt"][0]["content"]
    assert "<think>" in think
    assert load_environment("leg_counting", system_prompt="Count.").row(0)["prompt"][0]["content"] == "Count."


def test_slow_tasks_generate_nothing_at_start_up(generated):
    counts = generated("sokoban")
    load_environment("sokoban", num_train_examples=10_000)
    assert counts["sokoban"] == 0


def test_a_million_rows_generate_only_what_is_asked_for(generated):
    counts = generated("leg_counting")
    env = load_environment("leg_counting", num_train_examples=1_000_000)
    assert env.num_rows("train") == 1_000_000
    first, last = env.row(0), env.row(999_999)
    assert first["question"] != last["question"]
    assert counts["leg_counting"] == 2
    with pytest.raises(IndexError):
        env.row(1_000_000)


def test_eval_does_not_build_train(generated):
    counts = generated("leg_counting")
    load_environment("leg_counting", num_train_examples=1_000_000, num_eval_examples=5).get_eval_dataset()
    assert counts["leg_counting"] == 5


def test_scoring_generates_nothing(generated):
    env = load_environment("leg_counting", cache_size=1)
    rows = [env.row(i) for i in range(3)]
    counts = generated("leg_counting")
    assert [score(env, row, f"<answer>{row['answer']}</answer>") for row in rows] == [1.0] * 3
    assert counts["leg_counting"] == 0


def test_rows_asked_for_again_come_from_the_cache(generated):
    counts = generated("leg_counting")
    env = load_environment("leg_counting")
    assert env.row(5) == env.row(5)
    assert counts["leg_counting"] == 1


def test_train_and_eval_share_no_question_whatever_the_seeds():
    for seeds in ({"seed": 0}, {"seed": 1, "eval_seed": 1}, {"seed": 0, "eval_seed": 1}):
        env = load_environment("chain_sum", {"min_digits": 9, "max_digits": 9}, **seeds)
        train = {env.row(i, "train")["question"] for i in range(200)}
        held_out = {env.row(i, "eval")["question"] for i in range(100)}
        assert len(train) == 200
        assert not train & held_out


def test_neighbouring_seeds_share_no_rows():
    first, second = (
        load_environment("chain_sum", {"min_digits": 9, "max_digits": 9}, seed=s) for s in (0, 1)
    )
    assert not {first.row(i)["question"] for i in range(50)} & {second.row(i)["question"] for i in range(50)}


@pytest.mark.parametrize("task", ["acre", "leg_counting", "word_ladder"])
def test_sizes_change_no_row(task):
    small = load_environment(task, num_train_examples=3, num_eval_examples=2)
    large = load_environment(task, num_train_examples=50_000, num_eval_examples=700)
    assert [small.row(i, "train") for i in range(3)] == [large.row(i, "train") for i in range(3)]
    assert [small.row(i, "eval") for i in range(2)] == [large.row(i, "eval") for i in range(2)]


def test_tasks_that_refuse_large_datasets_still_give_many_rows():
    env = load_environment("word_ladder", num_train_examples=30_000)
    assert env.row(29_999)["question"] != env.row(9_999)["question"]


def test_weights_decide_how_often_a_task_is_drawn():
    members = [{"name": "leg_counting", "weight": 3}, {"name": "chain_sum", "weight": 1}]
    env = load_environment(members, num_train_examples=10_000)
    names = Counter(env.rg_dataset.spec_at(i).name for i in range(4000))
    assert names["leg_counting"] / 4000 == pytest.approx(0.75, abs=0.03)
    again = load_environment(members, num_train_examples=20)
    assert [again.rg_dataset.spec_at(i) for i in range(20)] == [env.rg_dataset.spec_at(i) for i in range(20)]


def test_one_task_twice_with_different_settings():
    easy, hard = {"min_animals": 1, "max_animals": 1}, {"min_animals": 9, "max_animals": 9}
    env = load_environment([{"name": "leg_counting", "config": c} for c in (easy, hard)])
    spreads = {tuple(json.loads(env.row(i)["info"]["difficulty"])["num_animals"]) for i in range(20)}
    assert spreads == {(1, 1), (9, 9)}


def test_list_functions_always_asks_the_same_and_leaves_the_global_generator_alone():
    random.seed(1)
    expected = random.random()
    first, second = (load_environment("list_functions", num_train_examples=40) for _ in range(2))
    random.seed(1)
    rows = [first.row(i) for i in range(40)]
    assert random.random() == expected
    assert rows == [second.row(i) for i in reversed(range(40))][::-1]


def test_a_fresh_environment_scores_a_row_by_the_entry_it_carries(monkeypatch):
    """vf-eval scores in another process, where word_ladder would generate another entry."""
    rows = [load_environment("word_ladder").row(i) for i in range(5)]

    def generate_nothing(self, index):
        raise AssertionError("scoring must not need a new entry")

    monkeypatch.setattr(DATASETS["word_ladder"][0], "__getitem__", generate_nothing)
    env = load_environment("word_ladder")
    assert [score(env, row, f"<answer>{row['answer']}</answer>") for row in rows] == [1.0] * 5


def test_a_slow_scorer_leaves_the_event_loop_free(monkeypatch):
    env = load_environment("leg_counting")
    row = env.row(0)
    released = threading.Event()

    def blocking(self, answer, entry):
        assert released.wait(timeout=60)
        return 1.0

    monkeypatch.setattr(DATASETS["leg_counting"][0], "score_answer", blocking)

    async def score_while_another_coroutine_works():
        scoring = asyncio.create_task(
            env.check_answer_reward_func(answered("<answer>1</answer>"), row["info"], row["question"])
        )
        for _ in range(50):
            await asyncio.sleep(0)
        assert not scoring.done()
        released.set()  # only reached when the loop was not waiting for the scorer
        return await scoring

    assert asyncio.run(score_while_another_coroutine_works()) == 1.0


def test_an_answer_the_scorer_chokes_on_is_wrong():
    env = load_environment("prime_factorization")
    row = env.row(0)
    assert score(env, row, "<answer>two times three</answer>") == 0.0
    assert score(env, row, f"<answer>{row['answer']}</answer>") == 1.0


def test_a_broken_scorer_raises(monkeypatch):
    env = load_environment("leg_counting")
    row = env.row(0)

    def broken(self, answer, entry):
        raise KeyError("no such thing")

    monkeypatch.setattr(DATASETS["leg_counting"][0], "score_answer", broken)
    with pytest.raises(UnscorableError, match=r"leg_counting.*own answer"):
        score(env, row, "<answer>4</answer>")


def test_tasks_without_a_stored_answer_are_scored():
    env = load_environment("boxnet")
    row = env.row(0)
    assert row["answer"] == ""
    assert score(env, row, "<answer>{}</answer>") > 0
    assert score(env, row, "<answer>[1, 2]</answer>") == 0.0


SLOW = {"futoshiki", "knight_swap", "puzzle24", "quantum_lock", "sokoban", "zebra_puzzles"}
NO_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}


def test_every_task_is_known_and_builds():
    names = task_names()
    assert len(names) == 105
    for name in names:
        assert LazyReasoningGymEnv(name).num_rows("train") == 1000


@pytest.mark.parametrize("name", sorted(set(task_names()) - SLOW))
def test_every_tasks_own_answer_scores_one(name):
    env = LazyReasoningGymEnv(name)
    row = env.row(1)
    if name in NO_ANSWER:
        assert row["answer"] == ""
        return
    assert score(env, row, f"<answer>{row['answer']}</answer>") == pytest.approx(1.0)


def test_an_entry_the_generator_gives_up_on_is_replaced_and_the_same_every_time(monkeypatch):
    original = CountdownDataset.__getitem__

    def gives_up(self, index):
        if index in (3, 3 + 4099):
            raise ValueError("Failed to generate valid expression")
        return original(self, index)

    monkeypatch.setattr(CountdownDataset, "__getitem__", gives_up)
    rows = [load_environment("countdown", num_train_examples=9).row(3) for _ in range(2)]
    assert rows[0] == rows[1]
    assert rows[0]["info"]["index"] == 3
    assert json.loads(rows[0]["info"]["entry"])["metadata"]["source_index"] == 3 + 2 * 4099


def test_a_generator_that_always_gives_up_is_one_clear_error(monkeypatch):
    def gives_up(self, index):
        raise ValueError("Failed to generate valid expression")

    monkeypatch.setattr(CountdownDataset, "__getitem__", gives_up)
    with pytest.raises(
        RuntimeError, match=r"'countdown' could not make entry 3, nor 15 others .* change its config"
    ):
        load_environment("countdown", num_train_examples=9).row(3)


@pytest.mark.parametrize("task", ["gsm_symbolic", "codeio", "countdown"])
def test_many_rows_of_tasks_with_rare_troubles(task):
    """gsm_symbolic holds fractions here and there; codeio and countdown fail to make some entries."""
    env = LazyReasoningGymEnv(task)
    for index in range(60):
        row = env.row(index)
        assert score(env, row, f"<answer>{row['answer']}</answer>") == pytest.approx(1.0)
