"""A client for OpenAI's chat completions over `http.client`: models, and streams of text."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

# A server may think for a long time before the first token; not for ever.
_TIMEOUT_S = 600.0


class ChatError(Exception):
    """What the server, or the way to it, had against the request; a sentence for people."""


class ChatClient:
    def __init__(self, url: str, api_key: str | None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ChatError(f"{url!r} is not a URL of a server, such as http://127.0.0.1:8000")
        self._url = url.rstrip("/").removesuffix("/v1")
        self._connection = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._headers = {"content-type": "application/json", "accept": "application/json, text/event-stream"}
        if api_key:
            self._headers["authorization"] = f"Bearer {api_key}"

    def first_model(self) -> str:
        with self._request("GET", "/v1/models") as response:
            models = json.loads(response.read())["data"]
        if not models:
            raise ChatError(f"{self._url} serves no model")
        return str(models[0]["id"])

    def stream(self, body: dict[str, Any]) -> Iterator[str]:
        """The answer's text, piece by piece. Leaving the iterator ends the request."""
        with self._request("POST", "/v1/chat/completions", {**body, "stream": True}) as response:
            for line in response:
                if not line.startswith(b"data:"):
                    continue
                data = line.removeprefix(b"data:").strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise ChatError(_message(event))
                for choice in event.get("choices", ()):
                    if text := choice["delta"].get("content"):
                        yield text
        raise ChatError("the connection ended before the answer did")

    @contextmanager
    def _request(self, method: str, path: str, body: Any = None) -> Iterator[http.client.HTTPResponse]:
        """Raises ChatError for whatever keeps an answer from coming."""
        parts = urlsplit(self._url + path)
        connection = self._connection(parts.hostname or "", parts.port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, parts.path, None if body is None else json.dumps(body), self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise ChatError(_explain(response.status, response.read()))
            yield response
        except ConnectionRefusedError as error:
            raise ChatError(f"no server at {self._url}; start one with `pagoda serve`") from error
        except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
            raise ChatError(f"{self._url}: {error or type(error).__name__}") from error
        finally:
            connection.close()


def _explain(status: int, body: bytes) -> str:
    try:
        return _message(json.loads(body))
    except ValueError:
        return f"the server answered with status {status}"


def _message(answer: Any) -> str:
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    return str(error.get("message", error) if isinstance(error, dict) else error)
