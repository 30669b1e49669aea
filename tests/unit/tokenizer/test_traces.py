"""The span of a client's request, and the trace that it is a part of."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from http_client import HttpClient
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from scripted_scheduler import ScriptedScheduler

from pagoda.errors import UnavailableError
from pagoda.v1 import common_pb2, inference_pb2, inference_pb2_grpc

USER = [{"role": "user", "content": "Hi"}]
TRACE_ID, SPAN_ID = 0xABC, 0x123
PARENT = f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-01"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def traced(start_client: Any, spans: InMemorySpanExporter) -> HttpClient:
    """A client of a service that makes spans."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    client: HttpClient = await start_client(tracer=provider.get_tracer("test"))
    return client


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    (span,) = spans.get_finished_spans()
    assert span.name == "llm_request"
    assert span.kind is SpanKind.SERVER
    return span


async def generate(client: HttpClient, traceparent: str | None) -> None:
    """By gRPC."""
    stub = inference_pb2_grpc.InferenceStub(client.channel)  # type: ignore[no-untyped-call]
    request = inference_pb2.GenerateRequest(text="Hi", sampling=common_pb2.SamplingParams(max_tokens=2))
    metadata = [("traceparent", traceparent)] if traceparent else []
    assert [message async for message in stub.Generate(request, metadata=metadata)]


async def test_a_request_is_a_span_of_the_caller_s_trace(
    traced: HttpClient, scheduler: ScriptedScheduler, spans: InMemorySpanExporter
) -> None:
    await traced.chat({"messages": USER, "max_tokens": 5, "n": 2}, traceparent=PARENT, x_request_id="r1")
    span = only(spans)
    assert span.context.trace_id == TRACE_ID
    assert span.parent is not None
    assert span.parent.span_id == SPAN_ID
    attributes = dict(span.attributes or {})
    assert 0 < attributes.pop("gen_ai.latency.time_to_first_token") <= (span.end_time - span.start_time) / 1e9
    assert attributes == {
        "gen_ai.request.id": "r1",
        "gen_ai.request.n": 2,
        "gen_ai.usage.prompt_tokens": scheduler.requests[0].num_prompt_tokens,
        "gen_ai.usage.completion_tokens": 10,
        "gen_ai.response.finish_reasons": ("length", "length"),
    }
    # What the scheduler does is below this span.
    here = f"00-{TRACE_ID:032x}-{span.context.span_id:016x}-01"
    assert [request.traceparent for request in scheduler.requests] == [here, here]


async def test_without_a_caller_s_trace_one_begins_here(
    traced: HttpClient, scheduler: ScriptedScheduler, spans: InMemorySpanExporter
) -> None:
    await generate(traced, None)
    span = only(spans)
    assert span.parent is None
    assert scheduler.requests[0].traceparent.split("-")[1] == f"{span.context.trace_id:032x}"


async def test_failures_are_in_the_span(
    traced: HttpClient, scheduler: ScriptedScheduler, spans: InMemorySpanExporter
) -> None:
    scheduler.refuse = lambda request: UnavailableError("gone", reason="EXECUTOR_LOST")
    with pytest.raises(grpc.aio.AioRpcError):
        await generate(traced, PARENT)
    span = only(spans)
    assert span.status.status_code is StatusCode.ERROR
    assert span.status.description == "EXECUTOR_LOST: gone"
    assert span.attributes is not None
    assert span.attributes["gen_ai.response.finish_reasons"] == ("error",)


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (PARENT, PARENT),
        (None, ""),
        ("nonsense", ""),
        (PARENT.upper(), ""),
        (f"00-{0:032x}-{SPAN_ID:016x}-01", ""),
        (f"00-{TRACE_ID:032x}-{0:016x}-01", ""),
        (f"01{PARENT[2:]}-more", ""),
    ],
)
async def test_without_traces_of_its_own_it_hands_on_what_came(
    client: HttpClient, scheduler: ScriptedScheduler, sent: str | None, told: str
) -> None:
    await generate(client, sent)
    assert [request.traceparent for request in scheduler.requests] == [told]
