"""What a task sample is, how a reply is checked, and how training and held-out contents are kept apart."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal, TypeVar

Message = dict[str, Any]
"""An OpenAI chat message: role, content, and for an assistant's tool call `tool_calls`."""

Split = Literal["train", "held_out"]

HELD_OUT_PERCENT = 10
CALL_ID = "call_0"
"""OpenAI's API wants an id that ties a tool's answer to its call; the template does not show it to the model."""

T = TypeVar("T")


class Check(Enum):
    """How a reply is compared with the expected one."""

    TEXT = "text"
    """The same text, surrounding white space aside."""
    LAST_NUMBER = "last_number"
    """The last number of the text is the expected one's; the way there is free."""
    JSON = "json"
    """The same JSON value; spacing and key order are free."""
    TOOL_CALL = "tool_call"
    """Exactly one tool call, with the same name and the same arguments."""


@dataclass(frozen=True)
class Sample:
    """One checkable conversation; the last message is the assistant's expected answer."""

    task: str
    messages: tuple[Message, ...]
    check: Check = Check.TEXT
    tools: tuple[dict[str, Any], ...] = ()
    distance: int | None = None
    """Recall only: tokens from the planted value to the point where it is asked for."""

    @property
    def prompt(self) -> tuple[Message, ...]:
        """The messages a server is sent."""
        return self.messages[:-1]

    @property
    def expected(self) -> Message:
        """The assistant message a correct server answers with."""
        return self.messages[-1]


@dataclass(frozen=True)
class Reply:
    """A server's answer: the text, and the tool calls where the server parsed them."""

    content: str | None
    tool_calls: tuple[dict[str, Any], ...] = field(default=())


Generator = Callable[[random.Random, Split], Sample]


def is_held_out(content: str) -> bool:
    """Whether this content is kept from training; fixed by a hash, so that it is the same for every seed."""
    digest = hashlib.blake2b(content.encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") % 100 < HELD_OUT_PERCENT


def belongs_to(content: str, split: Split) -> bool:
    """Whether a sample with this content may be used in `split`."""
    return is_held_out(content) == (split == "held_out")


def draw(rng: random.Random, split: Split, make: Callable[[random.Random], T], key: Callable[[T], str]) -> T:
    """Draw from `make` until the content belongs to `split`."""
    while True:
        value = make(rng)
        if belongs_to(key(value), split):
            return value


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def assistant_call(name: str, arguments: dict[str, Any]) -> Message:
    """An assistant message that calls one tool; `arguments` is a JSON string, as in OpenAI's API."""
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    call = {"id": CALL_ID, "type": "function", "function": function}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def tool_answer(content: str) -> Message:
    """What the tool called by `assistant_call` returned."""
    return {"role": "tool", "tool_call_id": CALL_ID, "content": content}


def is_correct(sample: Sample, reply: Reply) -> bool:
    """Check a reply against the sample's expected answer."""
    if sample.check is Check.TOOL_CALL:
        return _calls_of(reply) == [_call_key(call) for call in sample.expected["tool_calls"]]
    if reply.tool_calls or reply.content is None:
        return False
    expected: str = sample.expected["content"]
    if sample.check is Check.JSON:
        try:
            return bool(json.loads(reply.content) == json.loads(expected))
        except json.JSONDecodeError:
            return False
    if sample.check is Check.LAST_NUMBER:
        return re.findall(r"\d+", reply.content)[-1:] == re.findall(r"\d+", expected)[-1:]
    return reply.content.strip() == expected


def _call_key(call: dict[str, Any]) -> tuple[str, Any]:
    function = call["function"]
    return function["name"], json.loads(function["arguments"])


def _calls_of(reply: Reply) -> list[tuple[str, Any]] | None:
    """The calls of a reply, from `tool_calls` or else from Hermes markup in the text; None = malformed."""
    try:
        if reply.tool_calls:
            return [_call_key(call) for call in reply.tool_calls]
        text = (reply.content or "").strip()
        if not (text.startswith("<tool_call>") and text.endswith("</tool_call>")):
            return None
        call = json.loads(text.removeprefix("<tool_call>").removesuffix("</tool_call>"))
        return [(call["name"], call["arguments"])]
    except (KeyError, TypeError, ValueError):
        return None
