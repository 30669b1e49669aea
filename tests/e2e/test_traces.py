"""One request, one trace: from an HTTP header through Envoy and the tokenizer to what happens on two executors; and the
same request in /metrics."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest
from otlp_collector import OtlpCollector
from processes import poll
from stack_fixtures import Serve, Server

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PROMPT = "the lamp and the river and the stone " * 20
FLAGS = "--prefill-executors 1 --decode-executors 1 --max-local-prefill-tokens 1".split()


@pytest.fixture
def collector() -> Iterator[OtlpCollector]:
    with OtlpCollector().running() as collector:
        yield collector


def ask(server: Server) -> None:
    """For an answer long enough that the request has time to move."""
    answer = httpx.post(
        f"{server.base_url}/v1/completions",
        json={"model": server.model, "prompt": PROMPT, "max_tokens": 100, "ignore_eos": True},
        headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01"},
        timeout=60,
    )
    assert answer.status_code == 200, answer.text


def test_one_trace_per_request(serve: Serve, collector: OtlpCollector, monkeypatch: pytest.MonkeyPatch) -> None:
    # Spans leave at once, and not when there are many.
    monkeypatch.setitem(os.environ, "OTEL_BSP_SCHEDULE_DELAY", "100")
    server = serve(*FLAGS, "--otlp-traces-endpoint", collector.endpoint).wait_until_ready()
    ask(server)

    def come() -> bool:
        return {"llm_request", "schedule"} <= {each.span.name for each in collector.spans}

    poll(come, 20, "the spans have come")
    assert {each.span.trace_id.hex() for each in collector.spans} == {TRACE_ID}
    assert {each.service for each in collector.spans} == {"pagoda-tokenizer", "pagoda-scheduler"}
    (request,) = [each for each in collector.spans if each.span.name == "llm_request"]
    (schedule,) = [each for each in collector.spans if each.span.name == "schedule"]
    assert (request.service, request.span.parent_span_id.hex()) == ("pagoda-tokenizer", SPAN_ID)
    assert (schedule.service, schedule.span.parent_span_id) == ("pagoda-scheduler", request.span.span_id)
    assert schedule.attributes["gen_ai.request.id"] == request.attributes["gen_ai.request.id"]
    stages = sorted(
        (each for each in collector.spans if each.span.parent_span_id == schedule.span.span_id),
        key=lambda each: (each.span.start_time_unix_nano, each.span.end_time_unix_nano),
    )
    by_name = {each.span.name: each.attributes for each in stages}
    assert by_name.keys() == {"queued", "prefill", "transfer", "handover", "decode"}
    assert by_name["prefill"]["pagoda.executor"] == "prefill"
    assert by_name["decode"]["pagoda.executor"] == "decode"
    assert (by_name["transfer"]["pagoda.source"], by_name["transfer"]["pagoda.target"]) == ("prefill", "decode")
    assert by_name["transfer"]["pagoda.blocks"] > 0
    assert stages[-1].span.end_time_unix_nano == schedule.span.end_time_unix_nano
    assert request.span.start_time_unix_nano <= schedule.span.start_time_unix_nano
    assert schedule.span.end_time_unix_nano <= request.span.end_time_unix_nano


def test_a_request_that_moves_is_in_the_metrics(serve: Serve) -> None:
    server = serve(*FLAGS).wait_until_ready()
    ask(server)

    def metrics() -> dict[str, float]:
        lines = httpx.get(f"{server.base_url}/metrics", timeout=10).text.splitlines()
        samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {
            name.replace('model_name="pagoda",', "").replace(',model_name="pagoda"', ""): float(value)
            for name, value in samples
        }

    sent = 'pagoda:kv_transfer_blocks_total{direction="sent",executor="prefill"}'
    received = 'pagoda:kv_transfer_blocks_total{direction="received",executor="decode"}'
    moved = 'pagoda:moved_blocks_total{model_name="pagoda"}'

    def all_told() -> bool:
        values = metrics()
        return values[moved] > 0 and values.get(sent) == values.get(received) == values[moved]

    # Executors tell of blocks with their next heartbeats.
    poll(all_told, 20, "both executors have told of the transfer")
    values = metrics()
    assert values['pagoda:prefills_total{where="remote"}'] == 1
    assert values['pagoda:move_wait_seconds_count{model_name="pagoda"}'] == 1
    assert values['pagoda:executors{role="prefill"}'] == values['pagoda:executors{role="decode"}'] == 1
    assert values['pagoda:kv_transfer_bytes_total{direction="received",executor="decode"}'] > 0
