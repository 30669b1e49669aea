"""The `Inference` service: generation for gRPC clients in any language."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc

from pagoda.errors import InvalidArgumentError, UnimplementedError
from pagoda.tokenizer import limits
from pagoda.tokenizer.caller import Caller
from pagoda.tokenizer.completion import Delta
from pagoda.tokenizer.generation import Engine, Generation, GenerationRequest
from pagoda.tokenizer.messages import to_chat_prompt
from pagoda.tokenizer.models import ServedModel
from pagoda.tokenizer.prompts import Prompt, TextPrompt, TokensPrompt
from pagoda.v1 import inference_pb2 as pb
from pagoda.v1.inference_pb2_grpc import InferenceServicer as Base

Context = grpc.aio.ServicerContext[Any, Any]


class InferenceServicer(Base):
    def __init__(self, engine: Engine, model: ServedModel) -> None:
        self._engine = engine
        self._model = model

    async def Generate(self, request: pb.GenerateRequest, context: Context) -> AsyncIterator[pb.GenerateResponse]:
        self._model.resolve(request.model)
        async with self._engine.generate(_to_domain(request, Caller.of(context))) as generation:
            if request.no_stream:
                async for delta in generation.ended():
                    yield _response(generation, delta)
                return
            async for deltas in generation:
                for delta in deltas:
                    yield _response(generation, delta)

    async def ListModels(self, request: pb.ListModelsRequest, context: Context) -> pb.ListModelsResponse:
        max_model_len = self._engine.max_model_len
        response = pb.ListModelsResponse()
        for name in self._model.names:
            response.models.add(id=name, max_model_len=max_model_len).created.FromSeconds(self._model.created)
        return response

    async def Embed(self, request: pb.EmbedRequest, context: Context) -> pb.EmbedResponse:
        raise UnimplementedError("The served model generates text; it does not embed.")

    async def Rerank(self, request: pb.RerankRequest, context: Context) -> pb.RerankResponse:
        raise UnimplementedError("The served model generates text; it does not rerank.")


def _to_domain(request: pb.GenerateRequest, caller: Caller) -> GenerationRequest:
    limits.check_sampling(request.sampling)
    limits.check_stop(request.stop)
    n = request.n if request.HasField("n") else 1
    limits.check_integer("n", n, 1, limits.MAX_N)
    return GenerationRequest(
        request_id=caller.request_id,
        prompts=[_prompt(request)],
        sampling=request.sampling,
        n=n,
        stop=request.stop,
        include_stop=request.include_stop,
        priority=request.priority,
        cache_salt=caller.cache_salt(),
        client_id=caller.client_id,
        num_bytes=request.ByteSize(),
        arrived_at=caller.arrived_at,
        deadline=caller.deadline(),
        traceparent=caller.traceparent,
    )


def _prompt(request: pb.GenerateRequest) -> Prompt:
    match request.WhichOneof("prompt"):
        case "text":
            return TextPrompt(request.text, param="text")
        case "token_ids":
            return TokensPrompt(list(request.token_ids.ids), param="token_ids")
        case "chat":
            return to_chat_prompt(request.chat)
    raise InvalidArgumentError(
        "The request has no prompt: set text, token_ids or chat.", reason="EMPTY_PROMPT", param="prompt"
    )


def _response(generation: Generation, delta: Delta) -> pb.GenerateResponse:
    response = pb.GenerateResponse(index=delta.index, text=delta.text, token_ids=delta.token_ids)
    if delta.end is not None:
        response.finish_reason = delta.end.reason
        response.usage.CopyFrom(generation.usage_of(delta.index))
        if isinstance(delta.end.stopped_by, str):
            response.matched_stop = delta.end.stopped_by
    return response
