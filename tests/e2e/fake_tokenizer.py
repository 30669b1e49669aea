"""A stand-in for the tokenizer service: it does what a request's "scenario" says and remembers what it saw."""

from __future__ import annotations

import asyncio
import functools
import json
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.api.httpbody_pb2 import HttpBody

from pagoda.errors import InvalidArgumentError, ResourceExhaustedError
from pagoda.rpc.server import ServiceServer
from pagoda.v1 import inference_pb2, inference_pb2_grpc, openai_pb2_grpc, tokenizer_pb2, tokenizer_pb2_grpc

Context = Any


@functools.cache
def _background_loop() -> asyncio.AbstractEventLoop:
    """One for all: grpc.aio shares a queue among the loops of a process, noisily."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    return loop


class FakeTokenizer:
    """Runs on a loop in the background, so that tests can be plain functions.

    calls: (method, metadata) of every call
    cancelled: `time.monotonic()` of every call that its client gave up
    """

    def __init__(self, address: str, name: str = "fake") -> None:
        self.address = address
        self.name = name
        self.calls: list[tuple[str, dict[str, str]]] = []
        self.cancelled: list[float] = []
        self.release = threading.Event()
        self._server: ServiceServer | None = None

    def start(self) -> FakeTokenizer:
        self._run(self._start())
        return self

    def set_serving(self, serving: bool) -> None:
        assert self._server
        self._run(self._server.set_serving(serving))

    def stop(self, grace_s: float = 0) -> None:
        if self._server is not None:
            self.release.set()
            self._run(self._server.stop(grace_s))
            self._server = None

    def _run(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, _background_loop()).result(10)

    async def _start(self) -> None:
        services = ["pagoda.v1.OpenAI", "pagoda.v1.Inference", "pagoda.v1.Tokenizer"]
        self._server = ServiceServer(self.address, services)
        openai_pb2_grpc.add_OpenAIServicer_to_server(_OpenAI(self), self._server.grpc)
        inference_pb2_grpc.add_InferenceServicer_to_server(_Inference(self), self._server.grpc)
        tokenizer_pb2_grpc.add_TokenizerServicer_to_server(_Tokenizer(self), self._server.grpc)
        await self._server.start()
        await self._server.set_serving(True)

    def note(self, method: str, context: Context) -> dict[str, str]:
        metadata = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
        self.calls.append((method, metadata))
        return metadata

    async def wait_for_release(self) -> None:
        await asyncio.to_thread(self.release.wait, 20)


class _OpenAI(openai_pb2_grpc.OpenAIServicer):
    def __init__(self, fake: FakeTokenizer) -> None:
        self.fake = fake

    async def CreateChatCompletion(self, request: Any, context: Context) -> AsyncIterator[HttpBody]:
        metadata = self.fake.note("CreateChatCompletion", context)
        body = json.loads(request.body.data)
        scenario = getattr(self, "_" + body.get("scenario", "echo"))
        try:
            async for part in scenario(body, metadata, context):
                yield part
        except asyncio.CancelledError:
            self.fake.cancelled.append(time.monotonic())
            raise

    async def _echo(self, body: Any, metadata: dict[str, str], context: Context) -> AsyncIterator[HttpBody]:
        data = json.dumps({"name": self.fake.name, "body": body, "metadata": metadata}).encode()
        await context.send_initial_metadata([("x-content-length", str(len(data)))])
        yield HttpBody(content_type="application/json", data=data)

    async def _stream(self, body: Any, metadata: dict[str, str], context: Context) -> AsyncIterator[HttpBody]:
        for i in range(body["events"]):
            yield HttpBody(content_type="text/event-stream", data=b"data: %d\n\n" % i)
            await asyncio.sleep(body["interval_s"])
        yield HttpBody(content_type="text/event-stream", data=b"data: [DONE]\n\n")

    async def _held(self, body: Any, metadata: dict[str, str], context: Context) -> AsyncIterator[HttpBody]:
        """The first event at once, if asked for; the rest when the test says so."""
        if body.get("first"):
            yield HttpBody(content_type="text/event-stream", data=b"data: first\n\n")
        await self.fake.wait_for_release()
        yield HttpBody(content_type="text/event-stream", data=b"data: last\n\n")

    async def _chosen_status(self, body: Any, metadata: dict[str, str], context: Context) -> AsyncIterator[HttpBody]:
        await context.send_initial_metadata([("x-http-status", str(body["status"])), ("retry-after", "7")])
        yield HttpBody(content_type="application/json", data=b'{"error":{"message":"chosen"}}')

    async def _invalid(self, body: Any, metadata: dict[str, str], context: Context) -> AsyncIterator[HttpBody]:
        raise InvalidArgumentError(body["message"], reason="BAD_PROMPT", param="prompt")
        yield HttpBody()

    async def _full(self, body: Any, metadata: dict[str, str], context: Context) -> AsyncIterator[HttpBody]:
        raise ResourceExhaustedError("the queue is full", retry_after_s=2.5)
        yield HttpBody()

    async def _crash(self, body: Any, metadata: dict[str, str], context: Context) -> AsyncIterator[HttpBody]:
        raise ZeroDivisionError
        yield HttpBody()

    async def _large(self, body: Any, metadata: dict[str, str], context: Context) -> AsyncIterator[HttpBody]:
        yield HttpBody(content_type="application/json", data=json.dumps({"text": "x" * body["size"]}).encode())

    async def RetrieveModel(self, request: Any, context: Context) -> AsyncIterator[HttpBody]:
        self.fake.note("RetrieveModel", context)
        yield HttpBody(content_type="application/json", data=json.dumps({"id": request.model}).encode())

    async def ListModels(self, request: Any, context: Context) -> AsyncIterator[HttpBody]:
        self.fake.note("ListModels", context)
        yield HttpBody(content_type="application/json", data=b'{"object":"list","data":[]}')

    async def GetHealth(self, request: Any, context: Context) -> AsyncIterator[HttpBody]:
        yield HttpBody(content_type="application/json", data=b"{}")

    async def GetVersion(self, request: Any, context: Context) -> AsyncIterator[HttpBody]:
        yield HttpBody(content_type="application/json", data=b'{"version":"0"}')

    async def GetMetrics(self, request: Any, context: Context) -> AsyncIterator[HttpBody]:
        yield HttpBody(content_type="text/plain; version=0.0.4", data=b"up 1\n")


class _Inference(inference_pb2_grpc.InferenceServicer):
    def __init__(self, fake: FakeTokenizer) -> None:
        self.fake = fake

    async def Generate(self, request: Any, context: Context) -> AsyncIterator[inference_pb2.GenerateResponse]:
        self.fake.note("Generate", context)
        try:
            for token in range(int(request.text or "3")):
                yield inference_pb2.GenerateResponse(text=f"{token} ", token_ids=[token])
            if request.stop:
                await self.fake.wait_for_release()
        except asyncio.CancelledError:
            self.fake.cancelled.append(time.monotonic())
            raise

    async def ListModels(self, request: Any, context: Context) -> inference_pb2.ListModelsResponse:
        self.fake.note("Inference.ListModels", context)
        return inference_pb2.ListModelsResponse(models=[inference_pb2.Model(id="fake")])


class _Tokenizer(tokenizer_pb2_grpc.TokenizerServicer):
    def __init__(self, fake: FakeTokenizer) -> None:
        self.fake = fake

    async def Tokenize(self, request: Any, context: Context) -> tokenizer_pb2.TokenizeResponse:
        metadata = self.fake.note("Tokenize", context)
        if request.text == "bad":
            raise InvalidArgumentError("that is bad", param="text")
        await context.send_initial_metadata([("x-request-id", metadata.get("x-request-id", ""))])
        return tokenizer_pb2.TokenizeResponse(token_ids=[len(request.text)])


def open_channel(port: int) -> grpc.Channel:
    return grpc.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1)])
