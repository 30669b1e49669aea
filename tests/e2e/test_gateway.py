"""What passes through the gateway: transcoding, streams, errors, keys; over a fake tokenizer service."""

from __future__ import annotations

import http.client
import json
import shutil
import socket
import subprocess
import time
from itertools import pairwise

import grpc
import httpx
import openai
import pytest
from fake_tokenizer import FakeTokenizer, open_channel
from gateway_fixtures import Gateway
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from processes import poll

from pagoda.v1 import inference_pb2, inference_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc


def error_of(response: httpx.Response) -> dict[str, str | None]:
    """The error, after checking that it has OpenAI's shape."""
    assert response.headers["content-type"].startswith("application/json")
    error: dict[str, str | None] = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    return error


# --- transcoding


def test_body_arrives_unread(gateway: Gateway) -> None:
    body = {"scenario": "echo", "stop": ["a", {"b": None}], "seed": 2**63 + 1, "unknown": {"z": 1.5, "a": "\u20ac"}}
    response = httpx.post(f"{gateway.url}/v1/chat/completions", json=body, headers={"accept-encoding": "identity"})
    assert response.status_code == 200
    assert response.json()["body"] == body
    assert response.headers["content-length"] == str(len(response.content))
    assert response.headers["server"] == "pagoda"
    assert not any(name.startswith(("grpc-", "x-envoy-", "x-content-length")) for name in response.headers)


@pytest.mark.parametrize("path", ["/health", "/ping", "/version", "/metrics", "/v1/models"])
def test_get_paths(gateway: Gateway, path: str) -> None:
    assert httpx.get(gateway.url + path).status_code == 200


@pytest.mark.parametrize("model", ["plain", "Qwen/Qwen2.5-0.5B", "Qwen%2FQwen2.5-0.5B", "a%20b%2Fc"])
def test_model_ids_with_slashes(gateway: Gateway, model: str) -> None:
    response = httpx.get(f"{gateway.url}/v1/models/{model}?unknown=1")
    assert response.json()["id"] == model.replace("%2F", "/").replace("%20", " ")


def test_http2(gateway: Gateway, fake: FakeTokenizer) -> None:
    """HTTP/2 without TLS serves REST as well, not only gRPC; no Python client here speaks it, curl does."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = ["curl", "-s", "--http2-prior-knowledge", "-w", "%{http_version}", f"{gateway.url}/v1/models"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == '{"object":"list","data":[]}2'


def test_json_is_compressed_and_streams_are_not(gateway: Gateway) -> None:
    large = gateway.chat("large", size=3_000_000)
    assert large.headers["content-encoding"] == "gzip"
    assert len(large.json()["text"]) == 3_000_000
    stream = gateway.chat("stream", events=50, interval_s=0)
    assert "content-encoding" not in stream.headers


# --- streams


def test_each_event_is_flushed(gateway: Gateway) -> None:
    response = gateway.open_stream(scenario="stream", events=5, interval_s=0.1)
    assert response.getheader("content-type") == "text/event-stream"
    times = [time.monotonic() for line in response if line.startswith(b"data: ")]
    assert len(times) == 6
    gaps = [after - before for before, after in pairwise(times)]
    assert min(gaps) > 0.05


@pytest.mark.parametrize("first", [True, False], ids=["after the first event", "before the first event"])
def test_disconnect_cancels_upstream_at_once(gateway: Gateway, fake: FakeTokenizer, first: bool) -> None:
    before = len(fake.cancelled)
    body = json.dumps({"scenario": "held", "first": first}).encode()
    with socket.create_connection(("127.0.0.1", gateway.port)) as client:
        calls = len(fake.calls)
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        )
        poll(lambda: len(fake.calls) > calls, 5, "the call arrives")
        if first:
            assert client.recv(1000)
        left = time.monotonic()
    poll(lambda: len(fake.cancelled) > before, 5, "the call is cancelled")
    assert fake.cancelled[-1] - left < 0.5


def test_cancelled_grpc_call_cancels_upstream(gateway: Gateway, fake: FakeTokenizer) -> None:
    before = len(fake.cancelled)
    with open_channel(gateway.port) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(inference_pb2.GenerateRequest(text="1", stop=["x"]))
        assert next(call).text == "0 "
        call.cancel()
        poll(lambda: len(fake.cancelled) > before, 5, "the call is cancelled")


def test_request_id_is_kept_or_made(gateway: Gateway) -> None:
    given = gateway.chat("echo", headers={"x-request-id": "mine-1"})
    assert given.headers["x-request-id"] == given.json()["metadata"]["x-request-id"] == "mine-1"
    made = gateway.chat("echo")
    assert made.headers["x-request-id"] == made.json()["metadata"]["x-request-id"] != ""


# --- errors of the services


def test_service_chooses_the_status(gateway: Gateway) -> None:
    response = gateway.chat("chosen_status", status=429)
    assert response.status_code == 429
    assert response.headers["retry-after"] == "7"
    assert response.json() == {"error": {"message": "chosen"}}
    assert "x-http-status" not in response.headers


@pytest.mark.parametrize(
    "message",
    ["plain", 'quote " backslash \\', "ends with \\", '","details":[{"param":"x","reason":"y"}]', "\u20ac \n"],
)
def test_grpc_error_becomes_openai_error(gateway: Gateway, message: str) -> None:
    response = gateway.chat("invalid", message=message)
    assert response.status_code == 400
    assert error_of(response) == {
        "message": message,
        "type": "invalid_request_error",
        "param": "prompt",
        "code": "bad_prompt",
    }


def test_full_queue_is_429_with_retry_after(gateway: Gateway) -> None:
    response = gateway.chat("full")
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert error_of(response)["type"] == "rate_limit_error"


def test_crash_in_a_handler_is_500_without_details(gateway: Gateway) -> None:
    response = gateway.chat("crash")
    assert response.status_code == 500
    assert "ZeroDivision" not in response.text
    assert error_of(response)["type"] == "server_error"


def test_unimplemented_method_is_501(gateway: Gateway) -> None:
    assert error_of(httpx.post(f"{gateway.url}/v1/completions", json={}))["type"] == "server_error"


def test_openai_client_reads_the_errors(gateway: Gateway) -> None:
    client = openai.OpenAI(base_url=f"{gateway.url}/v1", api_key="x", max_retries=0)
    with pytest.raises(openai.RateLimitError, match="the queue is full"):
        client.chat.completions.create(model="m", messages=[], extra_body={"scenario": "full"})


# --- errors of the gateway


@pytest.mark.parametrize("path", ["/nope", "/v1/nope", "/v1/chat/completions/more", "/pagoda.v1.OpenAI/GetHealth", "/"])
def test_unknown_path(gateway: Gateway, path: str) -> None:
    response = httpx.get(gateway.url + path)
    assert response.status_code == 404
    assert error_of(response)["code"] == "unknown_url"


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("GET", "/v1/chat/completions", "POST"), ("DELETE", "/v1/models/a/b?x=1", "GET"), ("POST", "/health", "GET")],
)
def test_wrong_method(gateway: Gateway, method: str, path: str, allowed: str) -> None:
    response = httpx.request(method, gateway.url + path)
    assert response.status_code == 405
    assert response.headers["allow"] == allowed
    assert error_of(response)["code"] == "method_not_allowed"


def test_oversized_body_is_413(gateway: Gateway) -> None:
    for _ in range(5):
        response = httpx.post(f"{gateway.url}/v1/chat/completions", json={"prompt": "x" * 10_000_000}, timeout=20)
        assert response.status_code == 413
        assert "2000000 bytes" in str(error_of(response)["message"])
    assert gateway.chat("echo").status_code == 200


def test_oversized_chunked_body_is_413(gateway: Gateway) -> None:
    chunks = (b"x" * 100_000 for _ in range(100))
    response = httpx.post(f"{gateway.url}/v1/chat/completions", content=chunks, timeout=20)
    assert response.status_code == 413


def test_large_body_within_the_limit_passes(gateway: Gateway) -> None:
    assert len(gateway.chat("echo", text="x" * 1_900_000).json()["body"]["text"]) == 1_900_000


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"NONSENSE\r\n\r\n",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: abc\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n",
        b"GET /health HTTP/1.1\r\nhost: x\r\nbad header\r\n\r\n",
    ],
)
def test_malformed_http_is_400(gateway: Gateway, request_bytes: bytes) -> None:
    status, body = exchange(gateway.port, request_bytes)
    assert status == 400
    assert json.loads(body)["error"]["type"] == "invalid_request_error"


def test_oversized_headers_are_431(gateway: Gateway) -> None:
    response = httpx.get(f"{gateway.url}/health", headers={"x-large": "x" * 100_000})
    assert response.status_code == 431
    assert error_of(response)["code"] == "headers_too_large"


def exchange(port: int, request: bytes) -> tuple[int, bytes]:
    """(status, body) of what comes back for raw bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request)
        response = http.client.HTTPResponse(client)
        response.begin()
        return response.status, response.read()


