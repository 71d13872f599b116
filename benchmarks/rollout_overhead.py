"""What environment and `RolloutEngine` cost: rollouts per second when tokens cost nothing, and the share of a real
server's tokens per second that arrives through them.

python -m benchmarks rollout_overhead            # stub server, then a real vf-vllm against bare clients
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import verifiers as vf
from datasets import Dataset
from transformers import AutoTokenizer

from benchmarks.bare_client import make_ways
from benchmarks.harness import Result, Spread, say
from benchmarks.provenance import ROOT
from benchmarks.real_server import model_folder, real_server, split_cores, this_process_on
from benchmarks.shapes import MODEL_NAMES
from benchmarks.zero_latency import COMPLETION_TOKENS, ZeroLatencySampler
from grpo_gym.inference.sampler import Sampler, SamplingParams
from grpo_gym.inference.vllm_client import VLLMSampler
from grpo_gym.models import TINY_MODEL_PATH
from grpo_gym.rollouts.chat import ChatRenderer
from grpo_gym.rollouts.engine import RolloutEngine

Measure = Callable[[], "Rate"]
BAR = 500.0
SHARE_BAR = 0.95


@dataclass(frozen=True, slots=True)
class Rate:
    """Rollouts per second of the clock, and per second of this process's CPU time: what one core can do."""

    by_clock: float
    by_core: float


class Stopwatch:
    """Clock and CPU seconds since it was made."""

    def __init__(self) -> None:
        self._clock, self._cpu = time.perf_counter(), time.process_time()

    def rate(self, count: int) -> Rate:
        """`count` things per second."""
        clock, cpu = time.perf_counter() - self._clock, time.process_time() - self._cpu
        return Rate(count / clock, count / cpu)


