"""Conversations of several turns: ids are kept, the environment's tokens are masked, tools are called."""

import asyncio
import copy
import re
from pathlib import Path

import pytest
import torch
import verifiers as vf

from grpo_gym.inference.sampler import SampleResult, SamplingParams
from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.rollouts.engine import RolloutEngine
from grpo_gym.training.step_batch import make_step_batch
from tests.conftest import ScriptedSampler, echo_dataset

# Templates with the habits of real ones: a line break after the turn's end (Qwen2.5), earlier thinking dropped
# (Qwen3), a turn's end that is not the tokenizer's end-of-sequence token (Gemma).
QWEN = (
    "{% for m in messages %}<|{{ m.role if m.role != 'tool' else 'user' }}|>{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
DROPS_THINKING = QWEN.replace(
    "{{ m.content }}", "{{ m.content if loop.last else m.content.split('</think>')[-1] }}"
)
OTHER_END = QWEN.replace("<|end|>\n", "<turn_end>\n")
TEMPLATES = {"own": None, "qwen": QWEN, "drops_thinking": DROPS_THINKING, "other_end": OTHER_END}


def with_template(tokenizer, template):
    changed = copy.deepcopy(tokenizer)
    if template is not None:
        changed.chat_template = template
    return changed


def one(completion):
    return 1.0


class Hints(vf.MultiTurnEnv):
    """Answers every completion with a hint."""

    async def env_response(self, messages, state, **kwargs):
        return [vf.UserMessage(content=f"hint {len(state['trajectory'])}")]


def hints(max_turns=3):
    return Hints(max_turns=max_turns, dataset=echo_dataset(), rubric=vf.Rubric([one]))


def run(env, sampler, renderer, num_generations=2, max_tokens=200, row=0):
    engine = RolloutEngine(env, sampler, renderer, max_retries=0)
    try:
        params = SamplingParams(max_tokens=max_tokens)
        (group,) = engine.generate([env.get_dataset()[row]], num_generations, params, [7])
    finally:
        engine.close()
    return group.rollouts


def said(tokenizer, rollout):
    """What the policy sampled, and what it did not, as texts."""
    parts = {1: [], 0: []}
    for i, m in zip(rollout.completion_ids, rollout.loss_mask, strict=True):
        parts[m].append(i)
    return tokenizer.decode(parts[1], skip_special_tokens=True), tokenizer.decode(parts[0])


@pytest.mark.parametrize("name", TEMPLATES)
def test_each_turns_prompt_extends_the_ids_before_it(tokenizer, name):
    tokenizer = with_template(tokenizer, TEMPLATES[name])
    texts = ["<think>a</think>first", "<think>b</think>second", "<think>c</think>third"]
    sampler = ScriptedSampler(tokenizer, lambda prompt, n: texts[min(prompt.count("hint"), 2)])
    rollouts = run(hints(), sampler, ChatRenderer(tokenizer))
    for rollout in rollouts:
        whole = rollout.prompt_ids + rollout.completion_ids
        prompts = sorted({tuple(ids) for ids, _ in sampler.requests}, key=len)
        assert len(prompts) == 3
        assert all(tuple(whole[: len(ids)]) == ids for ids in prompts)
        sampled, written = said(tokenizer, rollout)
        assert sampled == "".join(texts)
        assert written.count("hint") == 2
        assert not rollout.branches
        assert [p for p, m in zip(rollout.sampler_logprobs, rollout.loss_mask, strict=True) if m == 0] == [
            0.0
        ] * (rollout.loss_mask.count(0))


def test_the_environments_words_stand_as_the_template_writes_them(tokenizer):
    tokenizer = with_template(tokenizer, QWEN)
    sampler = ScriptedSampler(tokenizer, lambda prompt, n: "guess")
    (rollout,) = run(hints(max_turns=2), sampler, ChatRenderer(tokenizer), num_generations=1)
    text = tokenizer.decode(rollout.prompt_ids + rollout.completion_ids)
    assert (
        text
        == "<|user|>say 0<|end|>\n<|assistant|>guess<|end|>\n<|user|>hint 1<|end|>\n<|assistant|>guess<|end|>"
    )


class CutsTurns:
    """Samples `length` tokens a turn and never ends one by itself."""

    def __init__(self, length):
        self.length, self.asked, self.policy_version = length, [], 0

    async def sample(self, prompt_ids, params):
        self.asked.append((len(prompt_ids), params.max_tokens))
        count = min(self.length, params.max_tokens)
        return SampleResult([40] * count, [-1.0] * count, "length", 0)

    async def close(self):
        pass


def test_a_cut_turn_is_closed_by_the_environment_and_all_turns_share_one_budget(tokenizer):
    sampler = CutsTurns(length=10)
    (rollout,) = run(hints(max_turns=9), sampler, ChatRenderer(tokenizer), num_generations=1, max_tokens=40)
    first_prompt = sampler.asked[0][0]
    assert [budget for _, budget in sampler.asked] == [
        40 - (length - first_prompt) for length, _ in sampler.asked
    ]
    assert len(rollout.completion_ids) <= 40
    assert rollout.is_truncated
    assert rollout.reward == 1.0  # scored as it stands, not counted as a failure
    end = tokenizer.eos_token_id
    assert [m for i, m in zip(rollout.completion_ids, rollout.loss_mask, strict=True) if i == end].count(
        1
    ) == 0
    assert end in rollout.completion_ids


def test_max_turns_ends_a_conversation_with_the_policys_turn(tokenizer):
    sampler = ScriptedSampler(tokenizer, lambda prompt, n: "guess")
    for max_turns in (1, 2, 4):
        (rollout,) = run(hints(max_turns), sampler, ChatRenderer(tokenizer), num_generations=1)
        sampled, written = said(tokenizer, rollout)
        assert sampled == "guess" * max_turns
        assert written.count("hint") == max_turns - 1
        assert rollout.loss_mask[-1] == 1
        assert not rollout.is_truncated


def test_seeds_do_not_depend_on_which_rollout_is_faster(tokenizer):
    """The second turns come in any order; each rollout still gets its own seeds."""

    class Slow(Hints):
        delays = ()

        async def env_response(self, messages, state, **kwargs):
            await asyncio.sleep(self.delays[int(messages[-1].content)])
            return await super().env_response(messages, state)

    seeds = []
    for delays in ([0.0, 0.02], [0.02, 0.0]):
        env = Slow(max_turns=2, dataset=echo_dataset(), rubric=vf.Rubric([one]))
        env.delays = delays
        sampler = ScriptedSampler(tokenizer, lambda prompt, n: str(n))
        run(env, sampler, ChatRenderer(tokenizer))
        first, second = sampler.requests[:2], sampler.requests[2:]
        by_rollout = {tuple(ids[-2:]): p.seed for ids, p in first}
        assert len({p.seed for _, p in sampler.requests}) == 4
        seeds.append((by_rollout, sorted(p.seed for _, p in second)))
    assert seeds[0] == seeds[1]


class Summarizes(vf.MultiTurnEnv):
    """After its first turn the policy sees a summary instead of the conversation."""

    async def env_response(self, messages, state, **kwargs):
        return []

    async def get_prompt_messages(self, state):
        if not state["trajectory"]:
            return state["prompt"]
        return [vf.UserMessage(content="so far: much. go on")]


def test_a_rewritten_history_starts_a_branch(tokenizer):
    env = Summarizes(max_turns=2, dataset=echo_dataset(), rubric=vf.Rubric([one]))
    sampler = ScriptedSampler(tokenizer, lambda prompt, n: "later" if "so far" in prompt else "early")
    rollouts = run(env, sampler, ChatRenderer(tokenizer))
    asked = {tuple(ids) for ids, _ in sampler.requests}
    for rollout in rollouts:
        (branch,) = rollout.branches
        assert {tuple(rollout.prompt_ids), tuple(branch.prompt_ids)} == asked
        assert tokenizer.decode(rollout.completion_ids, skip_special_tokens=True) == "early"
        assert tokenizer.decode(branch.completion_ids, skip_special_tokens=True) == "later"
        assert rollout.num_sampled == len(rollout.completion_ids) + len(branch.completion_ids)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo"])
def test_branches_are_trained_with_the_weight_and_advantage_of_their_rollout(tokenizer, loss_type):
    env = Summarizes(max_turns=2, dataset=echo_dataset(), rubric=vf.Rubric([one]))
    sampler = ScriptedSampler(tokenizer, lambda prompt, n: "later on" if "so far" in prompt else "early")
    engine = RolloutEngine(env, sampler, ChatRenderer(tokenizer))
    groups = engine.generate([env.get_dataset()[0]], 2, SamplingParams(max_tokens=64), [0])
    engine.close()
    for number, rollout in enumerate(groups[0].rollouts):
        rollout.reward = float(number)
    batch = make_step_batch(groups, loss_type, "group", 64, False, 2)
    assert len(batch.rollouts) == 4
    assert batch.advantages[0] == batch.advantages[1] == -batch.advantages[2]
    # A rollout's weights add up to what they would be if it were one sequence.
    flat = copy.deepcopy(groups)
    for rollout in flat[0].rollouts:
        (branch,) = rollout.branches
        for name in ("completion_ids", "sampler_logprobs", "loss_mask"):
            getattr(rollout, name).extend(getattr(branch, name))
        rollout.branches = []
    whole = make_step_batch(flat, loss_type, "group", 64, False, 2)
    totals = (batch.weights * batch.lengths).view(2, 2).sum(1)
    torch.testing.assert_close(totals, whole.weights * whole.lengths)
    packs = batch.pack_inputs(batch.trainable(keep_all=False))
    assert sorted(len(pack.completions) for pack in packs) == [2, 2]  # each prompt once, shared by the group


def add(a: int, b: int) -> str:
    """Add two numbers."""
    return str(a + b)


def tool_env(max_turns=4):
    return vf.ToolEnv(tools=[add], max_turns=max_turns, dataset=echo_dataset(), rubric=vf.Rubric([one]))


CALL = '<tool_call>{"name": "add", "arguments": {"a": 2, "b": 3}}</tool_call>'


def test_tools_are_shown_called_and_answered(tokenizer):
    sampler = ScriptedSampler(tokenizer, lambda prompt, n: "5 it is" if "<tool_response>" in prompt else CALL)
    (rollout,) = run(tool_env(), sampler, ChatRenderer(tokenizer), num_generations=1)
    assert "Tools: add(a, b)" in tokenizer.decode(rollout.prompt_ids)
    sampled, written = said(tokenizer, rollout)
    assert sampled == f"{CALL}5 it is"
    assert "<tool_response>5</tool_response>" in written
    assert rollout.metrics["add_calls"] == 1.0
    assert rollout.metrics["num_turns"] == 2.0


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        ('<tool_call>{"name": "subtract", "arguments": {}}</tool_call>', "'subtract'"),
        ('<tool_call>{"name": "add", "arguments": {"a": 2}}</tool_call>', "missing 1 required"),
        ('<tool_call>{"name": "add", "arguments": "2, 3"}</tool_call>', "mapping"),
    ],
)
def test_the_policy_is_told_of_a_call_that_failed(tokenizer, call, answer):
    sampler = ScriptedSampler(tokenizer, lambda prompt, n: "sorry" if "<tool_response>" in prompt else call)
    (rollout,) = run(tool_env(), sampler, ChatRenderer(tokenizer), num_generations=1)
    sampled, written = said(tokenizer, rollout)
    assert sampled == f"{call}sorry"
    assert answer in written
    assert rollout.is_valid