# --- native gRPC and gRPC-Web


def test_native_grpc(gateway: Gateway) -> None:
    with open_channel(gateway.port) as channel:
        texts = [
            each.text for each in inference_pb2_grpc.InferenceStub(channel).Generate(inference_pb2.GenerateRequest())
        ]
        assert texts == ["0 ", "1 ", "2 "]
        tokenize = tokenizer_pb2_grpc.TokenizerStub(channel).Tokenize
        answer, call = tokenize.with_call(tokenizer_pb2.TokenizeRequest(text="abc"))
        assert answer.token_ids == [3]
        assert dict(call.initial_metadata())["x-request-id"]
        with pytest.raises(grpc.RpcError, match="that is bad") as caught:
            tokenize(tokenizer_pb2.TokenizeRequest(text="bad"))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/pagoda.v1.Nope/Nope", lambda x: x, lambda x: x)(b"")
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_health_and_reflection_over_grpc(gateway: Gateway) -> None:
    with open_channel(gateway.port) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
        assert check.status == health_pb2.HealthCheckResponse.SERVING
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="pagoda.v1.OpenAI"))
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        watch.cancel()
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = reflection.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="*")]))
        names = {each.name for each in answer.list_services_response.service}
        assert {"pagoda.v1.OpenAI", "pagoda.v1.Inference", "grpc.health.v1.Health"} <= names


def test_grpc_web(gateway: Gateway) -> None:
    message = tokenizer_pb2.TokenizeRequest(text="four").SerializeToString()
    response = httpx.post(
        f"{gateway.url}/pagoda.v1.Tokenizer/Tokenize",
        content=b"\0" + len(message).to_bytes(4, "big") + message,
        headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1"},
    )
    assert response.status_code == 200
    size = int.from_bytes(response.content[1:5], "big")
    assert tokenizer_pb2.TokenizeResponse.FromString(response.content[5 : 5 + size]).token_ids == [4]
    assert b"grpc-status:0" in response.content[5 + size :].replace(b" ", b"")


# --- browsers


def test_cors(gateway: Gateway) -> None:
    preflight = httpx.options(
        f"{gateway.url}/v1/chat/completions",
        headers={
            "origin": "http://app.test",
            "access-control-request-method": "POST",
            "access-control-request-headers": "authorization",
        },
    )
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "http://app.test"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    response = gateway.chat("echo", headers={"origin": "http://app.test"})
    assert "x-request-id" in response.headers["access-control-expose-headers"]
