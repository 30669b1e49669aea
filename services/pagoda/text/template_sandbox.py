"""The Jinja environment chat templates run in: Hugging Face's dialect, and bounds on time and memory.

Jinja's sandbox keeps a template from Python's internals and bounds `range` at 100,000 numbers; it does not
keep it from `"a" * 10**10` or from nested loops. Bounded here, by one `RenderBudget` per rendering:

- the length of the output, and of each string or list that `+`, `*`, `~`, a macro, a block, or a filter or
  method that can amplify makes; a list counts, where it is made into text, with all that it holds;
- the characters all of those make together, so that many long strings cannot add up either;
- the time, looked at in every loop iteration, call, filter and piece of output;
- the size of integers that `*` and `**` make, and field widths in format strings.

Not bounded is what Python does inside one step on values that passed (sorting a list of 100,000 numbers, or
comparing lists that hold one another many times over), so a template from an unknown author still deserves a
process that may be lost.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
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

from pagoda.text.template_limits import (
    FILTER_COSTS,
    METHOD_COSTS,
    WIDE_BRACE_FIELD,
    bounded_join,
    budget,
    no_cost,
    spend_on_binop,
    spend_on_format,
)


class TemplateSandbox(ImmutableSandboxedEnvironment):
    """The environment of transformers' `apply_chat_template`, bounded by `budget`.

    Like there: blocks are trimmed, `break` and `continue` exist, `tojson` neither escapes HTML nor non-ASCII,
    and `raise_exception`, `strftime_now` and `{% generation %}` are known.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, finalize=_finalize, extensions=[_GenerationTag, loopcontrols]
        )
        self.filters.update(tojson=_tojson, join=_join)
        self.filters.update({name: _bounded(name, function) for name, function in self.filters.items()})
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, namespace=_Namespace)
        del self.globals["lipsum"]

    def concat(self, pieces: Iterable[str]) -> str:
        """Join what a template, macro or block has put out; Jinja joins pieces nowhere else."""
        return bounded_join("", pieces)

    def join_operands(self, *operands: object) -> str:
        """What `a ~ b` does, bounded."""
        return bounded_join("", operands)

    def check_time(self) -> None:
        """Called by each loop iteration."""
        budget.get().spend()

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        spend_on_binop(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def call(self, context: Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        receiver = getattr(function, "__self__", None)
        cost: Callable[..., int] = no_cost
        if isinstance(receiver, str):
            if function.__name__ == "join":
                return bounded_join(receiver, *args)
            cost = METHOD_COSTS.get(function.__name__, no_cost)
        budget.get().spend(cost(receiver, *args, **kwargs))
        return super().call(context, function, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        wrapper = super().wrap_str_format(value)
        if wrapper is None:
            return None

        @functools.wraps(wrapper)
        def bounded(*args: Any, **kwargs: Any) -> str:
            spend_on_format(value.__self__, "{", WIDE_BRACE_FIELD, [*args, *kwargs.values()])
            return wrapper(*args, **kwargs)

        return bounded

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


@jinja2.pass_context  # and so never called while a template is compiled, when there is no budget
def _finalize(context: Context, value: Any) -> Any:
    """Called with the value of each `{{ ... }}`, before it becomes text."""
    if not isinstance(value, str):
        budget.get().spend_as_text(value)
    return value


@jinja2.pass_environment
def _join(environment: jinja2.Environment, items: Iterable[Any], separator: object = "", attribute: Any = None) -> str:
    if attribute is not None:
        items = map(make_attrgetter(environment, attribute), items)
    return bounded_join(str(separator), items)


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


def _bounded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that spends the budget before it runs. Keeps Jinja's marks, so it gets the same arguments."""
    cost: Callable[..., int] = FILTER_COSTS.get(name, no_cost)
    # Filters marked by Jinja's pass_context, pass_eval_context or pass_environment get that first.
    num_passed = 1 if hasattr(function, "jinja_pass_arg") else 0

    @functools.wraps(function)
    def bounded(*args: Any, **kwargs: Any) -> Any:
        budget.get().spend(cost(*args[num_passed:], **kwargs))
        return function(*args, **kwargs)

    return bounded
