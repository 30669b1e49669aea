"""The gateway as its own process, with fake tokenizers behind it."""

from __future__ import annotations

import http.client
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fake_tokenizer import FakeTokenizer
from processes import PagodaProcess, free_port, poll


class Gateway:
    """`pagoda gateway` on a free port."""

    def __init__(self, folder: Path, tokenizers: list[str], *flags: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        arguments = ["gateway", "--port", str(self.port), "--tokenizers", *tokenizers, *flags]
        self.process = PagodaProcess(folder / f"gateway-{self.port}.log", *arguments)

    def wait_until_listening(self) -> Gateway:
        def answers() -> bool:
            assert self.process.process.poll() is None, self.process.output
            try:
                httpx.get(f"{self.url}/health")
            except httpx.TransportError:
                return False
            return True

        poll(answers, 15, "the gateway listens")
        return self

    def wait_until_healthy(self) -> Gateway:
        self.wait_until_listening()
        poll(lambda: httpx.get(f"{self.url}/health").status_code == 200, 15, "a healthy backend")
        return self

    def chat(self, scenario: str, headers: dict[str, str] | None = None, **fields: Any) -> httpx.Response:
        body = {"scenario": scenario, **fields}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=20)

    def open_stream(self, **fields: Any) -> http.client.HTTPResponse:
        """An answer whose body is read event by event, unbuffered. Closing it closes the connection."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.request("POST", "/v1/chat/completions", json.dumps(fields), {"content-type": "application/json"})
        response = connection.getresponse()
        # http.client keeps the connection open for as long as its object lives.
        response.connection = connection  # type: ignore[attr-defined]
        return response


StartGateway = Callable[..., Gateway]


@pytest.fixture(scope="module")
def socket_folder() -> Iterator[Path]:
    """Short enough for unix sockets, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="pagoda-test-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def fake(socket_folder: Path) -> Iterator[FakeTokenizer]:
    fake = FakeTokenizer(f"unix:{socket_folder}/tokenizer.sock").start()
    yield fake
    fake.stop()


@pytest.fixture(scope="module")
def gateway(socket_folder: Path, fake: FakeTokenizer) -> Iterator[Gateway]:
    """One gateway for the tests that leave it as it was."""
    gateway = Gateway(socket_folder, [fake.address], "--max-body-bytes", "2000000")
    yield gateway.wait_until_healthy()
    gateway.process.close()


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[StartGateway]:
    """Starts gateways of the test's own; returns at once, before they listen."""
    gateways: list[Gateway] = []

    def start(tokenizers: list[str], *flags: str) -> Gateway:
        gateways.append(Gateway(tmp_path, tokenizers, *flags))
        return gateways[-1]

    yield start
    for each in gateways:
        each.process.close()


@pytest.fixture
def start_fake(socket_folder: Path) -> Iterator[Callable[[str], FakeTokenizer]]:
    """Starts fake tokenizers of the test's own, by name."""
    fakes: list[FakeTokenizer] = []

    def start(name: str) -> FakeTokenizer:
        fakes.append(FakeTokenizer(f"unix:{socket_folder}/{name}.sock", name).start())
        return fakes[-1]

    yield start
    for each in fakes:
        each.stop()
