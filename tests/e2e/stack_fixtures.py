"""The whole stack, as `pagoda serve` runs it with the bundled model."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import PagodaProcess, free_port, is_alive, poll

from pagoda.rpc.channel import open_blocking_channel
from pagoda.v1 import scheduler_pb2, scheduler_pb2_grpc

# Enough for the tests, and little enough that they reach the limits. One thread: two would wait for each other on a
# machine that is busy with other tests.
SMALL = "--max-model-len 2048 --max-num-seqs 64 --num-gpu-blocks-override 2048 --device cpu --threads 1".split()

START_TIMEOUT_S = 60.0
IDLE_TIMEOUT_S = 10.0


class Server:
    """A running `pagoda serve`.

    address: "127.0.0.1:port", for gRPC; base_url: the same for HTTP, without /v1; model: its served name
    """

    def __init__(self, run_dir: Path, *flags: str) -> None:
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        self.base_url = f"http://{self.address}"
        self.model = "pagoda"
        self.run_dir = run_dir
        self.process = PagodaProcess(
            run_dir / "output", "serve", "--port", str(port), "--run-dir", str(run_dir), *SMALL, *flags
        )

    def wait_until_ready(self) -> Server:
        def ready() -> bool:
            assert self.process.process.poll() is None, self.process.output
            services = self.services()
            return bool(services) and all(each["ready"] for each in services.values())

        poll(ready, START_TIMEOUT_S, f"every service is ready; the output:\n{self.process.output}")
        return self

    def services(self) -> dict[str, dict[str, Any]]:
        """Name -> what the supervisor says of the service: pid, address, ready, restarts. {} before the start."""
        try:
            state = json.loads((self.run_dir / "state.json").read_text())
        except FileNotFoundError:
            return {}
        return {each["name"]: each for each in state["services"]}

    def kill(self, name: str) -> None:
        """SIGKILLs a service, and waits until the supervisor has brought it back and all are ready."""
        before = self.services()[name]
        os.kill(before["pid"], signal.SIGKILL)
        poll(
            lambda: (now := self.services()[name])["restarts"] > before["restarts"] and now["ready"],
            START_TIMEOUT_S,
            f"{name} is back",
        )

    def state(self, check_integrity: bool = False) -> scheduler_pb2.SchedulerState:
        """The scheduler's view; with `check_integrity`, after proving that every block has one owner."""
        return scheduler_state(self.services()["scheduler"]["address"], check_integrity)

    def assert_idle(self) -> None:
        """Nothing runs or waits, no block is referenced, and the books are right."""

        def idle() -> bool:
            state = self.state(check_integrity=True)
            return not state.num_waiting and not any(
                each.num_running or each.num_referenced_blocks for each in state.lanes
            )

        poll(idle, IDLE_TIMEOUT_S, f"idle; the state:\n{self.state()}")

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to a JSON request; fails the test unless the status is 200."""
        connection = http.client.HTTPConnection(self.address, timeout=60)
        try:
            connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        assert response.status == 200, answer
        return json.loads(answer)

    def complete(self, prompt: str, max_tokens: int = 8) -> str:
        """A greedy completion."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True}
        text: str = self.post("/v1/completions", body)["choices"][0]["text"]
        return text


def scheduler_state(address: str, check_integrity: bool) -> scheduler_pb2.SchedulerState:
    """See `Server.state`; of the scheduler at `address`."""
    with open_blocking_channel(address) as channel:
        stub = scheduler_pb2_grpc.SchedulerStub(channel)
        answer = stub.GetState(scheduler_pb2.GetStateRequest(check_integrity=check_integrity), timeout=10)
    assert list(answer.violations) == []
    state: scheduler_pb2.SchedulerState = answer.state
    return state


def short_folder() -> Path:
    """Short enough for unix sockets, unlike pytest's own."""
    return Path(tempfile.mkdtemp(prefix="pagoda-test-"))


@pytest.fixture(scope="session")
def shared_server() -> Iterator[Server]:
    folder = short_folder()
    server = Server(folder)
    try:
        yield server.wait_until_ready()
        pids = [each["pid"] for each in server.services().values()]
        assert server.process.stop() == 0, server.process.output
        assert not any(is_alive(pid) for pid in pids)
    finally:
        server.process.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def server(shared_server: Server) -> Iterator[Server]:
    """One server for all tests that leave it as it was; after each, it must be idle and sound."""
    yield shared_server
    shared_server.assert_idle()


Serve = Callable[..., Server]


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts servers of the test's own, with further flags; returns at once, before they are ready."""
    servers: list[tuple[Path, Server]] = []

    def start(*flags: str) -> Server:
        folder = short_folder()
        servers.append((folder, Server(folder, *flags)))
        return servers[-1][1]

    yield start
    for folder, each in servers:
        each.process.close()
        shutil.rmtree(folder, ignore_errors=True)
