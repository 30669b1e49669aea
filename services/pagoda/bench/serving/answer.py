"""What came of one request, read from its stream of events as they arrive.

Tokens are counted by the server (`usage`), for an event may hold several, and some tokens are no text of their own. So
the times here are those of events: the first with text is the first token's, the last one of a choice the last token's.
"""

from __future__ import annotations

from array import array
from typing import Any

import msgspec

from pagoda.bench.serving.event_reader import EventReader

_DONE = b"[DONE]"
# Enough to say what was wrong.
_MAX_ERROR_CHARS = 300


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: Any = None

    @property
    def has_text(self) -> bool:
        return bool(self.content or self.reasoning_content or self.reasoning or self.tool_calls)


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    delta: _Delta | None = None
    finish_reason: str | None = None

    @property
    def has_text(self) -> bool:
        return bool(self.text) or (self.delta is not None and self.delta.has_text)


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _PromptDetails | None = None


class _Event(msgspec.Struct, gc=False):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class Answer:
    """Times are `time.perf_counter`'s.

    queued_s: how long the request had to wait for its turn at the client
    event_times: of events with text
    last_at: when the last event of a choice came; 0.0: there was none
    error: why the request has failed; "": it has not, once it has ended
    """

    def __init__(self, started_at: float, queued_s: float = 0.0) -> None:
        self.started_at = started_at
        self.queued_s = queued_s
        self.event_times = array("d")
        self.last_at = 0.0
        self.num_prompt_tokens: int | None = None
        self.num_cached_tokens: int | None = None
        self.error = ""
        self._num_completion_tokens: int | None = None
        self._is_finished = False
        self._events = EventReader()
        self._refusal = b""

    @property
    def is_ok(self) -> bool:
        return not self.error

    @property
    def is_counted(self) -> bool:
        """Whether the server has said how many tokens there were."""
        return self._num_completion_tokens is not None

    @property
    def num_output_tokens(self) -> int:
        """As the server counts; as many as events where it does not."""
        return len(self.event_times) if self._num_completion_tokens is None else self._num_completion_tokens

    @property
    def first_at(self) -> float:
        """When the first token came. Of an answer without any text, when it ended."""
        return self.event_times[0] if self.event_times else self.last_at

    @property
    def ttft_s(self) -> float:
        return self.first_at - self.started_at

    @property
    def e2el_s(self) -> float:
        return self.last_at - self.started_at

    @property
    def tpot_s(self) -> float | None:
        """Mean time per token after the first; None where there is no second."""
        num_more = self.num_output_tokens - 1
        return (self.last_at - self.first_at) / num_more if num_more > 0 else None

    def receive(self, status: int, data: bytes, now: float) -> None:
        """Part of the body, read at `now`."""
        if status != 200:
            self._refusal += data
            return
        for content in self._events.feed(data):
            if content == _DONE:
                self._is_finished = True
                continue
            try:
                event = _decode(content)
            except msgspec.DecodeError as error:
                self.error = self.error or f"an event that is no JSON of a completion: {error}"
                continue
            if event.error:
                self.error = self.error or message_of(event.error)
            if event.usage is not None:
                self._count(event.usage)
            for choice in event.choices or ():
                self.last_at = now
                if choice.has_text:
                    self.event_times.append(now)
                if choice.finish_reason:
                    self._is_finished = True

    def end(self, status: int) -> None:
        """The answer is complete, with `status`."""
        if status != 200:
            self.error = f"HTTP {status}: {_refusal_text(self._refusal)}"
        elif not self.error and not self.last_at:
            self.error = "no event with a choice came"
        elif not self.error and not self._is_finished:
            self.error = "the stream ended without a reason to finish"

    def fail(self, reason: str) -> None:
        """There will be no more of the answer."""
        self.error = self.error or reason

    def _count(self, usage: _Usage) -> None:
        self.num_prompt_tokens = usage.prompt_tokens
        self._num_completion_tokens = usage.completion_tokens
        if usage.prompt_tokens_details is not None:
            self.num_cached_tokens = usage.prompt_tokens_details.cached_tokens


def message_of(error: Any) -> str:
    """The text of an error object, in OpenAI's shape or another."""
    found = error.get("message", error) if isinstance(error, dict) else error
    return str(found)[:_MAX_ERROR_CHARS]


def _refusal_text(body: bytes) -> str:
    try:
        content = msgspec.json.decode(body)
    except msgspec.DecodeError:
        return body[:_MAX_ERROR_CHARS].decode(errors="replace").strip()
    return message_of(content.get("error", content) if isinstance(content, dict) else content)
