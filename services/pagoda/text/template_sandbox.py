"""The Jinja environment chat templates run in: Hugging Face's dialect, and bounds on time and memory.

Jinja's sandbox keeps a template from Python's internals and bounds `range` at 100,000 numbers; it does not
keep it from `"a" * 10**10` or from nested loops. Bounded here, by one `RenderBudget` per rendering:

- the length of the output, and of each string or list that `+`, `*`, `~`, a macro, a block or an amplifying
  filter or method makes;
- the characters all of those make together, so that many long strings cannot add up either;
- the time, looked at in every loop iteration, call, filter and piece of output;
- the size of integers that `*` and `**` make, and field widths in format strings.

Not bounded is what Python does inside one step on data of a bounded size (sorting a list of 100,000 numbers).
"""

from __future__ import annotations

import functools
import json
import re
import time
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

_MAX_INTEGER_BITS = 4096

# A width or precision of three digits or more, or one taken from an argument; and an expanded field spec.
_WIDE_PERCENT_FIELD = re.compile(r"%(\(\w*\))?[-+ #0-9.]*(\*|[0-9]{3})")
_WIDE_BRACE_FIELD = re.compile(r"\{[^{}]*:[^{}]*(\{|[0-9]{3})")


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

    def check_length(self, chars: int) -> None:
        """SecurityError if a string of `chars` characters, or a list of as many items, is too long."""
        if chars > self.max_chars:
            raise SecurityError(f"the template makes more text than the limit of {self.max_chars} characters")


# The budget of the rendering in progress in this thread or task; unset while templates are compiled.
budget: ContextVar[RenderBudget] = ContextVar("budget")


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment of transformers' `apply_chat_template`, bounded by `budget`.

    Like there: blocks are trimmed, `break` and `continue` exist, `tojson` neither escapes HTML nor non-ASCII,
    and `raise_exception`, `strftime_now` and `{% generation %}` are known.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols])
        self.filters.update(tojson=_tojson, join=_join)
        self.filters.update({name: _bounded(name, function) for name, function in self.filters.items()})
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace)
        del self.globals["lipsum"]

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a template, macro or block has put out; Jinja joins pieces nowhere else."""
        return _bounded_join("", pieces)

    def join_operands(self, *operands: object) -> str:
        """What `a ~ b` does, bounded."""
        return self.concat(map(str, operands))

    def check_time(self) -> None:
        """Called by each loop iteration."""
        budget.get().spend()

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        budget.get().spend(_binop_cost(operator, left, right))
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        receiver = getattr(function, "__self__", None)
        cost: Callable[..., int] = _no_cost
        if isinstance(receiver, str):
            if function.__name__ == "join":
                return _bounded_join(receiver, *args)
            cost = _METHOD_COSTS.get(function.__name__, _no_cost)
        budget.get().spend(cost(receiver, *args, **kwargs))
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapper = super().wrap_str_format(value)
        if wrapper is not None and _WIDE_BRACE_FIELD.search(value.__self__):
            raise SecurityError("a field of a format string is wider than 99 characters")
        return wrapper

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        template = super()._parse(source, name, filename)
        _replace_concatenations(template)
        for loop in template.find_all(nodes.For):
            check = nodes.Call(nodes.EnvironmentAttribute("check_time"), [], [], None, None, lineno=loop.lineno)
            loop.body.insert(0, nodes.ExprStmt(check, lineno=loop.lineno))
        return template


class _GenerationTag(Extension):
    """`{% generation %}...{% endgeneration %}` marks the assistant's text for training; here it is text."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # Jinja only reads it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


