"""Does a chat template take a message's content as a string, or as a list of parts?

OpenAI's API allows both. Hugging Face templates do not say which they expect, so their syntax tree is
searched, as vLLM does, for a loop over a message's content: `for part in message['content']`. The search
follows assignments (`set loop_messages = messages[1:]`) and macro arguments by name but not by scope, and
looks through filters, tests and slices.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from jinja2 import nodes

ContentFormat = Literal["string", "openai"]


def detect_content_format(template: nodes.Template) -> ContentFormat:
    """ "openai" if the template loops over the parts of a message's content, otherwise "string"."""
    messages = _aliases(template, {"messages"}, lambda node: False)
    message = {
        loop.target.name
        for loop in template.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and _is_name(loop.iter, messages)
    }
    content = _aliases(template, set(), lambda node: _is_content(node, message))
    loops_over_parts = any(
        _is_content(loop.iter, message) or _is_name(loop.iter, content) for loop in template.find_all(nodes.For)
    )
    return "openai" if loops_over_parts else "string"


def tests_for_strings(template: nodes.Template) -> bool:
    """True if the template asks of anything whether it `is string`, as those do that take both formats."""
    return any(test.name == "string" for test in template.find_all(nodes.Test))


def _aliases(template: nodes.Template, names: set[str], is_source: Callable[[nodes.Node], bool]) -> set[str]:
    """`names` and every name that is assigned, or passed as a macro's argument, one of them or a source."""
    macros = {macro.name: macro for macro in template.find_all(nodes.Macro)}
    bindings = [
        (assign.target.name, assign.node)
        for assign in template.find_all(nodes.Assign)
        if isinstance(assign.target, nodes.Name)
    ]
    for call in template.find_all(nodes.Call):
        if isinstance(call.node, nodes.Name) and call.node.name in macros:
            parameters = macros[call.node.name].args
            bindings += [(parameter.name, value) for parameter, value in zip(parameters, call.args, strict=False)]
    names = set(names)
    while True:
        found = {name for name, value in bindings if is_source(value) or _is_name(value, names)}
        if found <= names:
            return names
        names |= found


def _is_name(node: nodes.Node, names: set[str]) -> bool:
    node = _unwrapped(node)
    return isinstance(node, nodes.Name) and node.name in names


def _is_content(node: nodes.Node, message: set[str]) -> bool:
    """True for `m.content` and `m['content']` of a message m."""
    node = _unwrapped(node)
    if isinstance(node, nodes.Getattr):
        return node.attr == "content" and _is_name(node.node, message)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        return node.arg.value == "content" and _is_name(node.node, message)
    return False


def _unwrapped(node: nodes.Node) -> nodes.Node:
    """A node without the filters, tests and slices around it."""
    while True:
        inner = node.node if isinstance(node, nodes.Filter | nodes.Test) else None
        if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            inner = node.node
        if inner is None:
            return node
        node = inner
