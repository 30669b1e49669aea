"""The JSON that goes to clients, in OpenAI's shape and order of fields; UNSET fields are left out."""

from __future__ import annotations

import time
from typing import Any, TypedDict

import msgspec
from msgspec import UNSET, UnsetType

from pagoda.v1 import common_pb2
from pagoda.v1.common_pb2 import FinishReason

_FINISH_REASONS = {
    FinishReason.FINISH_REASON_STOP: "stop",
    FinishReason.FINISH_REASON_LENGTH: "length",
    FinishReason.FINISH_REASON_ABORT: "abort",
}


def finish_reason(reason: FinishReason) -> str:
    """OpenAI's name of a reason; "abort" is vLLM's."""
    return _FINISH_REASONS[reason]


class PromptTokensDetails(msgspec.Struct):
    cached_tokens: int


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails

    @classmethod
    def of(cls, usage: common_pb2.Usage) -> Usage:
        """A count of tokens in OpenAI's form."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(usage.cached_tokens),
        )


class Envelope(TypedDict):
    """What every answer and event of one request begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str | None


def envelope(prefix: str, request_id: str, model: str, fingerprint: str) -> Envelope:
    """prefix: "chatcmpl" or "cmpl"; fingerprint: the model's, may be empty"""
    return Envelope(
        id=f"{prefix}-{request_id}",
        created=int(time.time()),
        model=model,
        system_fingerprint=f"fp_{fingerprint[:10]}" if fingerprint else None,
    )


class Answer(msgspec.Struct, kw_only=True):
    """The fields of an envelope."""

    id: str
    object: str
    created: int
    model: str
    system_fingerprint: str | None


class ChatMessage(msgspec.Struct):
    role: str
    content: str
    refusal: None = None


class ChatChoice(msgspec.Struct, kw_only=True):
    index: int
    message: ChatMessage
    logprobs: None = None
    finish_reason: str
    # vLLM's: the stop string or token id that ended the choice, where one did.
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletion(Answer, kw_only=True):
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | UnsetType = UNSET


class ChatDelta(msgspec.Struct):
    role: str | UnsetType = UNSET
    content: str | UnsetType = UNSET
    refusal: UnsetType | None = UNSET


class ChatChunkChoice(msgspec.Struct, kw_only=True):
    index: int
    delta: ChatDelta
    logprobs: None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatChunk(Answer, kw_only=True):
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class CompletionChoice(msgspec.Struct, kw_only=True):
    """For whole answers and for events."""

    text: str
    index: int
    logprobs: None = None
    finish_reason: str | None = None
    stop_reason: str | int | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET
    token_ids: list[int] | UnsetType = UNSET


class TextCompletion(Answer, kw_only=True):
    """For whole answers and for events."""

    choices: list[CompletionChoice]
    usage: Usage | UnsetType | None = UNSET


class Model(msgspec.Struct, kw_only=True):
    id: str
    object: str = "model"
    created: int
    owned_by: str = "pagoda"
    root: str
    parent: None = None
    max_model_len: int | None
    permission: list[Any] = []


class ModelList(msgspec.Struct, kw_only=True):
    object: str = "list"
    data: list[Model]


class Tokens(msgspec.Struct):
    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class Text(msgspec.Struct):
    prompt: str


class Version(msgspec.Struct):
    version: str
