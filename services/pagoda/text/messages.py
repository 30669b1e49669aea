"""OpenAI chat messages as chat templates want them: plain, without nulls, content and tool arguments in
shape.

Knows the JSON of OpenAI's chat API. Never changes the caller's messages.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pagoda.errors import InvalidArgumentError
from pagoda.text.content_format import ContentFormat

Message = dict[str, Any]

# Names under which clients send a message's reasoning; templates read the first, gpt-oss's the second.
_REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")

# Text parts by type (OpenAI's chat and responses APIs), with the key that holds the text.
_TEXT_KEYS = {"text": "text", "input_text": "text", "output_text": "text", "refusal": "refusal"}


def prepare_messages(
    messages: Sequence[Mapping[str, Any]], content_format: ContentFormat, *, wrap_strings: bool = False
) -> list[Message]:
    """The messages a template renders.

    As in transformers, keys whose value is null are left out, and reasoning is found under each of its names.
    As in vLLM, tool arguments in a JSON string become an object, and content parts become one string, joined
    by newlines, where the template's content format is "string".

    wrap_strings: turn string content into a list of one text part, for templates that know only lists
    Raises InvalidArgumentError, naming the message, for anything that is not a message of text.
    """
    if not messages:
        raise InvalidArgumentError(
            "messages is empty: send at least one message.", reason="EMPTY_MESSAGES", param="messages"
        )
    prepared = []
    for index, message in enumerate(messages):
        where = f"messages[{index}]"
        if not isinstance(message, Mapping):
            raise _invalid(f"{where} must be an object with a role.", where)
        prepared.append(_prepare(message, where, content_format, wrap_strings))
    return prepared


def _prepare(source: Mapping[str, Any], where: str, content_format: ContentFormat, wrap_strings: bool) -> Message:
    message = {key: value for key, value in source.items() if value is not None}
    content = message.get("content")
    if isinstance(content, list | tuple):
        parts = [_text_part(part, f"{where}.content[{index}]") for index, part in enumerate(content)]
        as_parts = content_format == "openai"
        message["content"] = parts if as_parts else "\n".join(part["text"] for part in parts)
    elif isinstance(content, str):
        if wrap_strings:
            message["content"] = [{"type": "text", "text": content}]
    elif content is not None:
        raise _invalid(f"{where}.content must be a string or a list of parts.", f"{where}.content")

    reasoning = next((message[key] for key in _REASONING_KEYS if key in message), None)
    if reasoning is not None:
        message.setdefault("thinking", reasoning)
        message["reasoning_content"] = reasoning

    tool_calls = message.get("tool_calls")
    if isinstance(tool_calls, list):
        message["tool_calls"] = [
            _tool_call(tool_call, f"{where}.tool_calls[{index}]") for index, tool_call in enumerate(tool_calls)
        ]
    return message


def _text_part(part: object, where: str) -> dict[str, Any]:
    """A content part as {"type": "text", "text": ..., any other keys it had}."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, Mapping):
        raise _invalid(f"{where} must be an object with a type.", where)
    kind = part.get("type", "text")
    key = _TEXT_KEYS.get(kind) if isinstance(kind, str) else None
    if key is None:
        raise _invalid(f"{where} has the type {kind!r}, but this model takes only text.", where)
    text = part.get(key)
    if not isinstance(text, str):
        raise _invalid(f"{where}.{key} must be a string.", where)
    return {**part, "type": "text", "text": text}


def _tool_call(tool_call: object, where: str) -> Any:
    if not isinstance(tool_call, Mapping):
        raise _invalid(f"{where} must be an object.", where)
    function = tool_call.get("function")
    if not isinstance(function, Mapping):
        return dict(tool_call)
    # No arguments at all, "" or null, are an empty object.
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise _invalid(f"{where}.function.arguments is not valid JSON: {error}", where) from error
    return {**tool_call, "function": {**function, "arguments": arguments}}


def _invalid(message: str, param: str) -> InvalidArgumentError:
    return InvalidArgumentError(message, reason="INVALID_MESSAGE", param=param)
