"""The client against a stub of vLLM that fails in every way a server can."""

import asyncio
from collections import Counter

import pytest
from aiohttp import web

from grpo_gym.inference import server_pool, vllm_client
from grpo_gym.inference.sampler import InferenceError, PromptTooLongError, SamplingParams
from grpo_gym.inference.vllm_client import VLLMSampler

PARAMS = SamplingParams(max_tokens=4, temperature=0.7, top_p=0.9, stop=("\n",), seed=5)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(vllm_client, "_FIRST_BACKOFF_SECONDS", 0.01)


def completion(ids=(5, 6, 1), logprobs=(-0.1, -0.2, -0.3), finish_reason="stop"):
    choice = {
        "token_ids": list(ids),
        "logprobs": {"token_logprobs": list(logprobs)},
        "finish_reason": finish_reason,
    }
    return web.json_response({"choices": [choice]})


def error(status, message="broken"):
    return web.json_response({"error": {"message": message, "code": status}}, status=status)


class Stub:
    """A server that gives its scripted answers in turn, then its last one for ever."""

    def __init__(self, *answers, delay=0.0):
        self.answers = list(answers)
        self.delay = delay
        self.bodies = []
        self.headers = []
        self.transports = []
        self.health_delay = 0.0

    async def handle(self, request):
        self.bodies.append(await request.json())
        self.headers.append(request.headers)
        self.transports.append(request.transport)
        if self.delay:
            await asyncio.sleep(self.delay)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if answer == "hang up":
            request.transport.abort()
        return answer() if callable(answer) else answer

    async def health(self, request):
        await asyncio.sleep(self.health_delay)
        return web.Response()

    async def start(self):
        app = web.Application()
        app.router.add_post("/v1/completions", self.handle)
        app.router.add_get("/health", self.health)
        self.runner = web.AppRunner(app, shutdown_timeout=0.01)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"


def with_stubs(*stubs, use, **options):
    """Run `use(sampler)` against the stubs."""

    async def run():
        for stub in stubs:
            await stub.start()
        sampler = VLLMSampler([f"{stub.url}/" for stub in stubs], "policy", **options)
        try:
            return await use(sampler)
        finally:
            await sampler.close()
            for stub in stubs:
                await stub.runner.cleanup()

    return asyncio.run(run())


def sample(*stubs, **options):
    return with_stubs(*stubs, use=lambda sampler: sampler.sample([1, 2, 3], PARAMS), **options)


def test_ids_and_logprobs_come_back_as_sampled():
    stub = Stub(completion)
    result = sample(stub, api_key="key")
    assert result.completion_ids == [5, 6, 1]
    assert result.logprobs == [-0.1, -0.2, -0.3]
    assert result.finish_reason == "stop"
    (body,) = stub.bodies
    expected = {"model": "policy", "prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0.7, "top_p": 0.9}
    assert body.items() >= expected.items()
    assert (body["stop"], body["seed"], body["top_k"], body["return_token_ids"]) == (["\n"], 5, 0, True)
    assert stub.headers[0]["Authorization"] == "Bearer key"


def test_a_sample_carries_the_version_that_began_it():
    async def use(sampler):
        sampler.policy_version = 3
        running = asyncio.create_task(sampler.sample([1], PARAMS))
        await asyncio.sleep(0.05)
        sampler.policy_version = 4
        return (await running).policy_version

    assert with_stubs(Stub(completion, delay=0.2), use=use) == 3


def test_a_cancelled_sample_hangs_up_so_that_the_server_stops_it():
    async def use(sampler):
        running = asyncio.create_task(sampler.sample([1], PARAMS))
        await asyncio.sleep(0.2)
        (transport,) = slow.transports
        assert not transport.is_closing()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(0.2)
        return transport.is_closing()

    slow = Stub(completion, delay=60.0)
    assert with_stubs(slow, use=use)


@pytest.mark.parametrize("trouble", [lambda: error(500), lambda: error(503), lambda: error(429), "hang up"])
def test_passing_trouble_is_tried_again(trouble):
    stub = Stub(trouble, trouble, completion)
    assert sample(stub).completion_ids == [5, 6, 1]
    assert len(stub.bodies) == 3


def test_an_aborted_request_is_tried_again():
    aborted = lambda: completion((5,), (-0.1,), "abort")  # noqa: E731
    assert sample(Stub(aborted, completion)).finish_reason == "stop"


def test_lasting_trouble_is_an_inference_error_that_names_the_server():
    stub = Stub(lambda: error(500, "engine is dead"))
    with pytest.raises(InferenceError, match=r"127\.0\.0\.1.*HTTP 500.*engine is dead"):
        sample(stub)
    assert 1 < len(stub.bodies) < 10


def test_a_bad_request_is_not_tried_again():
    stub = Stub(lambda: error(404, "no such model"))
    with pytest.raises(InferenceError, match="no such model"):
        sample(stub)
    assert len(stub.bodies) == 1


def test_an_overlong_prompt_has_its_own_error():
    message = "This model's maximum context length is 640 tokens. However, you requested 700."
    with pytest.raises(PromptTooLongError, match="640"):
        sample(Stub(lambda: error(400, message)))


def test_a_time_out_is_an_inference_error():
    with pytest.raises(InferenceError, match=r"did not answer within 0\.2 s"):
        sample(Stub(completion, delay=2.0), request_timeout=0.2)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: web.json_response({"choices": [{"finish_reason": "stop", "text": "x"}]}), "no token_ids"),
        (lambda: completion((5, 6), (-0.1,)), "2 token_ids but 1 logprobs"),
        (lambda: completion(finish_reason="error"), "finish_reason='error'"),
    ],
)
def test_answers_that_cannot_be_trained_on_are_refused(answer, message):
    with pytest.raises(InferenceError, match=message):
        sample(Stub(answer))


