"""`pagoda chat` against a small HTTP server that answers as OpenAI does."""

from __future__ import annotations

import http.server
import io
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from pagoda.cli.chat import ChatOptions, main

Event = dict[str, Any] | str


class FakeOpenAI(http.server.BaseHTTPRequestHandler):
    """Answers with the server's `events`, after noting the request in its `requests`."""

    server: FakeServer

    def do_GET(self) -> None:
        self._answer(200, json.dumps({"data": [{"id": "first"}, {"id": "second"}]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.requests.append((self.headers["authorization"], body))
        if self.server.status != 200:
            self._answer(self.server.status, b'{"error": {"message": "that is wrong"}}')
            return
        lines = [each if isinstance(each, str) else json.dumps(each) for each in self.server.events]
        self._answer(200, "".join(f"data: {line}\n\n" for line in lines).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


class FakeServer(http.server.ThreadingHTTPServer):
    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), FakeOpenAI)
        self.status = 200
        self.events: list[Event] = [
            *({"choices": [{"delta": {"content": text}}]} for text in ("Hel", "lo \u20ac")),
            {"choices": [{"delta": {}, "finish_reason": "stop"}]},
            {"choices": [], "usage": {}},
            "[DONE]",
        ]
        self.requests: list[tuple[str | None, dict[str, Any]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def server() -> Iterator[FakeServer]:
    server = FakeServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes standard input a terminal at which these lines are typed; an exception is "typed" by raising it."""

    def type_lines(*lines: str | type[BaseException]) -> None:
        typed = iter(lines)

        def read(prompt: str) -> str:
            line = next(typed, EOFError)
            if isinstance(line, str):
                return line
            raise line

        monkeypatch.setattr("sys.stdin", io.StringIO())
        monkeypatch.setattr("sys.stdin.isatty", lambda: True)
        monkeypatch.setattr("builtins.input", read)

    return type_lines


def test_single_question(server: FakeServer, terminal: Any, capsys: pytest.CaptureFixture[str]) -> None:
    terminal()
    options = ChatOptions(
        "Hi?", url=f"{server.url}/v1/", system="Be brief.", max_tokens=5, temperature=0.0, api_key="sk-1"
    )
    assert main(options) == 0
    assert capsys.readouterr().out == "Hello \u20ac\n"
    assert server.requests == [
        (
            "Bearer sk-1",
            {
                "model": "first",
                "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi?"}],
                "max_tokens": 5,
                "temperature": 0.0,
                "stream": True,
            },
        )
    ]


@pytest.mark.parametrize(
    ("question", "piped", "asked"), [(None, "Hi?\n", "Hi?"), ("Sum up:", "long text", "Sum up:\n\nlong text")]
)
def test_question_from_a_pipe(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, question: str | None, piped: str, asked: str
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(piped))
    assert main(ChatOptions(question, url=server.url, model="m")) == 0
    assert server.requests[0][1]["messages"][-1]["content"] == asked
    assert server.requests[0][1]["model"] == "m"


def test_conversation_is_kept_until_reset(server: FakeServer, terminal: Any) -> None:
    terminal("one", "", "two", "/unknown", KeyboardInterrupt, "/reset", "three", "/exit", "never")
    assert main(ChatOptions(url=server.url)) == 0
    contents = [[each["content"] for each in body["messages"]] for _, body in server.requests]
    assert contents == [["one"], ["one", "Hello \u20ac", "two"], ["three"]]


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([{"error": {"message": "the queue is full"}}], "the queue is full"),
        ([{"choices": [{"delta": {"content": "Hel"}}]}], "the connection ended before the answer did"),
        (["not JSON"], "Expecting value"),
    ],
)
def test_broken_answers(
    server: FakeServer, terminal: Any, capsys: pytest.CaptureFixture[str], events: list[Event], message: str
) -> None:
    terminal()
    server.events = events
    assert main(ChatOptions("Hi?", url=server.url)) == 1
    assert message in capsys.readouterr().err


def test_error_leaves_the_conversation_usable(
    server: FakeServer, terminal: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    server.status = 400
    terminal("bad")
    assert main(ChatOptions(url=server.url)) == 0
    assert "[that is wrong]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("url", "message"), [("http://127.0.0.1:1", "start one with `pagoda serve`"), ("nonsense", "is not a URL")]
)
def test_no_server(terminal: Any, capsys: pytest.CaptureFixture[str], url: str, message: str) -> None:
    terminal()
    assert main(ChatOptions("Hi?", url=url)) == 1
    assert message in capsys.readouterr().err
