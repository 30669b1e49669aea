"""The `OpenAI` service: HTTP bodies <-> the engine, one method per endpoint.

The gateway reads initial metadata of ours: `x-http-status` becomes the HTTP status, `x-content-length` the length of
an answer that is not streamed. Both go before the first body.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from importlib.metadata import version
from typing import Any

import grpc
from google.api.httpbody_pb2 import HttpBody
from prometheus_client import CONTENT_TYPE_LATEST

from pagoda.tokenizer.caller import Caller
from pagoda.tokenizer.generation import Engine
from pagoda.tokenizer.models import ServedModel
from pagoda.tokenizer.openai.chat import ChatCompletions
from pagoda.tokenizer.openai.completions import Completions
from pagoda.tokenizer.openai.errors import to_http
from pagoda.tokenizer.openai.requests import BodyDecoder, DetokenizeRequest, TokenizeRequest
from pagoda.tokenizer.openai.responses import Model, ModelList, Text, Version
from pagoda.tokenizer.openai.sse import EVENT_STREAM, JSON, error_body, json_body
from pagoda.tokenizer.openai.tokenization import tokenize
from pagoda.tokenizer.scheduler_state import StateReader
from pagoda.v1 import openai_pb2 as pb
from pagoda.v1.openai_pb2_grpc import OpenAIServicer as Base

Context = grpc.aio.ServicerContext[Any, Any]
Bodies = AsyncGenerator[HttpBody, None]

_tokenize_decoder = BodyDecoder(TokenizeRequest)
_detokenize_decoder = BodyDecoder(DetokenizeRequest)


class OpenAIServicer(Base):
    """response_role: the role of chat completions' messages"""

    def __init__(self, engine: Engine, model: ServedModel, scheduler: StateReader, response_role: str) -> None:
        self._engine = engine
        self._model = model
        self._scheduler = scheduler
        self._chat = ChatCompletions(engine, model, response_role)
        self._completions = Completions(engine, model)

    async def CreateChatCompletion(self, request: pb.CreateChatCompletionRequest, context: Context) -> Bodies:
        async for body in _guarded(lambda caller: self._chat.respond(request.body.data, caller), context):
            yield body

    async def CreateCompletion(self, request: pb.CreateCompletionRequest, context: Context) -> Bodies:
        async for body in _guarded(lambda caller: self._completions.respond(request.body.data, caller), context):
            yield body

    async def ListModels(self, request: pb.OpenAIListModelsRequest, context: Context) -> Bodies:
        async for body in _guarded(lambda _: self._list_models(), context):
            yield body

    async def RetrieveModel(self, request: pb.RetrieveModelRequest, context: Context) -> Bodies:
        async for body in _guarded(lambda _: self._retrieve_model(request.model), context):
            yield body

    async def Tokenize(self, request: pb.OpenAITokenizeRequest, context: Context) -> Bodies:
        async for body in _guarded(lambda _: self._tokenize(request.body.data), context):
            yield body

    async def Detokenize(self, request: pb.OpenAIDetokenizeRequest, context: Context) -> Bodies:
        async for body in _guarded(lambda _: self._detokenize(request.body.data), context):
            yield body

    async def GetTokenizerInfo(self, request: pb.OpenAIGetTokenizerInfoRequest, context: Context) -> Bodies:
        async for body in _guarded(lambda _: self._tokenizer_info(), context):
            yield body

    async def GetHealth(self, request: pb.GetHealthRequest, context: Context) -> Bodies:
        async for body in _guarded(lambda _: self._health(), context):
            yield body

    async def GetVersion(self, request: pb.GetVersionRequest, context: Context) -> Bodies:
        async for body in _guarded(lambda _: self._version(), context):
            yield body

    async def GetMetrics(self, request: pb.GetMetricsRequest, context: Context) -> Bodies:
        async for body in _guarded(lambda _: self._metrics(), context):
            yield body

    async def _list_models(self) -> Bodies:
        yield json_body(ModelList(data=[self._described(name) for name in self._model.names]))

    async def _retrieve_model(self, name: str) -> Bodies:
        yield json_body(self._described(self._model.resolve(name)))

    def _described(self, name: str) -> Model:
        max_model_len = self._engine.max_model_len or None
        return Model(id=name, created=self._model.created, root=self._model.root, max_model_len=max_model_len)

    async def _tokenize(self, data: bytes) -> Bodies:
        request = _tokenize_decoder.decode(data)
        self._model.resolve(request.model)
        yield json_body(await tokenize(self._engine.encoder, request, len(data), self._engine.max_model_len))

    async def _detokenize(self, data: bytes) -> Bodies:
        request = _detokenize_decoder.decode(data)
        self._model.resolve(request.model)
        text = await self._engine.encoder.decode(request.tokens, skip_special_tokens=False, param="tokens")
        yield json_body(Text(text))

    async def _tokenizer_info(self) -> Bodies:
        yield json_body(self._engine.encoder.tokenizer.info())

    async def _health(self) -> Bodies:
        self._engine.cell.check_ready()
        yield HttpBody(content_type="text/plain")

    async def _version(self) -> Bodies:
        yield json_body(Version(version("pagoda")))

    async def _metrics(self) -> Bodies:
        content = self._engine.metrics.render(await self._scheduler.read())
        yield HttpBody(content_type=CONTENT_TYPE_LATEST, data=content)


async def _guarded(respond: Callable[[Caller], Bodies], context: Context) -> Bodies:
    """The bodies with their metadata. An error becomes a status and a body, or the last event of a stream."""
    caller = Caller.of(context)
    content_type = ""  # of the first body
    try:
        async with aclosing(respond(caller)) as bodies:
            async for body in bodies:
                if not content_type:
                    content_type = body.content_type
                    if content_type != EVENT_STREAM:
                        await context.send_initial_metadata((("x-content-length", str(len(body.data))),))
                yield body
    except Exception as error:
        failure = to_http(error, caller.request_id)
        if content_type == EVENT_STREAM:
            yield error_body(failure.body)
            return
        metadata = [("x-http-status", str(failure.status)), ("x-content-length", str(len(failure.body)))]
        if failure.retry_after_s is not None:
            metadata.append(("retry-after", str(failure.retry_after_s)))
        await context.send_initial_metadata(metadata)
        yield HttpBody(content_type=JSON, data=failure.body)