def test_the_least_busy_server_gets_the_next_request():
    stubs = [Stub(completion, delay=0.2) for _ in range(3)]

    async def use(sampler):
        await asyncio.gather(*(sampler.sample([i], PARAMS) for i in range(30)))

    with_stubs(*stubs, use=use)
    assert Counter(len(stub.bodies) for stub in stubs) == {10: 3}


def test_a_dead_server_is_avoided_while_another_lives():
    dead, alive = Stub("hang up"), Stub(completion)

    async def use(sampler):
        return [await sampler.sample([i], PARAMS) for i in range(20)]

    assert len(with_stubs(dead, alive, use=use)) == 20
    assert len(alive.bodies) == 20
    assert len(dead.bodies) < 5


def test_requests_in_flight_on_a_server_that_dies_go_to_the_others():
    async def use(sampler):
        running = [asyncio.create_task(sampler.sample([i], PARAMS)) for i in range(8)]
        await asyncio.sleep(0.1)
        await dying.runner.cleanup()
        return await asyncio.gather(*running)

    dying, alive = Stub(completion, delay=60.0), Stub(completion)
    assert len(with_stubs(dying, alive, use=use)) == 8
    assert len(dying.bodies) > 0
    assert len(alive.bodies) == 8


def test_a_server_without_the_weights_is_not_asked_and_its_requests_move():
    slow, other = Stub(completion, delay=60.0), Stub(completion)

    async def use(sampler):
        sampler.use({slow.url: "a", other.url: "b"})
        running = [asyncio.create_task(sampler.sample([i], PARAMS)) for i in range(4)]
        await asyncio.sleep(0.1)
        sampler.use({other.url: "b"})
        await asyncio.gather(*running)
        asked = len(slow.bodies)
        for i in range(5):
            await sampler.sample([i], PARAMS)
        return asked == len(slow.bodies) > 0

    assert with_stubs(slow, other, use=use)
    assert {headers["X-VF-Instance"] for headers in other.headers} == {"b"}


def test_a_restarted_server_is_left_out_until_it_has_the_weights():
    restarted, other = Stub(lambda: error(412, "restarted")), Stub(completion)

    async def use(sampler):
        sampler.use({restarted.url: "a", other.url: "b"})
        for i in range(5):
            await sampler.sample([i], PARAMS)
        before = len(restarted.bodies)
        restarted.answers = [completion]
        sampler.use({restarted.url: "a2", other.url: "b"})
        await asyncio.gather(*(sampler.sample([i], PARAMS) for i in range(4)))
        return before

    assert with_stubs(restarted, other, use=use) == 1
    assert [headers["X-VF-Instance"] for headers in restarted.headers][1:] == ["a2", "a2"]


def test_without_any_server_left_the_error_says_why():
    async def use(sampler):
        sampler.use({})
        await sampler.sample([1], PARAMS)

    with pytest.raises(InferenceError, match=r"no vf-vllm server is left to sample from \(http.*weights"):
        with_stubs(Stub(completion), use=use)


def test_a_server_that_stays_silent_gives_its_requests_to_the_others(monkeypatch):
    monkeypatch.setattr(server_pool, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(server_pool, "SILENCE_SECONDS", 0.2)
    silent, alive = Stub(completion, delay=60.0), Stub(completion)
    silent.health_delay = 60.0

    async def use(sampler):
        return await asyncio.gather(*(sampler.sample([i], PARAMS) for i in range(6)))

    assert len(with_stubs(silent, alive, use=use)) == 6
    assert len(alive.bodies) == 6
