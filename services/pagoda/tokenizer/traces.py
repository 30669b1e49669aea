"""The span of a client's request, from its arrival to its end; the scheduler's are below it."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from pagoda.errors import PagodaError
from pagoda.tracing import fail, parent_context, traceparent_of
from pagoda.v1.common_pb2 import FinishReason

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

    from pagoda.tokenizer.generation import Generation, GenerationRequest


class RequestTrace:
    """Inside its block the request runs. Without a tracer it does nothing; then the scheduler's spans, if it makes any,
    are the caller's."""

    def __init__(self, tracer: Tracer | None, request: GenerationRequest) -> None:
        self.generation: Generation | None = None
        """To be set when there is one."""
        self.traceparent = request.traceparent
        """For the scheduler."""
        self._request = request
        self._span: Span | None = None
        if tracer is not None:
            from opentelemetry.trace import SpanKind

            self._span = tracer.start_span(
                "llm_request",
                parent_context(request.traceparent),
                kind=SpanKind.SERVER,
                attributes={"gen_ai.request.id": request.request_id, "gen_ai.request.n": request.n},
                start_time=time.time_ns() - int((time.perf_counter() - request.arrived_at) * 1e9),
            )
            self.traceparent = traceparent_of(self._span)

    def __enter__(self) -> RequestTrace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._span is None:
            return
        if self.generation is not None:
            self._describe(self._span, self.generation)
        if isinstance(error, PagodaError):
            fail(self._span, f"{error.reason}: {error.message}")
        self._span.end()

    def _describe(self, span: Span, generation: Generation) -> None:
        """Under the names that vLLM has for it."""
        usage = generation.usage()
        completions = generation.completions
        span.set_attributes(
            {
                "gen_ai.usage.prompt_tokens": usage.prompt_tokens,
                "gen_ai.usage.completion_tokens": usage.completion_tokens,
                "gen_ai.response.finish_reasons": [
                    FinishReason.Name(each.end.reason).removeprefix("FINISH_REASON_").lower()
                    for each in completions
                    if each.end is not None
                ],
            }
        )
        if firsts := [each.first_token_at for each in completions if each.first_token_at]:
            span.set_attribute("gen_ai.latency.time_to_first_token", min(firsts) - self._request.arrived_at)
