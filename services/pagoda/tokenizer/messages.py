"""`pagoda.v1.Chat` as the chat template takes it."""

from __future__ import annotations

from typing import Any

import msgspec

from pagoda.errors import InvalidArgumentError
from pagoda.tokenizer.limits import MAX_MESSAGES, check_length
from pagoda.tokenizer.prompts import ChatPrompt
from pagoda.v1.tokenizer_pb2 import Chat, ChatMessage

_OBJECTS = msgspec.json.Decoder(list[dict[str, Any]])
_OBJECT = msgspec.json.Decoder(dict[str, Any])


def to_chat_prompt(chat: Chat) -> ChatPrompt:
    """Raises InvalidArgumentError, naming the field, for JSON in it that is not what it should be."""
    check_length("chat.messages", chat.messages, 1, MAX_MESSAGES)
    return ChatPrompt(
        param="chat.messages",
        messages=[_message(message, index) for index, message in enumerate(chat.messages)],
        tools=_decode(_OBJECTS, chat.tools_json, "tools_json") or None,
        add_generation_prompt=chat.add_generation_prompt if chat.HasField("add_generation_prompt") else True,
        template_kwargs=_decode(_OBJECT, chat.template_kwargs_json, "template_kwargs_json") or {},
    )


def _message(message: ChatMessage, index: int) -> dict[str, Any]:
    fields: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls_json:
        fields["tool_calls"] = _decode(_OBJECTS, message.tool_calls_json, f"messages[{index}].tool_calls_json")
    if message.tool_call_id:
        fields["tool_call_id"] = message.tool_call_id
    if message.name:
        fields["name"] = message.name
    return fields


def _decode(decoder: msgspec.json.Decoder[Any], text: str, param: str) -> Any:
    """The JSON in a field; None for an empty one."""
    if not text:
        return None
    try:
        return decoder.decode(text)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgumentError(f"Invalid '{param}': {error}", param=param) from error
