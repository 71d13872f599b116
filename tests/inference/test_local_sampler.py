import asyncio
import dataclasses
import threading

import pytest
import torch

import grpo_gym.inference.local_sampler as local_sampler
from grpo_gym.inference.local_sampler import LocalSampler
from grpo_gym.inference.sampler import InferenceError, PromptTooLongError, SamplingParams
from tests.inference.conftest import make_model, plain_logprobs

PARAMS = SamplingParams(max_tokens=8)


class Letters:
    """Token i is the letter chr(65 + i)."""

    eos_token_id = 3

    def decode(self, ids):
        return "".join(chr(65 + i) for i in ids)


@pytest.fixture
def batches(monkeypatch):
    """The requests of every batch that was generated."""
    seen = []
    real = local_sampler.generate

    def recording(model, requests, **kwargs):
        seen.append(list(requests))
        return real(model, requests, **kwargs)

    monkeypatch.setattr(local_sampler, "generate", recording)
    return seen


def make_sampler(model, **kwargs):
    return LocalSampler(lambda: model, Letters(), **({"max_model_len": 64} | kwargs))


def with_sampler(sampler, scenario):
    """Run `scenario(sampler)` and close the sampler."""

    async def run():
        try:
            return await asyncio.wait_for(scenario(sampler), timeout=60)
        finally:
            await sampler.close()

    return asyncio.run(run())


def test_running_rollouts_share_one_batch(model, batches):
    async def rollout(sampler, i):
        await asyncio.sleep(0.01 * (i % 3))  # arrive at different times
        return await sampler.sample([1, i], PARAMS)

    async def scenario(sampler):
        sampler.rollout_started(12)
        return await asyncio.gather(*(rollout(sampler, i) for i in range(12)))

    results = with_sampler(make_sampler(model), scenario)
    assert [len(batch) for batch in batches] == [12]
    for i, result in enumerate(results):
        expected = plain_logprobs(model, [1, i], result.completion_ids)
        torch.testing.assert_close(torch.tensor(result.logprobs), expected, atol=1e-4, rtol=0)


def test_a_finished_rollout_is_not_waited_for(model, batches):
    async def scenario(sampler):
        sampler.rollout_started(3)
        waiting = [asyncio.ensure_future(sampler.sample([1], PARAMS)) for _ in range(2)]
        await asyncio.sleep(0.05)
        assert not batches
        sampler.rollout_finished()
        await asyncio.gather(*waiting)
        with pytest.raises(ValueError, match="only 2 are running"):
            sampler.rollout_finished(3)

    with_sampler(make_sampler(model), scenario)
    assert [len(batch) for batch in batches] == [2]


def test_without_announcements_requests_that_come_together_share_a_batch(model, batches):
    async def scenario(sampler):
        await asyncio.gather(*(sampler.sample([1], PARAMS) for _ in range(5)))
        await sampler.sample([1], PARAMS)

    with_sampler(make_sampler(model), scenario)
    assert [len(batch) for batch in batches] == [5, 1]


def test_two_turn_conversations_advance_together(model, batches):
    async def conversation(sampler, i):
        first = await sampler.sample([1, i], PARAMS)
        await asyncio.sleep(0.005 * (i % 3))  # a tool runs
        if i % 2:
            sampler.rollout_finished()
            return None
        ids = [1, i, *first.completion_ids, 9]
        second = await sampler.sample(ids, PARAMS)
        sampler.rollout_finished()
        return ids, second

    async def scenario(sampler):
        sampler.rollout_started(6)
        return await asyncio.gather(*(conversation(sampler, i) for i in range(6)))

    outcomes = with_sampler(make_sampler(model), scenario)
    assert [len(batch) for batch in batches] == [6, 3]
    for ids, second in filter(None, outcomes):
        expected = plain_logprobs(model, ids, second.completion_ids)
        torch.testing.assert_close(torch.tensor(second.logprobs), expected, atol=1e-4, rtol=0)


def test_two_samplers_with_one_seed_sample_the_same_bits(model):
    async def scenario(sampler):
        sampler.rollout_started(4)
        turns = []
        for _ in range(2):
            turns += await asyncio.gather(*(sampler.sample([1], PARAMS) for _ in range(4)))
        return turns

    first, second, other = (with_sampler(make_sampler(model, seed=seed), scenario) for seed in (1, 1, 2))
    assert first == second
    assert first != other
    assert len({tuple(result.completion_ids) for result in first}) == 8


def test_seeded_requests_do_not_depend_on_who_comes_first(model):
    async def sample(sampler, seed, delay):
        await asyncio.sleep(delay)
        return await sampler.sample([1, seed % 3], dataclasses.replace(PARAMS, seed=seed))

    def scenario_with(sign):
        async def scenario(sampler):
            sampler.rollout_started(6)
            return await asyncio.gather(*(sample(sampler, i, 0.02 + sign * 0.003 * i) for i in range(6)))

        return scenario

    assert with_sampler(make_sampler(model), scenario_with(1)) == with_sampler(
        make_sampler(model), scenario_with(-1)
    )


