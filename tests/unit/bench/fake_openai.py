"""A small HTTP/1.1 server that answers completions as OpenAI does, in a thread of its own."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

Event = dict[str, Any] | str


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeOpenAI

    def setup(self) -> None:
        super().setup()
        self.server.num_connections += 1

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": [{"id": "first"}, {"id": "second"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with self.server.lock:
            self.server.requests.append((self.path, dict(self.headers), body))
            number = len(self.server.requests)
        if number in self.server.refused:
            self._answer(429, json.dumps({"error": {"message": "the queue is full"}}).encode())
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in self.events(body):
            text = event if isinstance(event, str) else json.dumps(event)
            self._chunk(f"data: {text}\n\n".encode())
            if number in self.server.cut:
                self.wfile.flush()
                self.close_connection = True
                return
        self._chunk(b"")
        self.wfile.flush()
        if self.server.hangs_up:
            # Without having said so: the client learns it when it comes again.
            self.close_connection = True

    def events(self, body: dict[str, Any]) -> Iterator[Event]:
        """Two tokens per event, but one in the last if their number is odd."""
        is_chat = "messages" in body
        wanted = body["max_completion_tokens" if is_chat else "max_tokens"]
        prompt = body["messages"][0]["content"].split() if is_chat else body["prompt"]
        for number in range(0, wanted, 2):
            reason = "length" if number + 2 >= wanted else None
            choice = {"delta": {"content": "xy"}} if is_chat else {"text": "xy"}
            yield {"choices": [{"index": 0, **choice, "finish_reason": reason}]}
        if self.server.sends_usage:
            yield {"choices": [], "usage": {"prompt_tokens": len(prompt), "completion_tokens": wanted}}
        yield "[DONE]"

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _chunk(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))

    def log_message(self, format: str, *args: Any) -> None:
        pass


class FakeOpenAI(http.server.ThreadingHTTPServer):
    """
    refused, cut: numbers, from 1, of the requests that get a 429, and of those whose answer ends after one event
    hangs_up: closes the connection after each answer
    requests: (path, headers, body) of all so far
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.lock = threading.Lock()
        self.refused: set[int] = set()
        self.cut: set[int] = set()
        self.hangs_up = False
        self.sends_usage = True
        self.num_connections = 0
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@contextmanager
def running() -> Iterator[FakeOpenAI]:
    with FakeOpenAI() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
