import asyncio

import pytest
import verifiers as vf

from grpo_gym.inference.sampler import InferenceError, PromptTooLongError, SamplingParams
from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.rollouts.engine import RolloutEngine
from tests.conftest import echo_dataset

PARAMS = SamplingParams(max_tokens=32)


@pytest.fixture
def run(tokenizer):
    """Generate groups for the first rows of an environment with a sampler."""
    engines = []

    def generate(env, sampler, num_rows=1, num_generations=4, **kwargs):
        engine = RolloutEngine(env, sampler, ChatRenderer(tokenizer), **kwargs)
        engines.append(engine)
        rows = [env.get_dataset()[i] for i in range(num_rows)]
        groups = engine.generate(rows, num_generations, PARAMS, list(range(num_rows)))
        return engine, groups

    yield generate
    for engine in engines:
        engine.close()


def said(prompt: str) -> str:
    return prompt.split("say ")[1].split()[0].split("<")[0]


def test_ids_trained_on_are_the_ids_sampled(run, echo_env, scripted_sampler, tokenizer):
    sampler = scripted_sampler(lambda prompt, n: f"<answer>{n}</answer>")
    _, (group,) = run(echo_env, sampler)
    asked = {tuple(prompt_ids) for prompt_ids, _ in sampler.requests}
    assert {tuple(r.prompt_ids) for r in group.rollouts} == asked
    texts = [tokenizer.decode(r.completion_ids, skip_special_tokens=True) for r in group.rollouts]
    assert sorted(texts) == [f"<answer>{n}</answer>" for n in range(4)]
    assert all(r.completion_ids[-1] == tokenizer.eos_token_id for r in group.rollouts)
    assert all(len(r.completion_ids) == len(r.sampler_logprobs) == sum(r.loss_mask) for r in group.rollouts)


def test_rewards_and_spread(run, echo_env, scripted_sampler):
    sampler = scripted_sampler(lambda prompt, n: f"<answer>{said(prompt) if n % 2 else 'no'}</answer>")
    _, groups = run(echo_env, sampler, num_rows=3)
    for group in groups:
        assert sorted(r.reward for r in group.rollouts) == [0.0, 0.0, 1.0, 1.0]
        assert group.has_spread


def test_requests_of_a_group_have_different_seeds_and_the_run_is_reproducible(
    run, echo_env, scripted_sampler
):
    seeds = []
    for _ in range(2):
        sampler = scripted_sampler(lambda prompt, n: "<answer>0</answer>")
        run(echo_env, sampler, num_rows=2)
        seeds.append([params.seed for _, params in sampler.requests])
    assert len(set(seeds[0])) == 8
    assert seeds[0] == seeds[1]


def test_server_failure_is_retried_and_then_counted_not_scored_as_wrong(run, echo_env, scripted_sampler):
    sampler = scripted_sampler(
        lambda prompt, n: InferenceError("server down") if n < 2 else "<answer>0</answer>"
    )
    _, (group,) = run(echo_env, sampler)
    assert [r.reward for r in group.rollouts] == [1.0] * 4

    always_down = scripted_sampler(lambda prompt, n: InferenceError("server down"))
    engine, (group,) = run(echo_env, always_down, max_retries=1)
    assert [r.reward for r in group.rollouts] == [None] * 4
    assert all("generation failed" in r.error for r in group.rollouts)
    assert len(always_down.requests) == 8
    assert sum(engine.failures.values()) == 4


def test_scorer_exception_is_not_a_wrong_answer(run, scripted_sampler):
    def correct(completion, answer):
        if "boom" in completion[-1]["content"]:
            raise RuntimeError("scorer broke")
        return 1.0

    env = vf.SingleTurnEnv(dataset=echo_dataset(), rubric=vf.Rubric([correct]))
    sampler = scripted_sampler(lambda prompt, n: "boom" if n % 4 == 0 else "fine")
    _, (group,) = run(env, sampler, max_retries=0)
    assert sorted(str(r.reward) for r in group.rollouts) == ["1.0", "1.0", "1.0", "None"]
    failed = next(r for r in group.rollouts if r.reward is None)
    assert "correct: RuntimeError: scorer broke" in failed.error
    assert not failed.is_valid