class _Namespace(jinja2.utils.Namespace):
    """Jinja's `namespace()` without attributes that begin with an underscore, as in transformers."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, positional = args[0], args[1:]
        attributes = dict(*positional, **kwargs)
        for name in attributes:
            _check_attribute_name(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_attribute_name(name)
        super().__setitem__(name, value)


def _check_attribute_name(name: str) -> None:
    if name.startswith("_"):
        raise SecurityError(f"a namespace cannot have the attribute {name!r}: it begins with an underscore")


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _bounded_join(separator: str, items: Iterable[object]) -> str:
    limits = budget.get()
    pieces = []
    length = 0
    for item in items:
        piece = str(item)
        length += len(piece) + len(separator)
        limits.spend(len(piece) + len(separator))
        limits.check_length(length)
        pieces.append(piece)
    return separator.join(pieces)


@jinja2.pass_environment
def _join(environment: jinja2.Environment, items: Iterable[Any], separator: object = "", attribute: Any = None) -> str:
    if attribute is not None:
        items = map(make_attrgetter(environment, attribute), items)
    return _bounded_join(str(separator), items)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _replace_concatenations(parent: nodes.Node) -> None:
    """Turn every `a ~ b` below a node into a call of `TemplateSandbox.join_operands`."""
    for field, value in list(parent.iter_fields()):
        if isinstance(value, list):
            setattr(parent, field, [_without_concatenation(item) for item in value])
        else:
            setattr(parent, field, _without_concatenation(value))


def _without_concatenation(node: Any) -> Any:
    if not isinstance(node, nodes.Node):
        return node
    _replace_concatenations(node)
    if not isinstance(node, nodes.Concat):
        return node
    function = nodes.EnvironmentAttribute("join_operands")
    return nodes.Call(function, node.nodes, [], None, None, lineno=node.lineno)


def _binop_cost(operator: str, left: Any, right: Any) -> int:
    """Characters or items that `left operator right` makes; SecurityError for a number that is too large."""
    sequences = (str, list, tuple)
    if operator == "+" and isinstance(left, sequences) and isinstance(right, sequences):
        return len(left) + len(right)
    if operator == "%" and isinstance(left, str):
        return _percent_format_cost(left)
    if operator == "*":
        for sequence, count in ((left, right), (right, left)):
            if isinstance(sequence, sequences) and isinstance(count, int):
                return len(sequence) * max(count, 0)
    if isinstance(left, int) and isinstance(right, int):
        bits = {"*": left.bit_length() + right.bit_length(), "**": left.bit_length() * max(right, 0)}
        if bits.get(operator, 0) > _MAX_INTEGER_BITS:
            raise SecurityError(f"the template makes an integer of more than {_MAX_INTEGER_BITS} bits")
    return 0


def _no_cost(*_: Any, **__: Any) -> int:
    return 0


def _refuse(*_: Any, **__: Any) -> int:
    raise SecurityError("this method or filter is not available to chat templates")


def _percent_format_cost(template: str, *_: Any, **__: Any) -> int:
    if _WIDE_PERCENT_FIELD.search(template):
        raise SecurityError("a field of a format string is wider than 99 characters")
    return len(template)


def _width_cost(value: Any, *arguments: Any, **named: Any) -> int:
    """For what pads to a width, whichever argument that is."""
    return max([number for number in (*arguments, *named.values()) if isinstance(number, int)], default=0)


def _indent_cost(text: Any, *arguments: Any, **named: Any) -> int:
    """For what puts a width, or a string, before each line or in place of each tab."""
    strings = [len(string) for string in (*arguments, *named.values()) if isinstance(string, str)]
    places = str(text).count("\n") + str(text).count("\t") + 1
    return len(str(text)) + places * max(_width_cost(text, *arguments, **named), *strings, 8)


def _replace_cost(text: Any, old: Any, new: Any, *_: Any, **__: Any) -> int:
    return len(str(text)) + str(text).count(str(old)) * len(str(new))


# Upper bounds of the text that a str method, called with (the string, *arguments), makes beyond what it is
# given.
_METHOD_COSTS: dict[str, Callable[..., int]] = {
    "center": _width_cost,
    "ljust": _width_cost,
    "rjust": _width_cost,
    "zfill": _width_cost,
    "expandtabs": _indent_cost,
    "replace": _replace_cost,
    "translate": _refuse,
}

# The same for filters, called with (the filtered value, *arguments).
_FILTER_COSTS: dict[str, Callable[..., int]] = {
    "batch": _width_cost,
    "center": _width_cost,
    "format": _percent_format_cost,
    "indent": _indent_cost,
    "replace": _replace_cost,
    "slice": _width_cost,
    "urlize": _refuse,
    "wordwrap": _refuse,
    "xmlattr": _refuse,
}


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that spends the budget before it runs. Keeps Jinja's marks, so it gets the same arguments."""
    cost: Callable[..., int] = _FILTER_COSTS.get(name, _no_cost)
    # Filters marked by Jinja's pass_context, pass_eval_context or pass_environment get that first.
    num_passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget.get().spend(cost(*args[num_passed:], **kwargs))
        return function(*args, **kwargs)

    return bounded
