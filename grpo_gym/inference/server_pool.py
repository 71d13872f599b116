"""Several servers of the same weights as one: the least busy one is next, dead and stale ones are left out.

A server is
- *busy with trouble* for some seconds after HTTP 5xx or 429: the last choice;
- *down* after a connection broke, or when it has not answered `/health` while requests wait: asked for nothing
  until it answers `/health` again (unless all are down);
- *lost* when it does not have the trainer's weights, for example after a restart: out until the trainer has
  given it the current ones (`use`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from grpo_gym.inference.sampler import InferenceError

AVOID_SECONDS = 10.0
"""How long a server that answered with an error is the last choice."""
PROBE_SECONDS = 5.0
"""How often servers with requests in flight, and servers that are down, are asked for their health."""
SILENCE_SECONDS = 60.0
"""A server that does not answer /health for this long is down: its requests go to others."""


class NoServerError(InferenceError):
    """No server has the trainer's weights."""


@dataclass(slots=True)
class PooledServer:
    """One server as the client sees it.

    Attributes:
        base_url: without a trailing slash.
        instance: the start of the server that has the trainer's weights; None accepts any.
        in_flight: requests that wait for its answer.
        avoid_until: time of the event loop until which it is the last choice.
        is_down: whether it cannot be reached.
        lost: why it must not be sampled from; empty when it may.
        session: its connections; closing them ends the requests in flight.
    """

    base_url: str
    instance: str | None = None
    in_flight: int = 0
    avoid_until: float = 0.0
    is_down: bool = False
    lost: str = ""
    session: aiohttp.ClientSession | None = None


class ServerPool:
    """The servers of a sampler. Connections belong to the event loop of the first request.

    Args:
        base_urls: such as `http://127.0.0.1:8000`.
        request_timeout: seconds a request may take.
        connect_timeout: seconds until a connection must stand.
    """

    def __init__(self, base_urls: Sequence[str], request_timeout: float, connect_timeout: float) -> None:
        self._servers = [PooledServer(url.rstrip("/")) for url in base_urls]
        if not self._servers:
            raise ValueError("VLLMSampler needs the URL of at least one server.")
        self._timeout = aiohttp.ClientTimeout(total=request_timeout, sock_connect=connect_timeout)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watch: asyncio.Task[None] | None = None

    def use(self, instances: Mapping[str, str | None]) -> None:
        """Sample from these servers only; may be called from any thread.

        Args:
            instances: URL -> the start of the server that has the trainer's weights.
        """
        for server in self._servers:
            if server.base_url in instances:
                server.instance, server.lost = instances[server.base_url], ""
                server.is_down, server.avoid_until = False, 0.0
            elif not server.lost:
                server.lost = "it does not have the trainer's weights"
                self._end_requests(server)

    @contextlib.contextmanager
    def choose(self) -> Iterator[PooledServer]:
        """The server for the next request, which counts as in flight inside of the context.

        Raises:
            NoServerError: every server is lost.
        """
        self._start()
        now = asyncio.get_running_loop().time()
        usable = [server for server in self._servers if not server.lost]
        if not usable:
            reasons = "; ".join(f"{server.base_url}: {server.lost}" for server in self._servers)
            raise NoServerError(f"no vf-vllm server is left to sample from ({reasons})")
        server = min(usable, key=lambda s: (s.is_down, s.avoid_until > now, s.in_flight))
        server.in_flight += 1
        try:
            yield server
        finally:
            server.in_flight -= 1

    def session(self, server: PooledServer) -> aiohttp.ClientSession:
        """The server's connections. vLLM schedules; the client does not queue."""
        if server.session is None or server.session.closed:
            connector = aiohttp.TCPConnector(limit=0)
            server.session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, trust_env=False
            )
        return server.session

    def avoid(self, server: PooledServer) -> None:
        """Make it the last choice for a while."""
        server.avoid_until = asyncio.get_running_loop().time() + AVOID_SECONDS

    async def close(self) -> None:
        """Close the connections."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for server in self._servers:
            if server.session is not None:
                await server.session.close()

    def _start(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self._watch is None and len(self._servers) > 1:
            self._watch = self._loop.create_task(self._probe_for_ever(), name="vf-vllm-health")

    def _end_requests(self, server: PooledServer) -> None:
        """Break off the requests in flight, which are then made again elsewhere; from any thread."""
        session, server.session = server.session, None
        if session is not None and self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(session.close(), self._loop)

    async def _probe_for_ever(self) -> None:
        # With one server there is nowhere else to go, so only pools of several are watched.
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            suspects = [s for s in self._servers if not s.lost and (s.is_down or s.in_flight)]
            await asyncio.gather(*(self._probe(server) for server in suspects))

    async def _probe(self, server: PooledServer) -> None:
        was_down = server.is_down
        server.is_down = not await _is_healthy(server.base_url)
        if server.is_down and not was_down:
            self._end_requests(server)


async def _is_healthy(base_url: str) -> bool:
    # A session of its own: the server's may be closed at any time.
    timeout = aiohttp.ClientTimeout(total=SILENCE_SECONDS)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.get(f"{base_url}/health") as response,
        ):
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False
