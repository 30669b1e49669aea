"""Streamed completions of an OpenAI-compatible server."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import msgspec

from pagoda.bench.dataset import Prompt
from pagoda.bench.serving.answer import Answer
from pagoda.bench.serving.connections import Connections
from pagoda.bench.serving.response_reader import ProtocolError
from pagoda.errors import UnavailableError

_encode = msgspec.json.Encoder().encode


class CompletionClient:
    """Sends prompts to one endpoint.

    endpoint: its path, "/v1/completions"
    is_chat: prompts are sent as the message of a user, and always as text
    parameters: further fields of every request's JSON
    timeout_s: for a whole answer; None: as long as it takes
    """

    def __init__(
        self,
        connections: Connections,
        endpoint: str,
        model: str,
        *,
        is_chat: bool = False,
        parameters: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self._connections = connections
        self._endpoint = endpoint
        self._model = model
        self._is_chat = is_chat
        self._parameters = parameters or {}
        self._headers = headers or {}
        self._timeout_s = timeout_s

    async def send(self, prompt: Prompt, answer: Answer | None = None, *, queued_s: float = 0.0) -> Answer:
        """The answer once it has ended, well or not: only its `error` says.

        answer: the one to fill, for callers that look at it meanwhile
        queued_s: how long the request has had to wait for its turn
        """
        body = self._body(prompt)
        answer = answer or Answer(perf_counter(), queued_s)
        try:
            async with asyncio.timeout(self._timeout_s):
                answer.end(await self._connections.post(self._endpoint, body, self._headers, answer))
        except TimeoutError:
            answer.fail(f"no end after {self._timeout_s:g} s")
        except (OSError, ProtocolError) as error:
            answer.fail(str(error))
        return answer

    def _body(self, prompt: Prompt) -> bytes:
        fields: dict[str, Any] = {"model": self._model}
        if self._is_chat:
            fields["messages"] = [{"role": "user", "content": prompt.text}]
            fields["max_completion_tokens"] = prompt.num_output_tokens
        else:
            fields["prompt"] = prompt.content
            fields["max_tokens"] = prompt.num_output_tokens
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
        return _encode(fields | dict(self._parameters))


class _Body:
    """A whole body."""

    def __init__(self) -> None:
        self.data = b""

    def receive(self, status: int, data: bytes, now: float) -> None:
        self.data += data


async def first_model(connections: Connections, headers: Mapping[str, str]) -> str:
    """The name of the first model that the server lists. Raises UnavailableError where it lists none."""
    body = _Body()
    try:
        status = await connections.get("/v1/models", headers, body)
        if status != 200:
            raise UnavailableError(f"/v1/models answers HTTP {status}: {body.data[:300].decode(errors='replace')}")
        model: str = msgspec.json.decode(body.data)["data"][0]["id"]
    except (OSError, ProtocolError) as error:
        raise UnavailableError(f"the server cannot be asked: {error}") from error
    except (msgspec.DecodeError, LookupError, TypeError) as error:
        raise UnavailableError(f"/v1/models lists no model; name one with --model ({error!r})") from error
    return model
