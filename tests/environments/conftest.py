"""Rollouts without a model: a client that answers what the test says."""

import pytest
import verifiers as vf
from verifiers.legacy.types import Response, ResponseMessage


class ScriptedClient(vf.Client):
    """Answers every prompt with `answer(prompt text)`."""

    def __init__(self, answer):
        super().__init__(client_or_config=object())
        self.answer = answer

    def setup_client(self, config):
        return config

    async def to_native_tool(self, tool):
        return tool

    async def to_native_prompt(self, messages):
        return messages, {}

    async def get_native_response(self, prompt, model, sampling_args, tools=None, **kwargs):
        return self.answer(prompt[-1].content)

    async def raise_from_native_response(self, response):
        pass

    async def from_native_response(self, response):
        message = ResponseMessage(content=response, finish_reason="stop", is_truncated=False)
        return Response(id="0", created=0, model="scripted", message=message)

    async def close(self):
        pass


@pytest.fixture
def rollout():
    """Run rows through an environment with scripted answers; returns Verifiers' outputs."""

    async def run(env, rows, answer):
        client = ScriptedClient(answer)
        return [(await env.run_group([row], client, "scripted", {}))[0] for row in rows]

    return run
