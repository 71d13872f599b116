import asyncio
import time

import pytest

from grpo_gym.inference.sampler import SamplingParams
from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.rollouts.engine import RolloutEngine
from grpo_gym.rollouts.overlap import OverlappedSource
from grpo_gym.rollouts.prompts import EnvironmentRows, PromptStream
from grpo_gym.rollouts.source import RolloutSource, SourceSettings
from tests.rollouts.test_engine import said


@pytest.fixture
def make_source(tokenizer, echo_env):
    engines = []

    def make(sampler, source_class=RolloutSource, max_concurrent=512, **settings):
        engine = RolloutEngine(
            echo_env, sampler, ChatRenderer(tokenizer), max_retries=0, max_concurrent=max_concurrent
        )
        engines.append(engine)
        stream = PromptStream(EnvironmentRows(echo_env, "train"), seed=0)
        defaults = {
            "prompts_per_step": 2,
            "num_generations": 4,
            "params": SamplingParams(max_tokens=8),
            "seed": 0,
        }
        return source_class(engine, stream, SourceSettings(**{**defaults, **settings}))

    yield make
    for engine in engines:
        engine.close()


def half_right(prompt, n):
    return f"<answer>{said(prompt) if n % 2 else 'no'}</answer>"


def spread_on_even_questions(prompt, n):
    return half_right(prompt, n) if int(said(prompt)) % 2 == 0 else "<answer>no</answer>"


def test_filter_draws_fresh_prompts_until_the_step_is_full(make_source, scripted_sampler):
    source = make_source(
        scripted_sampler(spread_on_even_questions),
        filter_zero_variance=True,
        max_refill=8,
        prompts_per_step=4,
    )
    step = source.next_step(0)
    assert len(step.groups) == 4
    assert all(group.has_spread for group in step.groups)
    assert step.num_generated == 4 + step.num_uninformative
    assert step.num_uninformative > 0


@pytest.mark.parametrize("source_class", [RolloutSource, OverlappedSource])
def test_filter_ends_at_its_cap_when_nothing_is_informative(make_source, scripted_sampler, source_class):
    sampler = scripted_sampler(lambda prompt, n: "<answer>no</answer>")
    staleness = int(source_class is OverlappedSource)
    source = make_source(
        sampler, source_class, filter_zero_variance=True, max_refill=2, max_staleness=staleness
    )
    step = source.next_step(0)
    assert len(step.groups) == 2
    assert step.num_generated == 6
    assert step.metrics()["informative_fraction"] == 0.0


def test_without_filter_every_group_is_kept(make_source, scripted_sampler):
    step = make_source(scripted_sampler(lambda prompt, n: "<answer>no</answer>")).next_step(0)
    assert (len(step.groups), step.num_generated, step.num_uninformative) == (2, 2, 2)


def test_a_step_in_which_everything_failed_is_an_error(make_source, scripted_sampler):
    source = make_source(scripted_sampler(lambda prompt, n: RuntimeError("out of memory")))
    with pytest.raises(RuntimeError, match=r"all 8 rollouts of the step failed.*generation failed"):
        source.next_step(0)


def test_evaluation_uses_the_same_seeds_every_time_and_takes_no_prompt(
    make_source, scripted_sampler, echo_env
):
    sampler = scripted_sampler(half_right)
    source = make_source(sampler)
    rows = [echo_env.get_eval_dataset()[i] for i in range(3)]
    before = source.state_dict()
    for _ in range(2):
        source.evaluate(rows, 2, SamplingParams(max_tokens=8))
    seeds = [params.seed for _, params in sampler.requests]
    assert seeds[:6] == seeds[6:]
    assert source.state_dict() == before


class SlowPrompt:
    """Answers at once, but holds back one question until told."""

    def __init__(self, inner, slow):
        self.inner, self.slow, self.release = inner, slow, asyncio.Event()
        self.num_cancelled = 0

    @property
    def policy_version(self):
        return self.inner.policy_version

    async def sample(self, prompt_ids, params):
        version = self.inner.policy_version
        if said(self.inner.tokenizer.decode(prompt_ids)) == self.slow:
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.num_cancelled += 1
                raise
        result = await self.inner.sample(prompt_ids, params)
        return type(result)(result.completion_ids, result.logprobs, result.finish_reason, version)

    async def close(self):
        pass


