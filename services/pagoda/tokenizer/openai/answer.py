"""A generation as HTTP bodies: one JSON document, or server-sent events as the tokens come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, Protocol

import msgspec
from google.api.httpbody_pb2 import HttpBody

from pagoda.tokenizer.completion import Delta
from pagoda.tokenizer.generation import Engine, Generation, GenerationRequest
from pagoda.tokenizer.openai.requests import GenerateRequest
from pagoda.tokenizer.openai.responses import Usage
from pagoda.tokenizer.openai.sse import event_body, json_body, last_body


class Format(Protocol):
    """How an endpoint words its answers."""

    def document(self, deltas: list[Delta], usage: Usage) -> msgspec.Struct:
        """The whole answer. deltas: one per completion, in order."""

    def events(self, delta: Delta, usage: Any) -> Iterator[msgspec.Struct]:
        """What a delta adds. usage: what to put in the field of that name."""

    def last_event(self, usage: Usage) -> msgspec.Struct:
        """The event that tells the usage of the whole request."""


class MakeFormat(Protocol):
    def __call__(self, generation: Generation) -> Format: ...


async def answer(
    engine: Engine, generation_request: GenerationRequest, request: GenerateRequest, make_format: MakeFormat
) -> AsyncGenerator[HttpBody, None]:
    """Generates and yields the answer's bodies. Nothing is yielded before there is a token or an end to tell."""
    async with engine.generate(generation_request) as generation:
        form = make_format(generation)
        if request.stream:
            async for body in _stream(generation, form, request):
                yield body
        else:
            deltas = sorted([delta async for delta in generation.ended()], key=lambda delta: delta.index)
            yield json_body(form.document(deltas, Usage.of(generation.usage())))


async def _stream(generation: Generation, form: Format, request: GenerateRequest) -> AsyncIterator[HttpBody]:
    options = request.stream_options
    include_usage = options is not None and bool(options.include_usage)
    continuous = include_usage and options is not None and bool(options.continuous_usage_stats)

    def usage(delta: Delta) -> Any:
        if continuous:
            return Usage.of(generation.usage_of(delta.index))
        return None if include_usage else msgspec.UNSET

    async for deltas in generation:
        events = [event for delta in deltas for event in form.events(delta, usage(delta))]
        if events:
            body = event_body(events)
            # All streams of a step make their events first and write then: gRPC puts writes that follow each other
            # at once into fewer system calls.
            await asyncio.sleep(0)
            yield body
    yield last_body([form.last_event(Usage.of(generation.usage()))] if include_usage else [])
