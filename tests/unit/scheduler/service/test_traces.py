"""The spans of requests, from those that W3C trace contexts name down to what happens on executors."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from pagoda.v1 import common_pb2, scheduler_pb2

PREFILL, DECODE = common_pb2.EXECUTOR_ROLE_PREFILL, common_pb2.EXECUTOR_ROLE_DECODE
PROMPT = list(range(100, 130))
TRACE_ID, SPAN_ID = 0xABCDEF, 0x1234
PARENT = f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-01"
NOT_SAMPLED = f"00-{TRACE_ID:032x}-{SPAN_ID:016x}-00"


@pytest.fixture
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def service(start: Any, spans: InMemorySpanExporter) -> Any:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    return await start(tracer=provider.get_tracer("test"), max_local_prefill_tokens=4)


def traced(request: Any, traceparent: str = PARENT) -> Any:
    request.traceparent = traceparent
    return request


def below(spans: InMemorySpanExporter, parent: ReadableSpan) -> list[ReadableSpan]:
    """In the order in which they began; all of them within `parent`."""
    found = [
        each for each in spans.get_finished_spans() if each.parent and each.parent.span_id == parent.context.span_id
    ]
    for each in found:
        assert each.context.trace_id == parent.context.trace_id
        assert parent.start_time <= each.start_time <= each.end_time <= parent.end_time
    return sorted(found, key=lambda each: (each.start_time, each.end_time))


def roots(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    return [each for each in spans.get_finished_spans() if each.name == "schedule"]


async def test_a_request_that_moves_is_one_trace(service: Any, request_of: Any, spans: InMemorySpanExporter) -> None:
    await service.executor("p", role=PREFILL)
    await service.executor("d", role=DECODE)
    tokenizer = await service.tokenizer()
    await tokenizer.send(traced(request_of(1, PROMPT, max_tokens=6, ignore_eos=True)))
    await tokenizer.until(lambda: tokenizer.finished)
    (root,) = roots(spans)
    assert root.context.trace_id == TRACE_ID
    assert root.parent is not None
    assert root.parent.span_id == SPAN_ID
    assert root.attributes == {
        "gen_ai.request.id": "request-1",
        "gen_ai.usage.prompt_tokens": len(PROMPT),
        "gen_ai.usage.completion_tokens": 6,
        "gen_ai.response.finish_reasons": ("length",),
    }
    children = below(spans, root)
    (transfer,) = [each for each in children if each.name == "transfer"]
    assert transfer.attributes == {"pagoda.source": "p", "pagoda.target": "d", "pagoda.blocks": 8}
    states = [each for each in children if each is not transfer]
    assert [(each.name, (each.attributes or {}).get("pagoda.executor")) for each in states] == [
        ("queued", None),
        ("prefill", "p"),
        ("decode", "p"),
        ("handover", None),
        ("decode", "d"),
    ]
    # One state ends where the next one begins.
    assert states[0].start_time == root.start_time
    for before, after in pairwise(states):
        assert before.end_time == after.start_time
    assert states[-1].end_time == root.end_time
    assert transfer.end_time == states[-1].start_time


async def test_the_loss_of_an_executor_is_in_the_trace(
    service: Any, request_of: Any, spans: InMemorySpanExporter
) -> None:
    first = await service.executor("first", pause_at=4)
    tokenizer = await service.tokenizer()
    await tokenizer.send(traced(request_of(1, PROMPT, max_tokens=6, ignore_eos=True)))
    await tokenizer.until(lambda: tokenizer.tokens[1])
    await service.until(lambda: len(first.plans) == 4)
    await service.executor("second")
    await first.stop()
    await tokenizer.until(lambda: tokenizer.finished)
    (root,) = roots(spans)
    children = below(spans, root)
    (recovery,) = [each for each in children if each.name == "recovery"]
    queued, prefill, decode = [each for each in children if each is not recovery][-3:]
    assert [each.name for each in (queued, prefill, decode)] == ["queued", "prefill", "decode"]
    assert (recovery.start_time, recovery.end_time) == (queued.start_time, decode.start_time)
    assert decode.attributes == {"pagoda.executor": "second"}


async def test_what_is_not_sampled_costs_nothing(service: Any, request_of: Any, spans: InMemorySpanExporter) -> None:
    await service.executor()
    tokenizer = await service.tokenizer()
    await tokenizer.send(traced(request_of(1, PROMPT, max_tokens=30, ignore_eos=True), NOT_SAMPLED))
    await service.until(lambda: service.engine.core.requests)
    assert [request.diary for request in service.engine.core.requests.values()] == [None]
    await tokenizer.until(lambda: tokenizer.finished)
    assert spans.get_finished_spans() == ()


@pytest.mark.parametrize("traceparent", ["", "nonsense"])
async def test_without_a_parent_a_trace_begins_here(
    service: Any, request_of: Any, spans: InMemorySpanExporter, traceparent: str
) -> None:
    await service.executor()
    tokenizer = await service.tokenizer()
    await tokenizer.send(traced(request_of(1, PROMPT, max_tokens=2, ignore_eos=True), traceparent))
    await tokenizer.until(lambda: tokenizer.finished)
    (root,) = roots(spans)
    assert root.parent is None


async def test_refused_and_aborted_requests_have_spans_that_end(
    service: Any, request_of: Any, spans: InMemorySpanExporter
) -> None:
    executor = await service.executor(pause_at=2)
    tokenizer = await service.tokenizer()
    await tokenizer.send(traced(request_of(1, list(range(100)), max_tokens=2)))
    await tokenizer.until(lambda: 1 in tokenizer.finished)
    (refused,) = roots(spans)
    assert refused.status.status_code is StatusCode.ERROR
    assert refused.attributes["gen_ai.response.finish_reasons"] == ("error",)
    await tokenizer.send(traced(request_of(2, PROMPT, max_tokens=20, ignore_eos=True)))
    await service.until(lambda: len(executor.plans) == 2)
    await tokenizer.send(aborts=[2])
    await tokenizer.until(lambda: 2 in tokenizer.finished)
    _, aborted = roots(spans)
    assert aborted.attributes["gen_ai.response.finish_reasons"] == ("abort",)
    assert aborted.status.status_code is StatusCode.UNSET
    assert [each.name for each in below(spans, aborted)] == ["queued", "prefill", "decode"]


async def test_calls_of_the_scheduler_itself_are_traced(service: Any, spans: InMemorySpanExporter) -> None:
    await service.executor()
    sampling = common_pb2.SamplingParams(max_tokens=3, ignore_eos=True, seed=1)
    request = scheduler_pb2.SchedulerGenerateRequest(prompt_token_ids=PROMPT, sampling=sampling, traceparent=PARENT)
    assert [response async for response in service.stub.Generate(request)]
    (root,) = roots(spans)
    assert root.context.trace_id == TRACE_ID