def test_a_step_never_waits_for_the_slowest_group(make_source, scripted_sampler, echo_env):
    stream = PromptStream(EnvironmentRows(echo_env, "train"), seed=0)
    first = next(stream)[1]
    sampler = SlowPrompt(scripted_sampler(half_right), slow=str(first["example_id"]))
    source = make_source(sampler, OverlappedSource, max_staleness=1)
    step = source.next_step(0)
    assert first["example_id"] not in [group.example_id for group in step.groups]
    source.engine.run(_set(sampler.release)).result()


async def _set(event):
    event.set()


def test_stale_groups_are_dropped_counted_and_their_prompt_used_again(
    make_source, scripted_sampler, echo_env
):
    first = next(PromptStream(EnvironmentRows(echo_env, "train"), seed=0))[1]["example_id"]
    sampler = SlowPrompt(scripted_sampler(half_right), slow=str(first))
    source = make_source(sampler, OverlappedSource, max_staleness=1)
    trained, stale = [], 0
    for version in range(6):
        sampler.inner.policy_version = version
        if version == 3:
            source.engine.run(_set(sampler.release)).result()
        step = source.next_step(version)
        stale += step.num_stale
        trained += [group.example_id for group in step.groups]
        assert all(version - r.policy_version <= 1 for g in step.groups for r in g.rollouts)
    assert stale >= 1
    assert first in trained


def test_a_group_that_can_only_become_stale_is_stopped_and_its_prompt_used_again(
    make_source, scripted_sampler, echo_env
):
    first = next(PromptStream(EnvironmentRows(echo_env, "train"), seed=0))[1]["example_id"]
    sampler = SlowPrompt(scripted_sampler(half_right), slow=str(first))
    source = make_source(sampler, OverlappedSource, max_staleness=1)
    num_stale = []
    for version in range(3):
        assert sampler.num_cancelled == 0  # at version 1 it might still have come in time
        sampler.inner.policy_version = version
        num_stale.append(source.next_step(version).num_stale)
    assert num_stale == [0, 0, 1]
    wait_until(lambda: sampler.num_cancelled == 4)
    source.engine.run(_set(sampler.release)).result()
    for future in list(source._in_flight):
        future.result()
    sampler.inner.policy_version = 3
    trained = [group.example_id for group in source.next_step(3).groups]
    assert first in trained


