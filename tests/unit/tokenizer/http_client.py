"""Calls the OpenAI service as the gateway does, and reads its answers as an HTTP client would."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import grpc
from google.api.httpbody_pb2 import HttpBody

from pagoda.v1 import openai_pb2 as pb
from pagoda.v1.openai_pb2_grpc import OpenAIStub

DONE = "[DONE]"


@dataclass
class Answer:
    """
    body: the joined bodies
    pieces: the data of each HttpBody
    headers: initial metadata
    """

    status: int
    content_type: str
    headers: Mapping[str, str]
    pieces: list[bytes] = field(default_factory=list)

    @property
    def body(self) -> bytes:
        return b"".join(self.pieces)

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def events(self) -> list[Any]:
        """The data of each event, read as JSON except for the closing mark."""
        return [event for piece in self.pieces for event in parse_events(piece)]


def parse_events(data: bytes) -> list[Any]:
    texts = data.decode().split("\n\n")
    assert texts.pop() == ""
    assert all(text.startswith("data: ") for text in texts)
    return [DONE if text == f"data: {DONE}" else json.loads(text.removeprefix("data: ")) for text in texts]


async def read_rest(call: Any) -> list[bytes]:
    """The data of every body that is still to come, for a call that is read step by step."""
    pieces = []
    while (body := await call.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
        pieces.append(body.data)
    return pieces


class HttpClient:
    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self._stub = OpenAIStub(self.channel)  # type: ignore[no-untyped-call]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.channel.close(None)

    def start_chat(self, body: Any, **headers: str) -> Any:
        """The call itself, for tests that read it step by step or cancel it."""
        return self._stub.CreateChatCompletion(
            pb.CreateChatCompletionRequest(body=_body(body)), metadata=_pairs(headers)
        )

    def start_completion(self, body: Any, **headers: str) -> Any:
        return self._stub.CreateCompletion(pb.CreateCompletionRequest(body=_body(body)), metadata=_pairs(headers))

    async def chat(self, body: Any, **headers: str) -> Answer:
        return await _read(self.start_chat(body, **headers))

    async def completion(self, body: Any, **headers: str) -> Answer:
        return await _read(self.start_completion(body, **headers))

    async def tokenize(self, body: Any) -> Answer:
        return await _read(self._stub.Tokenize(pb.OpenAITokenizeRequest(body=_body(body))))

    async def detokenize(self, body: Any) -> Answer:
        return await _read(self._stub.Detokenize(pb.OpenAIDetokenizeRequest(body=_body(body))))

    async def models(self) -> Answer:
        return await _read(self._stub.ListModels(pb.OpenAIListModelsRequest()))

    async def model(self, name: str) -> Answer:
        return await _read(self._stub.RetrieveModel(pb.RetrieveModelRequest(model=name)))

    async def tokenizer_info(self) -> Answer:
        return await _read(self._stub.GetTokenizerInfo(pb.OpenAIGetTokenizerInfoRequest()))

    async def health(self) -> Answer:
        return await _read(self._stub.GetHealth(pb.GetHealthRequest()))

    async def version(self) -> Answer:
        return await _read(self._stub.GetVersion(pb.GetVersionRequest()))

    async def metrics(self) -> Answer:
        return await _read(self._stub.GetMetrics(pb.GetMetricsRequest()))


def _body(body: Any) -> HttpBody:
    return HttpBody(data=body if isinstance(body, bytes) else json.dumps(body).encode())


def _pairs(headers: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(name.replace("_", "-"), value) for name, value in headers.items()]


async def _read(call: Any) -> Answer:
    headers = {str(key): str(value) for key, value in await call.initial_metadata()}
    bodies = [body async for body in call]
    answer = Answer(int(headers.get("x-http-status", 200)), bodies[0].content_type, headers)
    answer.pieces = [body.data for body in bodies]
    if length := headers.get("x-content-length"):
        assert int(length) == len(answer.body)
    return answer
