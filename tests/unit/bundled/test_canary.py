"""The canary against a stub of an OpenAI-compatible server that knows, or does not know, the answers."""

from __future__ import annotations

import argparse
import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from pagoda.bench.canary import CanaryRow, add_arguments, canary_samples, format_table, main, run_canary

SEED = 4
SAMPLES = 2

Answer = Callable[[dict[str, Any]], dict[str, Any] | None]
"""Request body -> assistant message; None = fail with status 500."""


@contextmanager
def stub_server(answer: Answer) -> Iterator[str]:
    """Serve `answer` on a free port; gives the base URL."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(200, {"data": [{"id": "stub"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            message = answer(body)
            if message is None:
                self._send(500, {"error": "broken"})
            else:
                self._send(200, {"choices": [{"message": message}]})

        def _send(self, status: int, value: dict[str, Any]) -> None:
            data = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, format: str, *args: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def known_answers() -> dict[str, dict[str, Any]]:
    return {
        json.dumps(list(sample.prompt)): sample.expected
        for _, _, samples in canary_samples(SAMPLES, SEED)
        for sample in samples
    }


def test_knowing_server_gets_everything_right() -> None:
    answers = known_answers()
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        seen.append(body)
        return answers[json.dumps(body["messages"])]

    with stub_server(answer) as url:
        rows = asyncio.run(run_canary(url, None, "key", SAMPLES, 4, SEED))
    assert all(row.percent == 100.0 and row.is_met and row.errors == 0 for row in rows)
    assert {row.task for row in rows} >= {"recall", "copy", "addition", "json", "tool_call"}
    assert all(body["model"] == "stub" and body["temperature"] == 0 for body in seen)
    assert any("tools" in body for body in seen)


def test_wrong_and_failing_servers_are_told_apart() -> None:
    with stub_server(lambda body: {"role": "assistant", "content": "no"}) as url:
        wrong = asyncio.run(run_canary(f"{url}/v1", "m", None, 1, 2, SEED))
    with stub_server(lambda body: None) as url:
        failing = asyncio.run(run_canary(url, "m", None, 1, 2, SEED))
    assert all(row.correct == 0 and row.errors == 0 for row in wrong)
    assert all(row.correct == 0 and row.errors == row.samples for row in failing)
    assert not any(row.is_met for row in wrong if row.target is not None)


def test_table_marks_rows_below_target() -> None:
    rows = [CanaryRow("recall", 50, 10, 9, 0, 95.0), CanaryRow("sort", None, 10, 0, 1, None)]
    header, first, second = format_table(rows).splitlines()
    assert header.split() == ["task", "distance", "samples", "exact", "%", "target", "errors"]
    assert first.split() == ["recall", "50", "10", "90.0", "95", "0", "below", "target"]
    assert second.split() == ["sort", "-", "10", "0.0", "-", "1"]


def test_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    answers = known_answers()
    with stub_server(lambda body: answers[json.dumps(body["messages"])]) as url:
        assert main(parser.parse_args(["--url", url, "--samples", str(SAMPLES), "--seed", str(SEED)])) == 0
    assert "below target" not in capsys.readouterr().out
    assert main(parser.parse_args(["--url", url])) == 2
    with pytest.raises(SystemExit):
        parser.parse_args(["--samples", "0"])