def test_the_event_loop_stays_free_while_a_batch_runs(model, monkeypatch):
    release = threading.Event()
    real = local_sampler.generate

    def slow(*args, **kwargs):
        assert release.wait(30)
        return real(*args, **kwargs)

    monkeypatch.setattr(local_sampler, "generate", slow)

    async def scenario(sampler):
        task = asyncio.ensure_future(sampler.sample([1], PARAMS))
        await asyncio.sleep(0.05)
        assert not task.done()
        release.set()  # only a free loop gets here
        return await task

    assert with_sampler(make_sampler(model), scenario).completion_ids


def test_samples_carry_the_version_and_model_their_batch_began_with():
    models = [make_model()]

    async def scenario(sampler):
        before = await sampler.sample([1], dataclasses.replace(PARAMS, seed=0))
        models[0] = make_model("qwen3")
        sampler.policy_version = 4
        return before, await sampler.sample([1], dataclasses.replace(PARAMS, seed=0))

    before, after = with_sampler(LocalSampler(lambda: models[0], Letters(), max_model_len=64), scenario)
    assert (before.policy_version, after.policy_version) == (0, 4)
    assert before.completion_ids != after.completion_ids


def test_only_the_too_long_prompt_fails(model):
    async def scenario(sampler):
        return await asyncio.gather(
            sampler.sample([1] * 64, PARAMS), sampler.sample([1] * 63, PARAMS), return_exceptions=True
        )

    failed, fine = with_sampler(make_sampler(model), scenario)
    assert isinstance(failed, PromptTooLongError)
    assert len(fine.completion_ids) == 1


def test_a_failure_reaches_everyone_who_waits_with_its_cause(model, monkeypatch):
    def broken(*args, **kwargs):
        raise MemoryError("out of memory")

    async def scenario(sampler):
        with monkeypatch.context() as patch:
            patch.setattr(local_sampler, "generate", broken)
            failures = await asyncio.gather(
                *(sampler.sample([1], PARAMS) for _ in range(3)), return_exceptions=True
            )
        return failures, await sampler.sample([1], PARAMS)

    failures, after = with_sampler(make_sampler(model), scenario)
    for failure in failures:
        assert isinstance(failure, InferenceError)
        assert "MemoryError: out of memory" in str(failure)
        assert isinstance(failure.__cause__, MemoryError)
    assert after.completion_ids


def test_a_cancelled_request_is_left_out(model, batches):
    async def scenario(sampler):
        sampler.rollout_started(3)
        gone, *others = [asyncio.ensure_future(sampler.sample([i], PARAMS)) for i in range(3)]
        await asyncio.sleep(0)
        gone.cancel()
        sampler.rollout_finished()
        await asyncio.gather(*others)

    with_sampler(make_sampler(model), scenario)
    assert [len(batch) for batch in batches] == [2]


def test_closing_fails_what_waits_and_what_comes_later(model):
    sampler = make_sampler(model)

    async def scenario():
        sampler.rollout_started(2)
        waiting = asyncio.ensure_future(sampler.sample([1], PARAMS))
        await asyncio.sleep(0.02)
        await sampler.close()
        with pytest.raises(InferenceError, match="closed"):
            await waiting
        with pytest.raises(InferenceError, match="closed"):
            await sampler.sample([1], PARAMS)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_works_from_a_loop_in_another_thread_while_this_one_waits(model):
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    sampler = make_sampler(model)
    try:
        for _ in range(3):
            sampler.rollout_started(4)
            futures = [asyncio.run_coroutine_threadsafe(sampler.sample([1], PARAMS), loop) for _ in range(4)]
            assert all(future.result(timeout=30).completion_ids for future in futures)
            sampler.rollout_finished(4)
            (model(torch.tensor([[1, 2]])).logits.sum()).backward()  # training goes on in this thread
    finally:
        asyncio.run_coroutine_threadsafe(sampler.close(), loop).result(timeout=30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def test_stop_strings_use_the_tokenizer(model):
    async def scenario(sampler):
        free = await sampler.sample([1], SamplingParams(max_tokens=20, seed=3))
        stop = Letters().decode(free.completion_ids[4:6])
        return free, await sampler.sample([1], SamplingParams(max_tokens=20, seed=3, stop=(stop,)))

    free, stopped = with_sampler(make_sampler(model, eos_token_ids={60}), scenario)
    assert stopped.finish_reason == "stop"
    assert stopped.completion_ids == free.completion_ids[: len(stopped.completion_ids)]
    assert len(stopped.completion_ids) <= 6


def test_a_tokenizer_without_end_token_needs_ids(model):
    class Endless(Letters):
        eos_token_id = None

    with pytest.raises(ValueError, match="eos_token_ids"):
        LocalSampler(lambda: model, Endless(), max_model_len=64)
