"""When there are traces, and what is imported when there are none."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest

from pagoda.tracing import parent_context, traceparent_of, tracing, within

VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
# Nobody listens there; nothing is sent in these tests.
ENDPOINT = "http://127.0.0.1:1"
PARENT = f"00-{0xABC:032x}-{0x123:016x}-01"


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "OTEL_SERVICE_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("module", ["pagoda.scheduler.server", "pagoda.tokenizer.server"])
def test_who_wants_no_traces_imports_nothing(module: str) -> None:
    code = f"import sys, {module} as server\nwith server.tracing('x', None) as tracer:\n    assert tracer is None\n"
    code += "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    environ = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=environ).returncode == 0


def test_spans_below_spans() -> None:
    with tracing("test", ENDPOINT) as tracer:
        assert tracer is not None
        span = tracer.start_span("a", parent_context(PARENT))
        version, trace_id, span_id, flags = traceparent_of(span).split("-")
        assert (version, int(trace_id, 16), flags) == ("00", 0xABC, "01")
        assert int(span_id, 16) == span.get_span_context().span_id != 0x123
        below = tracer.start_span("b", within(span))
        assert below.get_span_context().trace_id == 0xABC
        assert tracer.start_span("c", parent_context("")).get_span_context().trace_id != 0xABC


@pytest.mark.parametrize("name", VARIABLES)
def test_opentelemetry_s_own_variables_will_do(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, ENDPOINT)
    with tracing("test", None) as tracer:
        assert tracer is not None


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ValueError, match=r"otlp_traces_endpoint needs OpenTelemetry: pip install 'pagoda\[otel\]'"):
        tracing("test", ENDPOINT).__enter__()
    # Where a variable may be meant for others, it is no reason not to start.
    monkeypatch.setenv(VARIABLES[0], ENDPOINT)
    with caplog.at_level(logging.WARNING), tracing("test", None) as tracer:
        assert tracer is None
    assert "OpenTelemetry is not installed" in caplog.text
