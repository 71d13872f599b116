"""A program that is not vLLM may answer with status 200, too: one clear line, and no second attempt."""

import pytest
from aiohttp import web

from grpo_gym.inference.sampler import InferenceError
from tests.inference.test_vllm_client import Stub, sample


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda: web.Response(text="<html>Welcome to\nnginx</html>"),
            "HTTP 200, but not with JSON: '<html>Welcome",
        ),
        (lambda: web.Response(text=""), "HTTP 200, but not with JSON"),
        (lambda: web.json_response([1, 2]), "not an object; is it a vf-vllm server"),
        (lambda: web.json_response({"status": "ok"}), "has no choices but .*'ok'.*must be a vf-vllm server"),
        (lambda: web.json_response({"choices": []}), "has no choices"),
        (
            lambda: web.json_response({"choices": [{"text": "hello", "finish_reason": "stop"}]}),
            "no token_ids",
        ),
    ],
)
def test_an_answer_that_is_not_vllms_is_one_clear_line(answer, message):
    stub = Stub(answer)
    with pytest.raises(InferenceError, match=message) as caught:
        sample(stub)
    assert "\n" not in str(caught.value)
    assert len(stub.bodies) == 1
