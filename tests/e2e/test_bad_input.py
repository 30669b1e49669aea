"""Bad input costs its sender a clear 4xx in OpenAI's format, and nobody else anything."""

from __future__ import annotations

import http.client
import json
from typing import Any

import grpc
import pytest

from pagoda.errors import Code
from pagoda.rpc.status import from_rpc_error
from pagoda.v1 import common_pb2, inference_pb2, inference_pb2_grpc, tokenizer_pb2

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
USER = [{"role": "user", "content": "Hi"}]

# name: (path, body, status, param or None, part of the message)
CASES: dict[str, tuple[str, Any, int, str | None, str]] = {
    "malformed JSON": (CHAT, b'{"messages": [', 400, None, ""),
    "not an object": (CHAT, b"[1, 2]", 400, None, ""),
    "empty body": (CHAT, b"", 400, None, ""),
    "invalid UTF-8": (COMPLETIONS, b'{"prompt": "\xff\xfe"}', 400, None, ""),
    "lone surrogate": (COMPLETIONS, b'{"prompt": "\\ud800"}', 400, None, ""),
    "wrong type of messages": (CHAT, {"messages": "Hi"}, 400, "messages", ""),
    "wrong type of temperature": (CHAT, {"messages": USER, "temperature": "hot"}, 400, "temperature", ""),
    "wrong type of prompt": (COMPLETIONS, {"prompt": {"text": "Hi"}}, 400, "prompt", ""),
    "wrong type of n": (CHAT, {"messages": USER, "n": 1.5}, 400, "n", ""),
    "unknown model": (CHAT, {"messages": USER, "model": "nobody/nothing"}, 404, "model", "nobody/nothing"),
    "no messages": (CHAT, {"messages": []}, 400, "messages", ""),
    "missing messages": (CHAT, {}, 400, "messages", ""),
    "empty prompt": (COMPLETIONS, {"prompt": ""}, 400, "prompt", "empty"),
    "empty list of prompts": (COMPLETIONS, {"prompt": []}, 400, "prompt", ""),
    "negative token id": (COMPLETIONS, {"prompt": [1, -5]}, 400, "prompt", ""),
    "token id past the vocabulary": (COMPLETIONS, {"prompt": [1, 10_000_000]}, 400, "prompt", "10000000"),
    "mixed prompt list": (COMPLETIONS, {"prompt": ["a", 1]}, 400, "prompt", ""),
    "max_tokens zero": (COMPLETIONS, {"prompt": "Hi", "max_tokens": 0}, 400, "max_tokens", ""),
    "max_tokens negative": (COMPLETIONS, {"prompt": "Hi", "max_tokens": -3}, 400, "max_tokens", ""),
    "max_tokens past the context": (COMPLETIONS, {"prompt": "Hi", "max_tokens": 10**6}, 400, "max_tokens", "2048"),
    "prompt past the context": (COMPLETIONS, {"prompt": "word " * 5000}, 400, "prompt", "2048"),
    "temperature": (CHAT, {"messages": USER, "temperature": 3}, 400, "temperature", "2"),
    "top_p": (CHAT, {"messages": USER, "top_p": 0}, 400, "top_p", ""),
    "top_k": (CHAT, {"messages": USER, "top_k": -2}, 400, "top_k", ""),
    "min_p": (CHAT, {"messages": USER, "min_p": 1.5}, 400, "min_p", ""),
    "n zero": (CHAT, {"messages": USER, "n": 0}, 400, "n", ""),
    "n huge": (CHAT, {"messages": USER, "n": 100_000}, 400, "n", ""),
    "empty stop string": (CHAT, {"messages": USER, "stop": [""]}, 400, "stop", ""),
    "stop of a wrong type": (CHAT, {"messages": USER, "stop": 3}, 400, "stop", ""),
    "unsupported parameter": (CHAT, {"messages": USER, "logprobs": True}, 400, "logprobs", ""),
    "content part": (
        CHAT,
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        400,
        "messages[0].content[0]",
        "image_url",
    ),
    "unknown path": ("/v1/nothing", {"a": 1}, 404, None, "/v1/nothing"),
    "tokens to detokenize": ("/detokenize", {"tokens": [10_000_000]}, 400, "tokens", ""),
    "nothing to tokenize": ("/tokenize", {}, 400, None, ""),
}


def post(server: Any, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    connection = http.client.HTTPConnection(server.address, timeout=30)
    connection.request("POST", path, body, {"content-type": "application/json"})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


@pytest.mark.parametrize("case", CASES)
def test_over_http(server: Any, case: str) -> None:
    path, body, status, param, part = CASES[case]
    raw = body if isinstance(body, bytes) else json.dumps({"model": server.model} | body).encode()
    got_status, answer = post(server, path, raw)
    error = answer["error"]
    assert (got_status, set(error)) == (status, {"message", "type", "param", "code"}), answer
    assert len(error["message"]) > 10
    assert part in error["message"]
    if param:
        assert error["param"] == param


def test_a_streamed_request_is_refused_with_a_status_too(server: Any) -> None:
    body = {"model": server.model, "prompt": "Hi", "stream": True, "temperature": 9}
    status, answer = post(server, COMPLETIONS, json.dumps(body).encode())
    assert (status, answer["error"]["param"]) == (400, "temperature")


def test_a_body_of_10_megabytes(server: Any) -> None:
    status, answer = post(server, COMPLETIONS, json.dumps({"prompt": "x" * 10_000_000}).encode())
    assert status == 413
    assert answer["error"]["message"]


def test_a_template_error_is_the_senders(server: Any) -> None:
    """A call without a function, which the bundled model's template cannot write down."""
    body = {"model": server.model, "messages": [{"role": "assistant", "tool_calls": [{"id": "call-1"}]}]}
    status, answer = post(server, CHAT, json.dumps(body).encode())
    assert (status, answer["error"]["code"]) == (400, "chat_template_error")
    assert "chat template cannot render" in answer["error"]["message"]


@pytest.mark.parametrize(
    ("request_fields", "param"),
    [
        ({"text": ""}, "text"),
        ({}, "prompt"),
        ({"text": "Hi", "sampling": common_pb2.SamplingParams(temperature=-1)}, "temperature"),
        ({"text": "Hi", "sampling": common_pb2.SamplingParams(top_p=2)}, "top_p"),
        ({"text": "Hi", "sampling": common_pb2.SamplingParams(max_tokens=10**6)}, "max_tokens"),
        ({"text": "Hi", "n": 0}, "n"),
        ({"text": "Hi", "stop": [""]}, "stop"),
        ({"token_ids": inference_pb2.TokenIds(ids=[10**7])}, "token_ids"),
        ({"chat": tokenizer_pb2.Chat()}, "chat.messages"),
    ],
)
async def test_over_grpc(server: Any, request_fields: dict[str, Any], param: str) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        call = inference_pb2_grpc.InferenceStub(channel).Generate(inference_pb2.GenerateRequest(**request_fields))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call.read()
    error = from_rpc_error(raised.value)
    assert (error.code, error.param) == (Code.INVALID_ARGUMENT, param)
    assert error.reason.isupper()


async def test_an_unknown_model_over_grpc(server: Any) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        request = inference_pb2.GenerateRequest(model="nobody/nothing", text="Hi")
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await inference_pb2_grpc.InferenceStub(channel).Generate(request).read()
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND
    assert from_rpc_error(raised.value).param == "model"
