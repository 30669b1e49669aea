"""OpenTelemetry traces, for services that are told where to send them. The others import nothing and pay nothing.

    with tracing("scheduler", options.otlp_traces_endpoint) as tracer:
        ...  # tracer is None where nobody wants traces

One trace per request, across processes: what W3C calls a traceparent names the span that others are a part of.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # an optional package
    from opentelemetry.context import Context
    from opentelemetry.trace import Span, Tracer

logger = logging.getLogger(__name__)

_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_HEADER = "traceparent"

# How long the end of a process waits for a collector that is slow or away.
_LAST_SPANS_S = 2.0


@contextmanager
def tracing(service: str, endpoint: str | None) -> Iterator[Tracer | None]:
    """What makes the spans of a service; None where neither `endpoint` nor OpenTelemetry's own variables say where to
    send them.

    endpoint: of OTLP over gRPC, as in "http://127.0.0.1:4317"

    Raises ValueError where the packages are missing.
    """
    if endpoint is None and not any(os.environ.get(each) for each in _VARIABLES):
        yield None
        return
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        if endpoint is not None:
            raise ValueError("otlp_traces_endpoint needs OpenTelemetry: pip install 'pagoda[otel]'") from None
        # The variables may be meant for others.
        logger.warning("there are no traces: OpenTelemetry is not installed (pip install 'pagoda[otel]')")
        yield None
        return
    # Its own variables go first.
    name = {} if "OTEL_SERVICE_NAME" in os.environ else {"service.name": f"pagoda-{service}"}
    provider = TracerProvider(resource=Resource.create(name), shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    try:
        yield provider.get_tracer("pagoda")
    finally:
        closing = threading.Thread(target=provider.shutdown, daemon=True)
        closing.start()
        closing.join(_LAST_SPANS_S)


def parent_context(traceparent: str) -> Context:
    """What a new span is a part of; of nothing, where `traceparent` is empty or is none."""
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({_HEADER: traceparent}, Context())


def traceparent_of(span: Span) -> str:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, within(span))
    return carrier.get(_HEADER, "")


def within(span: Span) -> Context:
    """For new spans below `span`."""
    from opentelemetry.context import Context
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span, Context())


def fail(span: Span, why: str) -> None:
    from opentelemetry.trace import Status, StatusCode

    span.set_status(Status(StatusCode.ERROR, why))
