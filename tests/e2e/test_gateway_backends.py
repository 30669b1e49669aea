"""The gateway's own conduct: keys, limits and time-outs, several tokenizers, none, and its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import httpx
import pytest
from fake_tokenizer import FakeTokenizer, open_channel
from gateway_fixtures import Gateway, StartGateway
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import descendants, free_port, is_alive, poll

from pagoda.gateway.render import client_id
from pagoda.v1 import tokenizer_pb2, tokenizer_pb2_grpc

StartFake = Callable[[str], FakeTokenizer]
KEY, OTHER_KEY = "sk-first.%{}'\"", "sk-second"


# --- API keys


@pytest.fixture(scope="module")
def keyed(socket_folder: Path, fake: FakeTokenizer) -> object:
    gateway = Gateway(socket_folder, [fake.address], "--api-key", KEY, OTHER_KEY)
    yield gateway.wait_until_healthy()
    gateway.process.close()


@pytest.mark.parametrize(
    "headers", [{}, {"authorization": "Bearer wrong"}, {"authorization": f"Basic {KEY}"}, {"x-client-id": "someone"}]
)
def test_without_a_key(keyed: Gateway, headers: dict[str, str]) -> None:
    for path in ("/v1/models", "/tokenize", "/nope", "/v1/../v1/models", "//v1/models", "/health/"):
        response = httpx.get(keyed.url + path, headers=headers)
        assert response.status_code == 401, path
        error = response.json()["error"]
        assert error["code"] == "invalid_api_key"
        assert error["type"] == "invalid_request_error"


def test_open_paths_need_no_key(keyed: Gateway) -> None:
    for path in ("/health", "/ping", "/version", "/metrics"):
        assert httpx.get(keyed.url + path).status_code == 200
    with open_channel(keyed.port) as channel:
        health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())


def test_client_identity_comes_from_the_key(keyed: Gateway) -> None:
    headers = {"authorization": f"Bearer {KEY}", "x-client-id": "forged"}
    metadata = keyed.chat("echo", headers=headers).json()["metadata"]
    assert metadata["x-client-id"] == client_id(KEY)
    assert "authorization" not in metadata
    other = keyed.chat("echo", headers={"authorization": f"Bearer {OTHER_KEY}"}).json()["metadata"]
    assert other["x-client-id"] == client_id(OTHER_KEY) != client_id(KEY)


def test_client_identity_cannot_be_forged_without_keys(gateway: Gateway) -> None:
    assert "x-client-id" not in gateway.chat("echo", headers={"x-client-id": "forged"}).json()["metadata"]


def test_grpc_needs_a_key(keyed: Gateway) -> None:
    with open_channel(keyed.port) as channel:
        tokenize = tokenizer_pb2_grpc.TokenizerStub(channel).Tokenize
        request = tokenizer_pb2.TokenizeRequest(text="abc")
        with pytest.raises(grpc.RpcError) as caught:
            tokenize(request)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        assert tokenize(request, metadata=[("authorization", f"Bearer {KEY}")]).token_ids == [3]


def test_configuration_with_keys_is_private(keyed: Gateway) -> None:
    envoy = descendants(keyed.process.pid)[0]
    arguments = Path(f"/proc/{envoy}/cmdline").read_text().split("\0")
    config = Path(arguments[arguments.index("--config-path") + 1])
    assert json.dumps(KEY) in config.read_text()
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert stat.S_IMODE(config.parent.stat().st_mode) == 0o700


# --- limits and time-outs


def test_slow_headers_are_408(fake: FakeTokenizer, start_gateway: StartGateway) -> None:
    gateway = start_gateway([fake.address], "--request-header-timeout-s", "0.3").wait_until_healthy()
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        answer = client.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code":"request_timeout"' in answer


def test_idle_requests_end(fake: FakeTokenizer, start_gateway: StartGateway) -> None:
    """A silent service is 504; a client that stops sending its body is 408."""
    gateway = start_gateway([fake.address], "--stream-idle-timeout-s", "0.5").wait_until_healthy()
    before = len(fake.cancelled)
    response = gateway.chat("held")
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "backend_timeout"
    poll(lambda: len(fake.cancelled) > before, 5, "the call is cancelled")
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=10) as client:
        client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n{")
        answer = client.recv(10_000)
    assert answer.startswith(b"HTTP/1.1 408")
    assert gateway.chat("stream", events=8, interval_s=0.2).text.endswith("[DONE]\n\n")


def test_too_many_requests_are_429(start_fake: StartFake, start_gateway: StartGateway) -> None:
    fake = start_fake("busy")
    gateway = start_gateway([fake.address], "--max-requests", "2", "--workers", "1").wait_until_healthy()
    held = [gateway.open_stream(scenario="held", first=True) for _ in range(2)]
    response = gateway.chat("echo")
    assert response.status_code == 429
    assert response.headers["retry-after"] == "1"
    assert response.json()["error"]["code"] == "rate_limit_exceeded"
    fake.release.set()
    assert all(each.read().endswith(b"data: last\n\n") for each in held)
    assert gateway.chat("echo").status_code == 200


# --- backends


def test_no_backend_is_503_at_once(socket_folder: Path, start_gateway: StartGateway) -> None:
    nowhere = [f"unix:{socket_folder}/nobody.sock", f"127.0.0.1:{free_port()}"]
    gateway = start_gateway(nowhere).wait_until_listening()
    for method, path in (("GET", "/health"), ("POST", "/v1/chat/completions")):
        begin = time.monotonic()
        response = httpx.request(method, gateway.url + path)
        assert time.monotonic() - begin < 1
        assert response.status_code == 503
        assert response.headers["retry-after"] == "1"
        assert response.json()["error"]["code"] == "no_healthy_backend"
    with open_channel(gateway.port) as channel, pytest.raises(grpc.RpcError) as caught:
        tokenizer_pb2_grpc.TokenizerStub(channel).Tokenize(tokenizer_pb2.TokenizeRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_backend_that_comes_later_is_found(
    start_fake: StartFake, socket_folder: Path, start_gateway: StartGateway
) -> None:
    gateway = start_gateway([f"unix:{socket_folder}/late.sock"]).wait_until_listening()
    assert httpx.get(f"{gateway.url}/health").status_code == 503
    start_fake("late")
    poll(lambda: httpx.get(f"{gateway.url}/health").status_code == 200, 3, "the backend is found")


def test_requests_go_to_the_backend_with_fewest(start_fake: StartFake, start_gateway: StartGateway) -> None:
    one, two = start_fake("one"), start_fake("two")
    gateway = start_gateway([one.address, two.address]).wait_until_healthy()
    poll(lambda: gateway.chat("echo").json()["name"] == "two", 3, "both are in use")
    poll(lambda: gateway.chat("echo").json()["name"] == "one", 3, "both are in use")
    held = [gateway.open_stream(scenario="held", first=True) for _ in range(8)]
    counts = [sum(method == "CreateChatCompletion" for method, _ in each.calls) for each in (one, two)]
    assert all(counts)
    one.release.set()
    two.release.set()
    for each in held:
        each.read()


def test_unhealthy_backend_gets_nothing(start_fake: StartFake, start_gateway: StartGateway) -> None:
    one, two = start_fake("well"), start_fake("ill")
    two.set_serving(False)
    gateway = start_gateway([one.address, two.address]).wait_until_healthy()
    assert {gateway.chat("echo").json()["name"] for _ in range(10)} == {"well"}


def test_dead_backend_costs_no_request(start_fake: StartFake, start_gateway: StartGateway) -> None:
    """Requests are sent again elsewhere as long as nothing was answered."""
    one, two = start_fake("stays"), start_fake("leaves")
    gateway = start_gateway([one.address, two.address]).wait_until_healthy()
    poll(lambda: gateway.chat("echo").json()["name"] == "leaves", 3, "both are in use")
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(gateway.chat, "echo") for _ in range(50)]
        two.stop()
        answers += [pool.submit(gateway.chat, "echo") for _ in range(50)]
    assert [each.result().text for each in answers if each.result().status_code != 200] == []


def test_names_are_resolved(start_gateway: StartGateway, socket_folder: Path) -> None:
    fake = FakeTokenizer(f"127.0.0.1:{free_port()}").start()
    try:
        address = fake.address.replace("127.0.0.1", "localhost")
        assert start_gateway([address]).wait_until_healthy().chat("echo").status_code == 200
    finally:
        fake.stop()


# --- start and stop


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_end_before_the_gateway(
    start_fake: StartFake, start_gateway: StartGateway, number: signal.Signals
) -> None:
    fake = start_fake(f"drain{number}")
    gateway = start_gateway([fake.address]).wait_until_healthy()
    stream = gateway.open_stream(scenario="held", first=True)
    gateway.process.process.send_signal(number)
    time.sleep(1.5)  # past the point at which the port is closed
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{gateway.url}/health")
    assert is_alive(gateway.process.pid)
    fake.release.set()
    assert stream.read().endswith(b"data: last\n\n")
    assert gateway.process.wait(5) == 0
    assert "WARNING" not in gateway.process.output


def test_draining_is_bounded(fake: FakeTokenizer, start_gateway: StartGateway) -> None:
    gateway = start_gateway([fake.address], "--drain-s", "0.5").wait_until_healthy()
    stream = gateway.open_stream(scenario="held", first=True)
    begin = time.monotonic()
    assert gateway.process.stop() == 0
    assert time.monotonic() - begin < 3
    assert "cut off" in gateway.process.output
    stream.close()


def test_idle_gateway_stops_at_once(fake: FakeTokenizer, start_gateway: StartGateway) -> None:
    gateway = start_gateway([fake.address]).wait_until_healthy()
    begin = time.monotonic()
    assert gateway.process.stop() == 0
    assert time.monotonic() - begin < 1


def test_envoy_ends_with_its_killed_parent(fake: FakeTokenizer, start_gateway: StartGateway) -> None:
    gateway = start_gateway([fake.address]).wait_until_healthy()
    (envoy,) = descendants(gateway.process.pid)
    gateway.process.process.kill()
    poll(lambda: not is_alive(envoy), 5, "Envoy ends")


def test_gateway_ends_with_its_killed_envoy(fake: FakeTokenizer, start_gateway: StartGateway) -> None:
    gateway = start_gateway([fake.address]).wait_until_healthy()
    os.kill(descendants(gateway.process.pid)[0], signal.SIGKILL)
    assert gateway.process.wait(5) == 1
    assert "Envoy ended by itself" in gateway.process.output


def test_port_in_use(gateway: Gateway, fake: FakeTokenizer, start_gateway: StartGateway) -> None:
    second = start_gateway([fake.address], "--port", str(gateway.port))
    assert second.process.wait() == 1
    assert f"cannot listen on 127.0.0.1:{gateway.port}: Address already in use" in second.process.output


def test_access_log(fake: FakeTokenizer, start_gateway: StartGateway, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    gateway = start_gateway([fake.address], "--access-log", str(log)).wait_until_healthy()
    gateway.chat("echo", headers={"x-request-id": "find-me"})
    gateway.process.stop()
    lines = [json.loads(each) for each in log.read_text().splitlines()]
    (line,) = [each for each in lines if each["request_id"] == "find-me"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