def test_a_completion_that_cannot_be_scored_is_kept_and_not_sampled_again(run, scripted_sampler):
    def first(completion):
        if "boom" in completion[-1]["content"]:
            raise KeyError("lost")
        return 1.0

    def second(completion):
        if "bo" in completion[-1]["content"]:
            raise RuntimeError("broke")
        return 1.0

    env = vf.SingleTurnEnv(dataset=echo_dataset(), rubric=vf.Rubric([first, second]))
    sampler = scripted_sampler(lambda prompt, n: ["boom", "fine", "bored", "fine"][n])
    engine, (group,) = run(env, sampler)
    assert engine.max_retries == 2
    assert len(sampler.requests) == 4
    found = {r.completion_text: (r.reward, r.failed_rewards) for r in group.rollouts}
    assert found == {"boom": (None, ["first", "second"]), "bored": (None, ["second"]), "fine": (2.0, [])}
    (both,) = (r.error for r in group.rollouts if r.completion_text == "boom")
    assert both == "scoring failed: first: KeyError: 'lost'; second: RuntimeError: broke"


@pytest.mark.parametrize("value", [None, "much", float("nan")])
def test_a_score_that_is_no_number_is_not_a_wrong_answer(run, scripted_sampler, value):
    def odd(completion):
        return value

    env = vf.SingleTurnEnv(dataset=echo_dataset(), rubric=vf.Rubric([odd]))
    sampler = scripted_sampler(lambda prompt, n: "x")
    _, (group,) = run(env, sampler)
    assert [(r.reward, r.failed_rewards) for r in group.rollouts] == [(None, ["odd"])] * 4
    assert len(sampler.requests) == 4


def test_scorer_that_takes_everything_and_async_scorers_are_wrapped_too(run, scripted_sampler):
    async def broken(**kwargs):
        assert kwargs["answer"] == "0"
        raise ValueError("no")

    env = vf.SingleTurnEnv(dataset=echo_dataset(), rubric=vf.Rubric([broken]))
    _, (group,) = run(env, scripted_sampler(lambda prompt, n: "x"), max_retries=0)
    assert all("broken: ValueError: no" in r.error for r in group.rollouts)


def test_group_reward_sees_the_whole_group(run, scripted_sampler):
    def longest(completions) -> list[float]:
        lengths = [len(c[-1]["content"]) for c in completions]
        return [float(length == max(lengths)) for length in lengths]

    env = vf.SingleTurnEnv(dataset=echo_dataset(), rubric=vf.Rubric([longest]))
    _, (group,) = run(env, scripted_sampler(lambda prompt, n: "x" * (n + 1)))
    assert sorted(r.reward for r in group.rollouts) == [0.0, 0.0, 0.0, 1.0]


def test_prompt_too_long_is_reported_and_not_retried(run, echo_env, scripted_sampler):
    sampler = scripted_sampler(lambda prompt, n: PromptTooLongError("too long"))
    _, (group,) = run(echo_env, sampler)
    assert {r.error for r in group.rollouts} == {"prompt_too_long"}
    assert len(sampler.requests) == 4


class GuessEnv(vf.MultiTurnEnv):
    """Two turns: the environment answers the first completion with a hint."""

    async def env_response(self, messages, state, **kwargs):
        return [vf.UserMessage(content="hint 7")]


