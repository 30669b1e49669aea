"""What rendering a chat template may use: a budget of text and time, and what each operation takes of it.

Knows Python's strings, lists and numbers, and the names of Jinja's filters. The environment that asks before
each operation is `template_sandbox`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from jinja2.exceptions import SecurityError

_MAX_INTEGER_BITS = 4096

# A width or precision of three digits or more, or one taken from an argument; and an expanded field spec.
WIDE_PERCENT_FIELD = re.compile(r"%(\(\w*\))?[-+ #0-9.]*(\*|[0-9]{3})")
WIDE_BRACE_FIELD = re.compile(r"\{[^{}]*:[^{}]*(\{|[0-9]{3})")


@dataclass
class RenderBudget:
    """What one rendering may still use.

    max_chars: the longest string (in characters) or list (in items)
    total_chars: characters that all strings together may still take; falls as they are made
    deadline: on the `time.monotonic` clock, in seconds
    """

    max_chars: int
    total_chars: int
    deadline: float

    def spend(self, chars: int = 0) -> None:
        """Account for a string of `chars` characters about to be made; SecurityError if it may not be."""
        self.total_chars -= chars
        self.check_length(chars)
        if self.total_chars < 0:
            raise SecurityError("the template makes too much text in between")
        if time.monotonic() > self.deadline:
            raise SecurityError("the template takes too long to render")

    def spend_as_text(self, value: object) -> None:
        """Account for `str(value)` before it is made."""
        self.spend(_text_length(value, self.max_chars))

    def check_length(self, chars: int) -> None:
        """SecurityError if a string of `chars` characters, or a list of as many items, is too long."""
        if chars > self.max_chars:
            raise SecurityError(f"the template makes more text than the limit of {self.max_chars} characters")


# The budget of the rendering in progress in this thread or task; unset while templates are compiled.
budget: ContextVar[RenderBudget] = ContextVar("budget")


def bounded_join(separator: str, items: Iterable[object]) -> str:
    """`separator.join(items)`, of the items as text, within the budget."""
    limits = budget.get()
    pieces = []
    length = 0
    for item in items:
        limits.spend_as_text(item)
        pieces.append(str(item))
        length += len(pieces[-1]) + len(separator)
        limits.check_length(length)
    return separator.join(pieces)


def spend_on_binop(operator: str, left: Any, right: Any) -> None:
    """Spend what `left operator right` makes: characters, or items of a list; or refuse too large a number."""
    limits = budget.get()
    sequences = (str, list, tuple)
    if operator == "+" and isinstance(left, sequences) and isinstance(right, sequences):
        limits.spend(len(left) + len(right))
    elif operator == "%" and isinstance(left, str):
        spend_on_format(left, "%", WIDE_PERCENT_FIELD, [right])
    elif operator == "*" and isinstance(left, sequences) and isinstance(right, int):
        limits.spend(len(left) * max(right, 0))
    elif operator == "*" and isinstance(left, int) and isinstance(right, sequences):
        limits.spend(len(right) * max(left, 0))
    elif operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * max(right, 0) if operator == "**" else left.bit_length() + right.bit_length()
        if bits > _MAX_INTEGER_BITS:
            raise SecurityError(f"the template makes an integer of more than {_MAX_INTEGER_BITS} bits")


def spend_on_format(template: str, mark: str, wide_field: re.Pattern[str], arguments: list[Any]) -> None:
    """Spend what formatting can make at most: every field, each begun by `mark`, shows all arguments."""
    if wide_field.search(template):
        raise SecurityError("a field of a format string is wider than 99 characters")
    limits = budget.get()
    limits.spend(len(template) + template.count(mark) * (99 + _text_length(arguments, limits.max_chars)))


# Below: upper bounds of the text that a str method or a filter makes, from its arguments.


def no_cost(*_: Any, **__: Any) -> int:
    """For what makes no more text than it is given."""
    return 0


def _refuse(*_: Any, **__: Any) -> int:
    raise SecurityError("this method or filter is not available to chat templates")


def _text_cost(value: Any, *_: Any, **__: Any) -> int:
    """For what makes text of a value and leaves it about as long. A string is already paid for."""
    return 0 if isinstance(value, str) else _text_length(value, budget.get().max_chars)


def _json_cost(value: Any, *arguments: Any, **named: Any) -> int:
    if _width_cost(value, *arguments, **named) > 99 or _text_length((arguments, named), 999) > 99:
        raise SecurityError("tojson cannot indent by more than 99 characters")
    return 99 + _text_length(value, budget.get().max_chars)


def _format_cost(template: Any, *arguments: Any, **named: Any) -> int:
    spend_on_format(str(template), "%", WIDE_PERCENT_FIELD, [*arguments, *named.values()])
    return 0


def _width_cost(value: Any, *arguments: Any, **named: Any) -> int:
    """For what pads to a width, whichever argument that is."""
    numbers: list[int] = [number for number in (*arguments, *named.values()) if isinstance(number, int)]
    return max(numbers, default=0)


def _indent_cost(text: Any, *arguments: Any, **named: Any) -> int:
    """For what puts a width, or a string, before each line or in place of each tab."""
    strings = [len(string) for string in (*arguments, *named.values()) if isinstance(string, str)]
    shown = str(text)
    places = 1 + shown.count("\n") + shown.count("\t")
    return len(shown) + places * max(_width_cost(text, *arguments, **named), *strings, 8)


def _replace_cost(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
    return len(str(text)) + str(text).count(str(old)) * len(str(new))


METHOD_COSTS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill"), _width_cost),
    "expandtabs": _indent_cost,
    "replace": _replace_cost,
    "translate": _refuse,
}

FILTER_COSTS: dict[str, Callable[..., int]] = {
    **dict.fromkeys(("batch", "center", "slice"), _width_cost),
    **dict.fromkeys(("capitalize", "e", "escape", "forceescape", "lower", "pprint", "safe", "string"), _text_cost),
    **dict.fromkeys(("striptags", "title", "trim", "truncate", "upper", "urlencode", "wordcount"), _text_cost),
    **dict.fromkeys(("urlize", "wordwrap", "xmlattr"), _refuse),
    "format": _format_cost,
    "indent": _indent_cost,
    "replace": _replace_cost,
    "tojson": _json_cost,
}


def _text_length(value: object, limit: int) -> int:
    """About the length of `str(value)`; exact for strings, and only "more than limit" beyond that.

    Lists within lists are walked, not printed: a few of them can hold one another 2**99 times.
    """
    length = 0
    unseen = [value]
    while unseen and length <= limit:
        item = unseen.pop()
        length += len(item) if isinstance(item, str) else 2
        if isinstance(item, list | tuple):
            unseen += item
        elif isinstance(item, dict):
            unseen += [*item.keys(), *item.values()]
    return length
