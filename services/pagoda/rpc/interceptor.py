"""Every error that leaves a handler becomes a `google.rpc.Status` with `ErrorInfo`, here and nowhere else."""

from __future__ import annotations

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from grpc_status import rpc_status

from pagoda.errors import InternalError, PagodaError
from pagoda.rpc.status import to_status

logger = logging.getLogger(__name__)

# Handlers are of any request and response type, and grpc-stubs lacks parts of the aio context.
Handler = Any
Context = Any


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Maps `PagodaError` to its status; anything else is logged and becomes INTERNAL without details."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        details: grpc.HandlerCallDetails,
    ) -> Handler:
        handler = await continuation(details)
        if handler is None:
            return None
        return _wrap(handler, details.method)


def _wrap(handler: Handler, method: str) -> Handler:
    if handler.response_streaming:
        inner_stream = handler.stream_stream or handler.unary_stream
        make = grpc.stream_stream_rpc_method_handler if handler.stream_stream else grpc.unary_stream_rpc_method_handler

        async def stream(request: Any, context: Context) -> AsyncIterator[Any]:
            try:
                responses = inner_stream(request, context)
                if inspect.isawaitable(responses):  # it writes its responses itself, as grpc's Health.Watch does
                    await responses
                    return
                async for response in responses:
                    yield response
            except Exception as error:
                await _abort(context, error, method)

        return make(stream, handler.request_deserializer, handler.response_serializer)

    inner = handler.stream_unary or handler.unary_unary
    make = grpc.stream_unary_rpc_method_handler if handler.stream_unary else grpc.unary_unary_rpc_method_handler

    async def unary(request: Any, context: Context) -> Any:
        try:
            return await inner(request, context)
        except Exception as error:
            return await _abort(context, error, method)

    return make(unary, handler.request_deserializer, handler.response_serializer)


async def _abort(context: Context, error: Exception, method: str) -> None:
    # grpc's own context.abort raises an exception of its own, which has been answered already.
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, PagodaError):
        logger.exception("%s failed", method, exc_info=error)
        error = InternalError("internal error; the server's log has the details")
    await context.abort_with_status(rpc_status.to_status(to_status(error)))