def test_later_turns_keep_the_sampled_ids_and_mask_the_environment(run, scripted_sampler, tokenizer):
    def always(completion):
        return 1.0

    env = GuessEnv(max_turns=2, dataset=echo_dataset(), rubric=vf.Rubric([always]))
    sampler = scripted_sampler(lambda prompt, n: "second" if "hint" in prompt else "first")
    _, (group,) = run(env, sampler)
    for rollout in group.rollouts:
        sampled = [i for i, m in zip(rollout.completion_ids, rollout.loss_mask, strict=True) if m]
        written = [i for i, m in zip(rollout.completion_ids, rollout.loss_mask, strict=True) if not m]
        assert tokenizer.decode(sampled, skip_special_tokens=True) == "firstsecond"
        assert "hint 7" in tokenizer.decode(written)
        second_prompts = [tuple(ids) for ids, _ in sampler.requests if "hint" in tokenizer.decode(ids)]
        whole = tuple(rollout.prompt_ids + rollout.completion_ids)
        assert any(whole[: len(ids)] == ids for ids in second_prompts)


def test_a_batching_sampler_hears_of_every_rollout(run, scripted_sampler):
    """One conversation of the group ends early; the others must not wait for it forever."""

    class Counting:
        def __init__(self, inner):
            self.inner, self.running, self.waiting, self.batches = inner, 0, [], []

        def rollout_started(self, n=1):
            self.running += n

        def rollout_finished(self, n=1):
            self.running -= n
            self._flush()

        async def sample(self, prompt_ids, params):
            future = asyncio.get_running_loop().create_future()
            self.waiting.append((future, prompt_ids, params))
            self._flush()
            await future
            return await self.inner.sample(prompt_ids, params)

        def _flush(self):
            if self.waiting and len(self.waiting) == self.running:
                self.batches.append(len(self.waiting))
                for future, *_ in self.waiting:
                    future.set_result(None)
                self.waiting = []

        async def close(self):
            pass

    class StopsEarly(GuessEnv):
        @vf.stop
        async def first_said_stop(self, state):
            return bool(state["trajectory"]) and "stop" in state["trajectory"][0]["completion"][-1]["content"]

    def always(completion):
        return 1.0

    env = StopsEarly(max_turns=2, dataset=echo_dataset(), rubric=vf.Rubric([always]))
    sampler = Counting(scripted_sampler(lambda prompt, n: "stop" if n == 0 else "go"))
    _, groups = run(env, sampler, num_rows=2)
    assert sampler.batches == [8, 7]
    assert all(r.is_valid for group in groups for r in group.rollouts)


def test_closing_gives_the_event_loop_back(run, echo_env, scripted_sampler):
    engine, _ = run(echo_env, scripted_sampler(lambda prompt, n: "x"))
    engine.close()
    assert engine._loop.is_closed()
    engine.close()  # a second time does nothing
    with pytest.raises(RuntimeError, match="the rollout engine is closed"):
        engine.submit({}, 1, PARAMS, 0)


class Busy:
    """Takes a moment for each answer and notes how many it was busy with at most."""

    def __init__(self, inner):
        self.inner, self.running, self.most = inner, 0, 0

    async def sample(self, prompt_ids, params):
        self.running += 1
        self.most = max(self.most, self.running)
        await asyncio.sleep(0.05)
        self.running -= 1
        return await self.inner.sample(prompt_ids, params)

    async def close(self):
        pass


@pytest.mark.parametrize("sizes", [(1, 4), (4, 1), (3, 3), (16, 16)])
def test_rollouts_in_flight_are_counted_whatever_the_size_of_the_first_group(
    run, echo_env, scripted_sampler, sizes
):
    """An evaluation with one sample each, then training groups, or the other way round."""
    sampler = Busy(scripted_sampler(lambda prompt, n: "x"))
    engine, _ = run(echo_env, sampler, num_rows=8, num_generations=sizes[0], max_concurrent=8)
    expected = {1: 8, 3: 6, 4: 8, 16: 16}
    assert sampler.most == expected[sizes[0]]
    sampler.most = 0
    rows = [echo_env.get_dataset()[i] for i in range(8)]
    engine.generate(rows, sizes[1], PARAMS, list(range(8)))
    assert sampler.most == expected[sizes[1]]
