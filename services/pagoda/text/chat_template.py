"""A conversation as the one text a model was trained to read, by the model's own Jinja template.

Renders what transformers' `apply_chat_template` renders. Knows messages and templates; the environment the
template runs in, and what it may use there, is `template_sandbox`.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from pagoda.errors import InvalidArgumentError
from pagoda.text.content_format import ContentFormat, detect_content_format, tests_for_strings
from pagoda.text.messages import Message, prepare_messages
from pagoda.text.template_limits import RenderBudget, budget
from pagoda.text.template_sandbox import TemplateSandbox

# Marks where the final message ends in the rendered text; private-use characters, so that no one types it.
# The space at its end shows whether the template trims messages.
_END_MARK = "\ue000end of final message\ue000 "

# How often a text may be copied within a template (through macros, captured blocks, ...) on its way out.
_COPIES = 32


class ChatTemplate:
    """A compiled chat template; immutable, and safe to share between threads.

    source: Jinja
    special_tokens: variables of the template (`bos_token`, ...), as `TextTokenizer.special_tokens` has them
    name: what to call the template in error messages, e.g. the file it is from
    max_chars: bound on the rendered text and on every string within, in characters
    time_limit_s: bound on one rendering, in seconds
    content_format: "openai" if the template handles content given as parts, "string" if it wants a string

    Raises ValueError, naming the template, if the source is not valid Jinja.
    """

    def __init__(
        self,
        source: str,
        special_tokens: Mapping[str, str],
        *,
        name: str = "chat template",
        max_chars: int = 8 * 1024 * 1024,
        time_limit_s: float = 10.0,
    ) -> None:
        self._special_tokens = dict(special_tokens)
        self._max_chars = max_chars
        self._time_limit_s = time_limit_s
        environment = TemplateSandbox()
        try:
            syntax = environment.parse(source)
            self._template = environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"The {name} is not valid Jinja, line {error.lineno}: {error.message}") from error
        except RecursionError as error:
            raise ValueError(f"The {name} is not valid Jinja: it is nested too deeply.") from error
        self.content_format: ContentFormat = detect_content_format(syntax)
        # A template that loops over parts and never asks for a string would loop over a string's characters.
        self._wrap_strings = self.content_format == "openai" and not tests_for_strings(syntax)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        **kwargs: Any,
    ) -> str:
        """The prompt of a conversation. See `prepare_messages` for what becomes of the messages first.

        messages: in OpenAI's JSON; at least one, of text only
        tools: JSON schemas of functions, in OpenAI's JSON
        documents: for templates with retrieval: objects with a title and a text
        add_generation_prompt: end with the header of the assistant's answer
        continue_final_message: end with the text of the final message, open, for the model to go on; excludes
            add_generation_prompt
        kwargs: further variables of the template; they win over special tokens of the same name

        Raises InvalidArgumentError: a message is malformed, or (reason CHAT_TEMPLATE_ERROR) the template
        refuses the conversation or exceeds a bound.
        """
        if continue_final_message and add_generation_prompt:
            raise InvalidArgumentError(
                "continue_final_message and add_generation_prompt exclude each other: set one to false.",
                param="continue_final_message",
            )
        prepared = prepare_messages(messages, self.content_format, wrap_strings=self._wrap_strings)
        final_text = _mark_end(prepared[-1]) if continue_final_message else None
        variables = {
            **self._special_tokens,
            **kwargs,
            "messages": prepared,
            "tools": None if tools is None else list(tools),
            "documents": None if documents is None else list(documents),
            "add_generation_prompt": add_generation_prompt,
        }
        text = self._render(variables)
        return text if final_text is None else _cut_at_end(text, final_text)

    def _render(self, variables: dict[str, Any]) -> str:
        deadline = time.monotonic() + self._time_limit_s
        token = budget.set(RenderBudget(self._max_chars, self._max_chars * _COPIES, deadline))
        try:
            return self._template.render(variables)
        except Exception as error:
            # A template is a program: with these messages it may do anything wrong that a program can.
            raise InvalidArgumentError(
                f"The model's chat template cannot render these messages: {str(error) or type(error).__name__}",
                reason="CHAT_TEMPLATE_ERROR",
                param="messages",
            ) from error
        finally:
            budget.reset(token)


def _mark_end(message: Message) -> str:
    """Append the end mark to the message's text, in place, and return the text without it."""
    content = message.get("content")
    if isinstance(content, str):
        message["content"] = content + _END_MARK
        return content
    for part in reversed(content or []):
        text: str = part["text"]
        part["text"] = text + _END_MARK
        return text
    raise InvalidArgumentError(
        "continue_final_message is set, but the final message has no content to continue.",
        param="continue_final_message",
    )


def _cut_at_end(rendered: str, final_text: str) -> str:
    """The rendered text up to the end mark; without trailing space if the template trims its messages."""
    end = rendered.rfind(_END_MARK.strip())
    if end < 0 or final_text.strip() not in rendered:
        raise InvalidArgumentError(
            "continue_final_message is set, but this model's chat template does not put the whole text of "
            "the final message into the prompt.",
            reason="CHAT_TEMPLATE_ERROR",
            param="continue_final_message",
        )
    keeps_space = rendered.startswith(_END_MARK, end)
    return rendered[:end] if keeps_space else rendered[:end].rstrip()