def parse_args(argv: list[str]) -> argparse.Namespace:
    """The options of `rollout_overhead`."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks rollout_overhead")
    parser.add_argument("--prompts", type=int, default=128, help="groups per measurement")
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--real-model", default="smollm2-135m", help="served by vf-vllm; none leaves it out")
    parser.add_argument("--real-layers", type=int, default=4, help="of a shape; the vocabulary in proportion")
    parser.add_argument("--real-prompts", type=int, default=16, help="groups per measurement, all in flight")
    parser.add_argument("--folder", type=Path, help="where result files go")
    return parser.parse_args(argv)


def main(argv: list[str]) -> None:
    """Measure the ways in turn, `repeats` times."""
    args = parse_args(argv)
    result = Result("rollout_overhead", ["rollout_overhead", *argv], notes=_notes(args))
    rates = stub_rates(args)
    add_stub_rates(result, rates)
    if args.real_model != "none":
        throughputs = real_throughputs(args)
        add_throughputs(result, throughputs)
    result.write(lambda axes: _plot(axes, rates), args.folder)


def stub_rates(args: argparse.Namespace) -> dict[str, list[Rate]]:
    """Rates of every way against samplers that answer at once, by name; this process on one core."""
    rates: dict[str, list[Rate]] = {}
    core = {min(os.sched_getaffinity(0))} if hasattr(os, "sched_getaffinity") else None
    with stub_server() as url, ways(url, args) as measures, this_process_on(core):
        for repeat in range(-1, args.repeats):  # round -1 warms up
            for name, measure in measures.items():
                rate = measure()
                if repeat >= 0:
                    rates.setdefault(name, []).append(rate)
    return rates


def add_stub_rates(result: Result, rates: dict[str, list[Rate]]) -> None:
    """Figures and rows of `stub_rates`."""
    for name, values in rates.items():
        core, clock = (Spread.of([getattr(v, k) for v in values]) for k in ("by_core", "by_clock"))
        say(f"{name}: {core} rollouts per core second, {clock} per second")
        result.figures |= core.figures(f"rollouts_per_core_second_{name}")
        result.figures |= clock.figures(f"rollouts_per_second_{name}")
        row = {"way": name, "rollouts/s of one core": str(core), "rollouts/s": str(clock), "bar": BAR}
        result.rows.append({**row, "tokens/s": "", "share of bare": ""})
    result.details["rates"] = {name: [asdict(value) for value in values] for name, values in rates.items()}


def real_throughputs(args: argparse.Namespace) -> dict[str, list[float]]:
    """Tokens per second of a real vf-vllm, by way; server and clients on half of the cores each."""
    server_cores, client_cores = split_cores()
    found: dict[str, list[float]] = {}
    layers = args.real_layers if args.real_model in MODEL_NAMES else None
    with (
        model_folder(args.real_model, layers) as path,
        real_server(path, 640, server_cores) as server,
        this_process_on(client_cores),
        contextlib.closing(make_engine(VLLMSampler([server.base_url], model=path))) as engine,
    ):
        params = SamplingParams(max_tokens=COMPLETION_TOKENS)
        measures = make_ways(engine, server.base_url, path, args.real_prompts, args.group_size, params)
        for repeat in range(-1, args.repeats):
            names = sorted(measures, reverse=repeat % 2 == 1)
            found_now = {name: measures[name]() for name in names}
            say(f"tokens per second of a real server: {found_now}")
            if repeat >= 0:
                for name, value in found_now.items():
                    found.setdefault(name, []).append(value)
    return found


def add_throughputs(result: Result, throughputs: dict[str, list[float]]) -> None:
    """Figures and rows of `real_throughputs`: shares are taken round by round."""
    for name, values in throughputs.items():
        rate = Spread.of(values)
        share = Spread.of([a / b for a, b in zip(throughputs["environment"], values, strict=True)])
        result.figures |= rate.figures(f"tokens_per_second_{name}")
        row = {"way": f"vf-vllm, {name}", "rollouts/s of one core": "", "rollouts/s": "", "bar": ""}
        if name != "environment":
            result.figures |= share.figures(f"environment_share_of_{name}")
            row["bar"] = f"environment at {SHARE_BAR:.0%} of it"
        result.rows.append({**row, "tokens/s": str(rate), "share of bare": str(share)})
    result.details["tokens_per_second"] = throughputs


@contextlib.contextmanager
def ways(url: str, args: argparse.Namespace) -> Iterator[dict[str, Measure]]:
    """What is measured, by name."""
    engines = {
        "in_process": make_engine(ZeroLatencySampler()),
        "stub_server": make_engine(VLLMSampler([url], model="policy", request_timeout=60.0)),
    }
    measures = {name: _engine_measure(engine, args) for name, engine in engines.items()}
    measures["stub_server_stock_client"] = lambda: stock_client_rate(url, args)
    try:
        yield measures
    finally:
        for engine in engines.values():
            engine.close()


def make_env(count: int = 64) -> vf.Environment:
    """A single-turn environment whose scoring costs next to nothing."""

    def correct(completion: vf.Messages, answer: str) -> float:
        return float(len(answer) % 2)

    rows = {"question": [f"How much is {i} + {i}?" for i in range(count)], "answer": ["4"] * count}
    return vf.SingleTurnEnv(dataset=Dataset.from_dict(rows), rubric=vf.Rubric([correct]))


def make_engine(sampler: Sampler) -> RolloutEngine:
    """The engine as the trainer builds it."""
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL_PATH)
    return RolloutEngine(make_env(), sampler, ChatRenderer(tokenizer), max_concurrent=512)


def engine_rate(engine: RolloutEngine, num_prompts: int, group_size: int) -> Rate:
    """Rollouts per second of one call of `generate`.

    Raises:
        RuntimeError: a rollout failed, so that the rate would mean nothing.
    """
    dataset = engine.env.get_dataset()
    rows = [dataset[i % len(dataset)] for i in range(num_prompts)]
    params = SamplingParams(max_tokens=COMPLETION_TOKENS)
    watch = Stopwatch()
    groups = engine.generate(rows, group_size, params, [None] * num_prompts)
    rate = watch.rate(num_prompts * group_size)
    failed = [r.error for group in groups for r in group.rollouts if not r.is_valid]
    if failed:
        raise RuntimeError(f"{len(failed)} rollouts failed: {failed[0]}")
    return rate


def _engine_measure(engine: RolloutEngine, args: argparse.Namespace) -> Measure:
    return lambda: engine_rate(engine, args.prompts, args.group_size)


def stock_client_rate(url: str, args: argparse.Namespace) -> Rate:
    """The same environment through Verifiers' own token client, a quarter as many rollouts."""
    return asyncio.run(_stock_client_rate(url, max(1, args.prompts // 4), args.group_size))


async def _stock_client_rate(url: str, num_prompts: int, group_size: int) -> Rate:
    from verifiers.clients import resolve_client
    from verifiers.types import ClientConfig

    os.environ.setdefault("STUB_KEY", "none")
    config = ClientConfig(
        client_type="openai_chat_completions_token", api_base_url=f"{url}/v1", api_key_var="STUB_KEY"
    )
    client = resolve_client(config)
    env = make_env()
    rows = [env.get_dataset()[i % 64] for i in range(num_prompts)]
    watch = Stopwatch()
    outputs = await asyncio.gather(
        *(
            env.run_group(
                [dict(row) for _ in range(group_size)],
                client=client,
                model="policy",
                sampling_args={"max_tokens": COMPLETION_TOKENS},
                state_columns=["trajectory"],
            )
            for row in rows
        )
    )
    rate = watch.rate(num_prompts * group_size)
    failed = [o["error"] for group in outputs for o in group if o.get("error") or not o["trajectory"]]
    if failed:
        raise RuntimeError(f"{len(failed)} rollouts of the stock client failed: {failed[0]}")
    return rate


@contextlib.contextmanager
def stub_server() -> Iterator[str]:
    """The stub in a process of its own; yields its URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.zero_latency", "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT)
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_until_up(url, process)
        yield url
    finally:
        process.terminate()
        process.wait()


def _wait_until_up(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(300):
        if process.poll() is not None:
            raise RuntimeError(f"the stub server ended with exit status {process.returncode}")
        try:
            urllib.request.urlopen(f"{url}/health", timeout=1.0).close()
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.1)
        else:
            return
    raise RuntimeError("the stub server did not answer within 30 s")


def _notes(args: argparse.Namespace) -> list[str]:
    return [
        f"{args.prompts} groups of {args.group_size} per measurement, up to 512 rollouts in flight, "
        f"{COMPLETION_TOKENS} tokens per completion; the client runs on one core, the stub server beside it.",
        "Per second of one core: per second of CPU time of the client process, whatever else the machine does.",
        "in_process: environment, chat template, scoring and RolloutEngine without any network.",
        "stub_server: the same with the trainer's HTTP client against a server that answers at once.",
        "stub_server_stock_client: Verifiers' own client and environment alone, without RolloutEngine.",
        f"vf-vllm: {args.real_model} ({args.real_layers} layers of a shape, random weights), "
        f"{args.real_prompts * args.group_size} requests at once, server and clients on half of the cores each. "
        "environment: SingleTurnEnv, scoring and RolloutEngine; bare_openai: OpenAI's client on /v1/completions; "
        "bare_aiohttp: post and parse, nothing else. share of bare: environment over that way, round by round.",
    ]


def _plot(axes: Any, rates: dict[str, list[Rate]]) -> None:
    spreads = {name: Spread.of([v.by_core for v in values]) for name, values in rates.items()}
    axes.bar(list(spreads), [spread.median for spread in spreads.values()])
    axes.axhline(BAR, color="black", linewidth=0.8, label=f"bar: {BAR:.0f}")
    axes.set_ylabel("rollouts per second of one core")
    axes.legend()
