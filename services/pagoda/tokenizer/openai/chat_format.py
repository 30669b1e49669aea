"""Chat completions as OpenAI words them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from pagoda.tokenizer.completion import Delta
from pagoda.tokenizer.generation import Generation
from pagoda.tokenizer.openai.responses import (
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    ChatDelta,
    ChatMessage,
    Envelope,
    Usage,
    finish_reason,
)


class ChatFormat:
    """
    common: what every answer and event begins with
    role: of the messages
    """

    def __init__(self, common: Envelope, generation: Generation, *, role: str, return_token_ids: bool) -> None:
        self._common = common
        self._role = role
        self._return_token_ids = return_token_ids
        self._prompt_token_ids = list(generation.prompts[0].token_ids) if return_token_ids else msgspec.UNSET
        self._opened: set[int] = set()

    def document(self, deltas: list[Delta], usage: Usage) -> ChatCompletion:
        choices = []
        for delta in deltas:
            assert delta.end is not None
            choices.append(
                ChatChoice(
                    index=delta.index,
                    message=ChatMessage(self._role, delta.text),
                    finish_reason=finish_reason(delta.end.reason),
                    stop_reason=msgspec.UNSET if delta.end.stopped_by is None else delta.end.stopped_by,
                    token_ids=delta.token_ids if self._return_token_ids else msgspec.UNSET,
                )
            )
        return ChatCompletion(
            **self._common,
            object="chat.completion",
            choices=choices,
            usage=usage,
            prompt_token_ids=self._prompt_token_ids,
        )

    def events(self, delta: Delta, usage: Any) -> Iterator[ChatChunk]:
        """The role first, then content, and the end in an event of its own."""
        index = delta.index
        if index not in self._opened:
            first = self._chunk(index, ChatDelta(role=self._role, content="", refusal=None), usage)
            if not self._opened:
                first.prompt_token_ids = self._prompt_token_ids
            self._opened.add(index)
            yield first
        if delta.text or (self._return_token_ids and delta.token_ids):
            chunk = self._chunk(index, ChatDelta(content=delta.text), usage)
            if self._return_token_ids:
                chunk.choices[0].token_ids = delta.token_ids
            yield chunk
        if delta.end is not None:
            chunk = self._chunk(index, ChatDelta(), usage)
            chunk.choices[0].finish_reason = finish_reason(delta.end.reason)
            if delta.end.stopped_by is not None:
                chunk.choices[0].stop_reason = delta.end.stopped_by
            yield chunk

    def last_event(self, usage: Usage) -> ChatChunk:
        return ChatChunk(**self._common, object="chat.completion.chunk", choices=[], usage=usage)

    def _chunk(self, index: int, delta: ChatDelta, usage: Any) -> ChatChunk:
        choice = ChatChunkChoice(index=index, delta=delta)
        return ChatChunk(**self._common, object="chat.completion.chunk", choices=[choice], usage=usage)