def wait_until(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_group_that_waits_for_its_turn_is_not_stale(make_source, scripted_sampler, echo_env):
    """It will begin with the policy of then, whenever it was asked for."""
    first = next(PromptStream(EnvironmentRows(echo_env, "train"), seed=0))[1]["example_id"]
    sampler = SlowPrompt(scripted_sampler(half_right), slow=str(first))
    source = make_source(sampler, OverlappedSource, max_staleness=1, max_concurrent=4)
    source._start_groups(3)
    wait_until(lambda: len([f for f in source._in_flight.values() if f.version is not None]) == 1)
    sampler.inner.policy_version = 2
    assert source._stop_late_groups(2) == 1
    wait_until(lambda: sampler.num_cancelled == 4)
    assert {flight.version for flight in source._in_flight.values()} <= {None, 2}
    assert len(source._in_flight) == 2


def test_overlapped_resume_loses_no_prompt(make_source, scripted_sampler):
    source = make_source(scripted_sampler(half_right), OverlappedSource, max_staleness=1)
    trained = [group.example_id for group in source.next_step(0).groups]
    state = source.state_dict()
    sampler = scripted_sampler(half_right)
    resumed = make_source(sampler, OverlappedSource, max_staleness=1)
    resumed.load_state_dict(state)
    for version in range(1, 4):
        sampler.policy_version = version
        trained += [group.example_id for group in resumed.next_step(version).groups]
    # One epoch is 8 prompts: 4 steps of 2 use each of them once.
    assert sorted(trained) == list(range(8))


def test_a_dead_server_ends_an_overlapped_step_with_an_error(make_source, scripted_sampler):
    """Failed groups have no version of their own; they must not be taken for stale ones for ever."""
    source = make_source(
        scripted_sampler(lambda prompt, n: RuntimeError("gone")), OverlappedSource, max_staleness=1
    )
    with pytest.raises(RuntimeError, match=r"rollouts of the step failed"):
        source.next_step(5)


class OutOfOrder:
    """Finishes later requests first; the text depends on prompt and seed only, as with a seeded generator."""

    def __init__(self, inner):
        self.inner, self.count = inner, 0

    @property
    def policy_version(self):
        return self.inner.policy_version

    async def sample(self, prompt_ids, params):
        self.count += 1
        await asyncio.sleep(0.02 / self.count)
        said_text = said(self.inner.tokenizer.decode(prompt_ids))
        self.inner.answer = lambda prompt, n: f"<answer>{said_text if params.seed % 3 else 'no'}</answer>"
        return await self.inner.sample(prompt_ids, params)

    async def close(self):
        pass


@pytest.mark.parametrize("filter_zero_variance", [False, True])
def test_with_staleness_0_the_overlap_machinery_changes_nothing(
    make_source, scripted_sampler, filter_zero_variance
):
    """The same groups, in the same order, from the same seeds: the step that follows is the same to the bit."""
    steps = {}
    for source_class in (RolloutSource, OverlappedSource):
        sampler = OutOfOrder(scripted_sampler(lambda prompt, n: "unused"))
        settings = {"max_staleness": 0, "filter_zero_variance": filter_zero_variance, "max_refill": 8}
        source = make_source(sampler, source_class, prompts_per_step=3, **settings)
        steps[source_class] = []
        for version in range(4):
            sampler.inner.policy_version = version
            steps[source_class].append((source.next_step(version).groups, source.state_dict()["position"]))
    assert steps[RolloutSource] == steps[OverlappedSource]


def test_stale_groups_show_in_the_metrics(make_source, scripted_sampler):
    sampler = scripted_sampler(half_right)
    source = make_source(sampler, OverlappedSource, max_staleness=1)
    source.next_step(0)
    for future in list(source._in_flight):
        future.result()  # sampled at version 0
    sampler.policy_version = 5
    step = source.next_step(5)
    assert step.num_stale == 2
    assert step.metrics()["rollouts/groups_stale"] == 2.0
    assert step.num_generated == 4
    assert all(rollout.policy_version == 5 for group in step.groups for rollout in group.rollouts)


def test_refills_count_in_the_passes_over_the_prompts(make_source, scripted_sampler):
    source = make_source(
        scripted_sampler(spread_on_even_questions),
        filter_zero_variance=True,
        max_refill=8,
        prompts_per_step=4,
    )
    step = source.next_step(0)
    assert step.metrics()["prompts/epochs"] == step.num_generated / 8


def test_several_iterations_on_a_batch_make_nothing_stale(make_source, scripted_sampler):
    """The version then rises by more than one from step to step; what was generated meanwhile is one step old."""
    sampler = scripted_sampler(half_right)
    source = make_source(sampler, OverlappedSource, max_staleness=1, versions_per_step=2)
    ages = []
    for version in (0, 2, 4, 6):
        sampler.policy_version = version
        step = source.next_step(version)
        assert step.num_stale == 0
        ages.append({version - r.policy_version for group in step.groups for r in group.rollouts})
        metrics = step.metrics()
        assert metrics["rollouts/staleness/max"] == metrics["rollouts/staleness/mean"] == min(version, 1)
        for future in list(source._in_flight):
            future.result()  # the trainer trains, and the next step's groups finish
    assert ages == [{0}, {2}, {2}, {2}]


def test_stale_groups_do_not_count_as_informative(make_source, scripted_sampler):
    sampler = scripted_sampler(lambda prompt, n: "<answer>no</answer>")
    source = make_source(sampler, OverlappedSource, max_staleness=1)
    source.next_step(0)
    for future in list(source._in_flight):
        future.result()
    sampler.policy_version = 5
    step = source.next_step(5)
    assert step.num_stale > 0
    assert step.metrics()["informative_fraction"] == 0.0
