"""Calling a tool that the system prompt describes, and telling its result."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pagoda.bundled.tasks.base import (
    Check,
    Message,
    Sample,
    Split,
    assistant,
    assistant_call,
    belongs_to,
    tool_answer,
    user,
)
from pagoda.bundled.tasks.words import CITIES, ITEMS, NAMES, NOUNS

Arguments = dict[str, Any]


@dataclass(frozen=True)
class ToolCase:
    """A tool's schema with one request for it."""

    schema: dict[str, Any]
    request: str
    arguments: Arguments
    result: Arguments
    report: str
    """What the assistant says about `result`."""

    @property
    def name(self) -> str:
        name: str = self.schema["function"]["name"]
        return name


def _schema(name: str, description: str, types: dict[str, str]) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in types.items()}
    parameters = {"type": "object", "properties": properties, "required": list(types)}
    return {
        "type": "function",
        "function": {"name": name, "description": description, "parameters": parameters},
    }


def _weather(rng: random.Random) -> ToolCase:
    city, key = rng.choice(CITIES), rng.choice(("city", "location"))
    degrees, sky = rng.randint(2, 35), rng.choice(("sunny", "cloudy", "rainy", "windy"))
    request = rng.choice(
        ("What is the weather in {}?", "How is the weather in {} today?", "Tell me the weather in {}.")
    ).format(city)
    return ToolCase(
        _schema("get_weather", "Get the weather of a city", {key: "string"}),
        request,
        {key: city},
        {"temperature": degrees, "sky": sky},
        f"It is {sky} and {degrees} degrees in {city}.",
    )


def _time(rng: random.Random) -> ToolCase:
    city, clock = rng.choice(CITIES), f"{rng.randint(10, 23)}:{rng.randint(10, 59)}"
    request = rng.choice(("What time is it in {}?", "Tell me the time in {}.")).format(city)
    return ToolCase(
        _schema("get_time", "Get the time in a city", {"city": "string"}),
        request,
        {"city": city},
        {"time": clock},
        f"It is {clock} in {city}.",
    )


def _message(rng: random.Random) -> ToolCase:
    name, text = rng.choice(NAMES), " ".join(rng.choices(NOUNS, k=rng.randint(1, 4)))
    request = rng.choice(("Send {} the message: {}", "Write to {}: {}")).format(name, text)
    return ToolCase(
        _schema("send_message", "Send a message to a person", {"to": "string", "text": "string"}),
        request,
        {"to": name, "text": text},
        {"status": "sent"},
        f"I sent the message to {name}.",
    )


def _alarm(rng: random.Random) -> ToolCase:
    hour, minute = rng.randint(0, 23), rng.randint(10, 59)
    request = rng.choice(("Set an alarm for {}:{}.", "Wake me up at {}:{}.")).format(hour, minute)
    return ToolCase(
        _schema("set_alarm", "Set an alarm", {"hour": "integer", "minute": "integer"}),
        request,
        {"hour": hour, "minute": minute},
        {"status": "set"},
        f"The alarm is set for {hour}:{minute}.",
    )


def _order(rng: random.Random) -> ToolCase:
    item, count = rng.choice(ITEMS), rng.randint(2, 99)
    request = rng.choice(("Order {1} {0}.", "Please buy {1} {0} for me.")).format(item, count)
    return ToolCase(
        _schema("order", "Order items from the shop", {"item": "string", "count": "integer"}),
        request,
        {"item": item, "count": count},
        {"status": "ordered"},
        f"I ordered {count} {item}.",
    )


def _any_tool(rng: random.Random) -> ToolCase:
    """A tool whose names are random words: its name and keys can only be read from the prompt."""
    verb = rng.choice(("get", "set", "find", "open", "read", "send"))
    name = f"{verb}_{rng.choice(NOUNS)}"
    keys = rng.sample(("name", "count", "item", "text", "to", "hour", "city", "color", "id", "key"), rng.randint(1, 2))
    values: list[str | int] = [rng.choice((rng.choice(NOUNS), rng.randint(2, 99))) for _ in keys]
    schema = _schema(
        name,
        f"Use the {name}",
        {key: "integer" if isinstance(value, int) else "string" for key, value in zip(keys, values, strict=True)},
    )
    pairs = " and ".join(f"{key} {value}" for key, value in zip(keys, values, strict=True))
    return ToolCase(
        schema,
        f"Call {name} with {pairs}.",
        dict(zip(keys, values, strict=True)),
        {"status": "done"},
        "It is done.",
    )


_CASES: tuple[Callable[[random.Random], ToolCase], ...] = (_weather, _time, _message, _alarm, _order, _any_tool)
MAX_TOOLS = 3


def tool_cases(rng: random.Random, split: Split) -> list[ToolCase]:
    """The tools of one system prompt: one to MAX_TOOLS distinct ones, all of their calls in `split`."""
    return [_draw_case(rng, split, make) for make in rng.sample(_CASES, rng.randint(1, MAX_TOOLS))]


def _draw_case(rng: random.Random, split: Split, make: Callable[[random.Random], ToolCase]) -> ToolCase:
    while True:
        case = make(rng)
        if belongs_to(f"{case.name} {json.dumps(case.arguments)}", split):
            return case


def case_messages(rng: random.Random, case: ToolCase, with_result: bool) -> list[Message]:
    """The request and the call; `with_result` adds the tool's answer and what the assistant makes of it."""
    messages = [user(case.request), assistant_call(case.name, case.arguments)]
    if with_result:
        messages += [tool_answer(json.dumps(case.result)), assistant(case.report)]
    return messages


def tool_call(rng: random.Random, split: Split) -> Sample:
    """Choose the right tool of those offered and call it."""
    cases = tool_cases(rng, split)
    case = rng.choice(cases)
    messages = case_messages(rng, case, with_result=False)
    return Sample("tool_call", tuple(messages), Check.TOOL_CALL, tuple(c.schema for c in cases))


def tool_result(rng: random.Random, split: Split) -> Sample:
    """Tell the user what the called tool returned."""
    cases = tool_cases(rng, split)
    case = rng.choice(cases)
    messages = case_messages(rng, case, with_result=True)
    return Sample("tool_result", tuple(messages), tools=tuple(c.schema for c in cases))