def test_a_call_that_cannot_be_read_is_an_answer(tokenizer):
    text = '<tool_call>{"name": "add", "argum'
    sampler = ScriptedSampler(tokenizer, lambda prompt, n: text)
    (rollout,) = run(tool_env(), sampler, ChatRenderer(tokenizer), num_generations=1)
    assert said(tokenizer, rollout) == (text, "")
    assert rollout.is_valid
    assert len(sampler.requests) == 1


def test_two_calls_in_one_turn_get_two_answers(tokenizer):
    sampler = ScriptedSampler(
        tokenizer, lambda prompt, n: "done" if "<tool_response>" in prompt else CALL + CALL
    )
    (rollout,) = run(tool_env(), sampler, ChatRenderer(tokenizer), num_generations=1)
    assert said(tokenizer, rollout)[1].count("<tool_response>5</tool_response>") == 2


def test_a_template_that_leaves_a_turn_out_is_refused(tokenizer):
    tokenizer = with_template(
        tokenizer, "{% for m in messages if m.role != 'assistant' %}{{ m.content }}{% endfor %}"
    )
    sampler = ScriptedSampler(tokenizer, lambda prompt, n: "guess")
    (rollout,) = run(hints(), sampler, ChatRenderer(tokenizer), num_generations=1)
    assert "leaves out an earlier assistant turn" in rollout.error


def test_the_environment_of_the_docs_runs(tokenizer):
    """docs/multi_turn.md, "Writing one": guesses are answered until the number is found."""
    page = (Path(__file__).parents[2] / "docs/multi_turn.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope = {}
    exec(compile(code, "docs/multi_turn.md", "exec"), scope)

    def guess(prompt, number):
        if "lower" in prompt:
            return "<answer>2</answer>"
        return "<answer>7</answer>" if "higher" in prompt else "<answer>5</answer>"

    sampler = ScriptedSampler(tokenizer, guess)
    for row, reward, turns in ((4, 1.0, 1), (1, 0.8, 2), (6, 0.8, 2), (8, 0.0, 4)):
        (rollout,) = run(scope["env"], sampler, ChatRenderer(tokenizer), num_generations=1, row=row)
        assert rollout.reward == pytest.approx(reward)
        assert rollout.metrics["num_turns"] == turns
