"""Whole evaluations in this process: the embedded model, and an OpenAI-compatible server of a few lines."""

import http.server
import json
import re
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest
import torch

from grpo_gym.evaluation.config import EvalConfig
from grpo_gym.evaluation.datasets import load_datasets
from grpo_gym.evaluation.results import read_results
from grpo_gym.evaluation.run import EvaluationStopped, run_evaluation
from grpo_gym.rewards.scoring import shared_pool
from grpo_gym.rollouts.scoring import leaf_rubrics
from tests.docs.markdown import ROOT

LEGS = {"dataset": "leg_counting", "size": 4, "params": {"min_animals": 1, "max_animals": 2}}


def config(folder, **changes):
    settings = {
        "model": "tiny", "max_tokens": 48, "repeats": 2, "output_dir": str(folder),
        "categories": {"arithmetic": {"legs": LEGS}}, "max_concurrent": 8,
    }  # fmt: skip
    return EvalConfig(**{**settings, **changes})


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers every question with the server's `text`; `status` other than 200 is an error."""

    def do_GET(self):
        self._send(200, {"data": [{"id": "m"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((body, self.headers.get("Authorization")))
        if self.path == "/v1/completions":  # vf-vllm's way: ids in, ids out
            tokens = {
                "token_ids": [5, 6, 7],
                "logprobs": {"token_logprobs": [-1.0] * 3},
                "finish_reason": "stop",
            }
            self._send(self.server.status, {"choices": [tokens]})
            return
        choice = {
            "index": 0,
            "finish_reason": "stop",
            "message": {"role": "assistant", "content": self.server.text},
        }
        usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
        answer = {"id": "1", "object": "chat.completion", "created": 1, "model": "m"}
        self._send(self.server.status, {**answer, "choices": [choice], "usage": usage})

    def _send(self, status, content):
        data = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    running.requests, running.text, running.status = [], "<answer>8</answer>", 200
    running.url = f"http://127.0.0.1:{running.server_port}/v1"
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield running
    running.shutdown()
    running.server_close()


def test_reasoning_gym_is_scored_in_workers(tmp_path, server):
    shared_pool().close()
    model = {"model": "m", "base_url": server.url, "backend": "openai"}
    run_evaluation(config(tmp_path, **model))
    assert shared_pool().pids


def test_the_embedded_model_twice_samples_nothing_the_second_time(tmp_path):
    first = run_evaluation(config(tmp_path))
    assert (first.num_sampled, first.num_reused) == (8, 0)
    assert 0 <= first.summary["all"]["accuracy"]["mean"] <= 1
    again = run_evaluation(config(tmp_path))
    assert (again.num_sampled, again.num_reused) == (0, 8)
    assert again.summary == first.summary


def test_more_repeats_and_problems_keep_what_is_there(tmp_path):
    run_evaluation(config(tmp_path))
    before = read_results(tmp_path).problems
    more = run_evaluation(
        config(tmp_path, repeats=3, categories={"arithmetic": {"legs": {**LEGS, "size": 5}}})
    )
    assert (more.num_sampled, more.num_reused) == (7, 8)
    after = read_results(tmp_path).problems
    assert [p.samples[:2] for p in after[:4]] == [p.samples for p in before]


def test_problems_and_samples_do_not_depend_on_the_other_datasets(tmp_path):
    run_evaluation(config(tmp_path / "a"))
    both = {"logic": {"coin_flip": {"size": 2}}, "arithmetic": {"legs": LEGS}}
    run_evaluation(config(tmp_path / "b", categories=both))
    alone = read_results(tmp_path / "a").problems
    mixed = [p for p in read_results(tmp_path / "b").problems if p.task == "legs"]
    assert mixed == alone


def test_an_environment_package_is_a_dataset(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text(
        "".join(json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(9))
    )
    dataset = {
        "environment": "question_answer",
        "env_args": {"dataset": str(pairs), "eval_fraction": 0.5},
        "size": 3,
    }
    outcome = run_evaluation(config(tmp_path / "out", repeats=1, categories={"own": {"pairs": dataset}}))
    assert outcome.summary["by_task"]["pairs"]["num_problems"] == 3
    assert outcome.summary["all"]["format_rate"] is not None


def test_a_url_is_asked_with_the_settings_and_the_key(tmp_path, server, monkeypatch):
    monkeypatch.setenv("MY_KEY", "secret-of-the-test")
    outcome = run_evaluation(
        config(tmp_path, model="m", base_url=server.url, api_key_var="MY_KEY", temperature=0.5)
    )
    body, key = server.requests[0]
    assert (body["model"], body["temperature"], body["max_completion_tokens"]) == ("m", 0.5, 48)
    assert key == "Bearer secret-of-the-test"
    assert len(server.requests) == 8
    assert outcome.summary["all"]["format_rate"]["mean"] == 1.0
    assert outcome.summary["all"]["mean_length"] == 3
    written = [path.read_text() for path in tmp_path.iterdir() if path.suffix in (".json", ".jsonl")]
    assert not any("secret-of-the-test" in text for text in written)


def test_no_key_of_another_service_is_sent(tmp_path, server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "not-for-you")
    monkeypatch.setenv("PRIME_API_KEY", "nor-this")
    run_evaluation(config(tmp_path, model="m", base_url=server.url))
    assert {key for _, key in server.requests} == {"Bearer EMPTY"}


def test_an_empty_answer_is_wrong_and_not_a_failure(tmp_path, server):
    server.text = ""
    outcome = run_evaluation(config(tmp_path, model="m", base_url=server.url))
    assert outcome.failures == []
    assert outcome.summary["all"]["accuracy"]["mean"] == 0.0


def test_a_server_that_refuses_stops_the_evaluation_and_nothing_counts_as_wrong(tmp_path, server):
    server.status = 400
    with pytest.raises(EvaluationStopped, match=r"could be scored|in a row failed"):
        run_evaluation(config(tmp_path, model="m", base_url=server.url, max_retries=0))
    assert len((tmp_path / "completions.jsonl").read_text().splitlines()) == 1
    server.status = 200
    assert run_evaluation(config(tmp_path, model="m", base_url=server.url)).num_sampled == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "http://127.0.0.1:9/v1", "model": "m"}, "127.0.0.1:9/v1 does not answer"),
        ({"model": "./nowhere"}, "no folder './nowhere'"),
        ({"model": "org/nothing-of-the-kind"}, "is no folder here, and could not be loaded by name"),
        (
            {"categories": {"a": {"x": {"environment": "no_such_env"}}}},
            "dataset x: environment 'no_such_env'",
        ),
    ],
)
def test_what_is_not_there_is_one_line(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        run_evaluation(config(tmp_path, **changes))
    assert "\n" not in str(error.value)


def test_a_key_variable_that_is_not_set(tmp_path, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(ValueError, match="MY_KEY is not set"):
        run_evaluation(config(tmp_path, model="m", base_url="http://127.0.0.1:9/v1", api_key_var="MY_KEY"))


def test_a_run_folder_without_a_model_names_its_checkpoint(tmp_path):
    (tmp_path / "run/checkpoint-5").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no model in .*; did you mean '.*checkpoint-5'"):
        run_evaluation(config(tmp_path / "out", model=str(tmp_path / "run")))


def test_other_weights_under_the_same_path_are_another_model(tmp_path):
    from safetensors.torch import load_file, save_file

    from grpo_gym.models import TINY_MODEL_PATH

    model = tmp_path / "model"
    shutil.copytree(TINY_MODEL_PATH, model)
    settings = {"model": str(model), "repeats": 1}
    run_evaluation(config(tmp_path / "out", **settings))
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: tensor * 1.01 for name, tensor in weights.items()},
        model / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"model is .*weights"):
        run_evaluation(config(tmp_path / "out", **settings))


def test_a_key_that_is_refused_while_running_stops_the_evaluation(tmp_path, server):
    server.status = 401
    with pytest.raises(EvaluationStopped, match="refuses the key"):
        run_evaluation(config(tmp_path, model="m", base_url=server.url))


def test_what_could_not_be_scored_is_kept_until_its_line_is_deleted(tmp_path, monkeypatch):
    """With the command of docs/evaluation.md."""
    fails = [True]

    def reward(completion, **kwargs):
        if fails and fails.pop():
            raise RuntimeError('a "broken" scorer')
        return 1.0

    def load(settings):
        datasets = load_datasets(settings)
        for rubric in leaf_rubrics(datasets[0].env.rubric):
            rubric.funcs, rubric.weights = [reward], [1.0]
        return datasets

    monkeypatch.setattr("grpo_gym.evaluation.run.load_datasets", load)
    first = run_evaluation(config(tmp_path))
    assert [failure.split(":")[0] for failure in first.failures] == ["scoring failed"]
    again = run_evaluation(config(tmp_path))
    assert (again.num_sampled, len(again.failures)) == (0, 1)
    command = re.search(r"^sed -i .*$", (ROOT / "docs/evaluation.md").read_text(), re.MULTILINE)[0]
    subprocess.run(command.replace("OUTPUT_DIR", str(tmp_path)), shell=True, check=True)
    mended = run_evaluation(config(tmp_path))
    assert (mended.num_sampled, mended.num_reused, mended.failures) == (1, 7, [])


@pytest.fixture
def lora(tmp_path, monkeypatch):
    """A checkpoint of strong adapters for the embedded model as PEFT saves it; temporary files lie in tmp_path/tmp."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from grpo_gym.models import TINY_MODEL_PATH

    settings = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(TINY_MODEL_PATH), settings)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "lora")
    AutoTokenizer.from_pretrained(TINY_MODEL_PATH).save_pretrained(tmp_path / "lora")
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path / "lora"


def completions(folder):
    return [sample.completion for problem in read_results(folder).problems for sample in problem.samples]


def test_a_lora_checkpoint_answers_as_its_merged_model(tmp_path, lora):
    from grpo_gym.export.export import export_checkpoint

    run_evaluation(config(tmp_path / "out", model=str(lora)))
    export_checkpoint(lora, tmp_path / "merged", merge_lora=True)
    run_evaluation(config(tmp_path / "out_merged", model=str(tmp_path / "merged")))
    run_evaluation(config(tmp_path / "out_base"))
    assert completions(tmp_path / "out") == completions(tmp_path / "out_merged")
    assert completions(tmp_path / "out") != completions(tmp_path / "out_base")
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_lora_checkpoint_without_its_base_model_is_one_line(tmp_path, lora):
    settings = json.loads((lora / "adapter_config.json").read_text())
    (lora / "adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": "./gone"}))
    with pytest.raises(ValueError, match=r"base model ./gone cannot be loaded") as error:
        run_evaluation(config(tmp_path / "out", model=str(lora)))
    assert "\n" not in str(error.value)
    assert list((tmp_path / "tmp").iterdir()) == []


class StartedServer:
    """Stands in for `ColocatedServer`; real ones are in tests/end_to_end."""

    failure = None
    stopped = 0

    def __init__(self, model, **kwargs):
        type(self).model = model
        type(self).files = {path.name for path in Path(model).iterdir()}
        self.base_url = type(self).url

    def start(self, timeout):
        if self.failure:
            raise self.failure

    def stop(self):
        type(self).stopped += 1


@pytest.fixture
def started(server, monkeypatch):
    fake = type("Fake", (StartedServer,), {"url": server.url.removesuffix("/v1")})
    monkeypatch.setattr("grpo_gym.inference.colocate.ColocatedServer", fake)
    return fake


def test_a_server_of_its_own_gets_token_ids_and_is_stopped(tmp_path, server, started):
    outcome = run_evaluation(config(tmp_path, backend="server"))
    assert outcome.num_sampled == 8
    assert all(isinstance(token, int) for token in server.requests[0][0]["prompt"])
    assert "seed" not in server.requests[0][0]
    assert started.stopped == 1


def test_a_server_of_its_own_gets_the_merged_model_of_a_lora_checkpoint(tmp_path, lora, started):
    assert run_evaluation(config(tmp_path / "out", model=str(lora), backend="server")).num_sampled == 8
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= started.files
    assert "adapter_config.json" not in started.files
    assert not Path(started.model).exists()


def test_what_vllm_cannot_serve_is_refused_before_a_server_starts(tmp_path, started, monkeypatch):
    def refuse(processor):
        raise ValueError("vLLM cannot serve pictures in one piece")

    monkeypatch.setattr("grpo_gym.vision.server_chat.check_servable", refuse)
    with pytest.raises(ValueError, match="cannot serve pictures"):
        run_evaluation(config(tmp_path, backend="server"))
    assert not hasattr(started, "model")


def test_its_server_is_stopped_when_the_evaluation_fails(tmp_path, server, started):
    server.status = 400
    with pytest.raises(EvaluationStopped):
        run_evaluation(config(tmp_path, backend="server", max_retries=0))
    assert started.stopped == 1


def test_a_server_that_does_not_start_is_one_line(tmp_path, started):
    started.failure = TimeoutError("vf-vllm was not ready within 1 s (raise vllm_server_timeout)")
    with pytest.raises(EvaluationStopped, match=r"not ready within 1 s \(raise server_timeout\)"):
        run_evaluation(config(tmp_path, backend="server"))
    assert started.stopped == 1
