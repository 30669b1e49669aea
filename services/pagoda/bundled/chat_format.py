"""The chat template: as Jinja for servers, and as plain Python for the training text. A test holds the two equal."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

IM_START = "<|im_start|>"
IM_END = "<|im_end|>"
END_OF_TEXT = "<|endoftext|>"

# ChatML with Hermes tool markup, as in Qwen2.5 but without its long instructions.
CHAT_TEMPLATE = """\
{%- set system = messages[0].content if messages and messages[0].role == 'system' else '' -%}
{%- if system or tools -%}
<|im_start|>system
{{ system }}
{%- if tools -%}
{{ '\\n\\n' if system else '' }}<tools>
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}</tools>
{%- endif -%}
<|im_end|>
{% endif -%}
{%- for message in messages -%}
{%- if message.role == 'tool' -%}
<|im_start|>tool
<tool_response>
{{ message.content }}
</tool_response><|im_end|>
{% elif not (loop.first and message.role == 'system') -%}
<|im_start|>{{ message.role }}
{{ message.content or '' }}
{%- for call in message.tool_calls or [] -%}
{%- set function = call.function or call -%}
{{ '\\n' if message.content or not loop.first else '' }}<tool_call>
{"name": {{ function.name | tojson }}, "arguments": {{ function.arguments if function.arguments is string \
else function.arguments | tojson }}}
</tool_call>
{%- endfor -%}
<|im_end|>
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}
"""


def system_block(content: str, tools: Sequence[dict[str, Any]]) -> str:
    """The system prompt with the tools it offers; empty where there is neither."""
    if not content and not tools:
        return ""
    text = content
    if tools:
        lines = "".join(json.dumps(tool, ensure_ascii=False) + "\n" for tool in tools)
        text += ("\n\n" if content else "") + f"<tools>\n{lines}</tools>"
    return f"{IM_START}system\n{text}{IM_END}\n"


def assistant_body(message: dict[str, Any]) -> str:
    """What the model itself writes for an assistant message, the end mark aside."""
    parts = [message["content"]] if message.get("content") else []
    for call in message.get("tool_calls") or []:
        function = call["function"]
        name = json.dumps(function["name"])
        parts.append(f'<tool_call>\n{{"name": {name}, "arguments": {function["arguments"]}}}\n</tool_call>')
    return "\n".join(parts)


def segments(messages: Iterable[dict[str, Any]], tools: Sequence[dict[str, Any]] = ()) -> list[tuple[str, bool]]:
    """A conversation as (text, is the model's own) pieces; joined they are the rendered template."""
    messages = list(messages)
    pieces = []
    if messages and messages[0]["role"] == "system":
        pieces.append((system_block(messages[0]["content"], tools), False))
        messages = messages[1:]
    else:
        pieces.append((system_block("", tools), False))
    for message in messages:
        if message["role"] == "assistant":
            pieces.append((f"{IM_START}assistant\n", False))
            pieces.append((assistant_body(message) + IM_END, True))
            pieces.append(("\n", False))
        elif message["role"] == "tool":
            body = f"<tool_response>\n{message['content']}\n</tool_response>"
            pieces.append((f"{IM_START}tool\n{body}{IM_END}\n", False))
        else:
            pieces.append((f"{IM_START}{message['role']}\n{message['content']}{IM_END}\n", False))
    return pieces


def render(
    messages: Iterable[dict[str, Any]],
    tools: Sequence[dict[str, Any]] = (),
    add_generation_prompt: bool = False,
) -> str:
    """The conversation as text."""
    text = "".join(piece for piece, _ in segments(messages, tools))
    return text + (f"{IM_START}assistant\n" if add_generation_prompt else "")
