"""The spans of requests, made of their diaries when they have ended.

A request is one span, and each stage of its life is one below it: queued, prefill, decode, handover, transfer and
recovery, with the executors' names. Executors make no spans: what they do for a request begins and ends with plans and
results, and the scheduler knows when those leave and come.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from pagoda.scheduler.core.diary import Diary, Stage
from pagoda.scheduler.core.request import Request, RequestKey
from pagoda.tracing import fail, parent_context, within

if TYPE_CHECKING:  # an optional package
    from opentelemetry.trace import Span, Tracer


class RequestTraces:
    """All times are on the core's clock; spans have the time of day, which is looked at once per request."""

    def __init__(self, tracer: Tracer, clock: Callable[[], float]) -> None:
        """clock: the core's"""
        self._tracer = tracer
        self._clock = clock
        # Of unfinished requests, with what turns their times into the time of day, in nanoseconds.
        self._spans: dict[RequestKey, tuple[Span, int]] = {}

    def begin(self, request: Request, now: float) -> None:
        """Before the core knows the request. It gets a diary, unless it is not sampled."""
        offset_ns = time.time_ns() - _ns(self._clock())
        span = self._tracer.start_span("schedule", parent_context(request.traceparent), start_time=_ns(now) + offset_ns)
        if span.is_recording():
            request.diary = Diary()
            self._spans[request.key] = span, offset_ns

    def end(self, request: Request, now: float) -> None:
        """The request has ended; nothing if that is known, or if it is not sampled."""
        if (kept := self._spans.pop(request.key, None)) is None:
            return
        span, offset_ns = kept
        diary, end = request.diary, request.end
        assert diary is not None
        assert end is not None
        diary.close(now)
        for stage in diary.stages:
            self._tell(stage, span, offset_ns)
        span.set_attributes(
            {
                "gen_ai.request.id": request.request_id,
                "gen_ai.usage.prompt_tokens": request.num_prompt_tokens,
                "gen_ai.usage.completion_tokens": request.num_output_tokens,
                "gen_ai.response.finish_reasons": (end.reason.name.lower(),),
            }
        )
        if end.error is not None:
            fail(span, f"{end.error.reason}: {end.error.message}")
        span.end(_ns(now) + offset_ns)

    def _tell(self, stage: Stage, parent: Span, offset_ns: int) -> None:
        assert stage.ended_at is not None
        span = self._tracer.start_span(
            stage.name,
            within(parent),
            attributes={f"pagoda.{name}": value for name, value in stage.details.items()},
            start_time=_ns(stage.began_at) + offset_ns,
        )
        if "failure" in stage.details:
            fail(span, str(stage.details["failure"]))
        span.end(_ns(stage.ended_at) + offset_ns)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
