"""Prompts of every form to token ids, without holding up the event loop.

Short ones are rendered and encoded in place; long ones in a thread, where the tokenizers library releases the GIL.
Knows `pagoda.text`; knows no requests.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pagoda.errors import FailedPreconditionError, InvalidArgumentError
from pagoda.rpc.arrays import pack_u32
from pagoda.text import ChatTemplate, TextTokenizer
from pagoda.tokenizer.limits import check_token_ids

T = TypeVar("T")

# Up to here a prompt takes less of the loop's time (1-2 ms) than a thread switch under load would.
_MAX_BYTES_IN_PLACE = 4096

# Few: what they do outside of the tokenizers library takes turns with the event loop.
_threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="encode")

# Templates write roles between the marks of their turns, where other characters could end a turn.
_ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")

# Names that `ChatTemplate.render` gives its variables itself.
_TEMPLATE_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message", "self"}
)


@dataclass(frozen=True, slots=True)
class TextPrompt:
    """add_special_tokens: put the model's beginning-of-sequence token and the like around it

    param: what the request calls it, in all three forms
    """

    text: str
    add_special_tokens: bool = True
    param: str = "prompt"


@dataclass(frozen=True, slots=True)
class TokensPrompt:
    token_ids: Sequence[int]
    param: str = "prompt"


@dataclass(frozen=True, slots=True)
class ChatPrompt:
    """A conversation for the chat template; messages and tools in OpenAI's JSON."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    param: str = "messages"


Prompt = TextPrompt | TokensPrompt | ChatPrompt


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """
    packed: token_ids as u32[]
    text: what was encoded; None for a prompt that came as token ids
    param: what the request calls it
    """

    token_ids: Sequence[int]
    packed: bytes
    text: str | None
    param: str


async def run_sized(num_bytes: int, work: Callable[[], T]) -> T:
    """Does the work on about `num_bytes` bytes of text or tokens: in place if that is quick, else in a thread."""
    if num_bytes <= _MAX_BYTES_IN_PLACE:
        return work()
    return await asyncio.get_running_loop().run_in_executor(_threads, work)


class PromptEncoder:
    """A model's tokenizer and chat template at work.

    chat_template: Jinja source that replaces the model's own
    """

    def __init__(self, tokenizer: TextTokenizer, chat_template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self._templates = {
            with_tools: None if source is None else ChatTemplate(source, tokenizer.special_tokens)
            for with_tools in (False, True)
            for source in [chat_template or tokenizer.chat_template(tools=with_tools)]
        }
        # A text of n characters has at least n / _longest_token tokens.
        self._longest_token = max(map(len, tokenizer.token_strings(range(tokenizer.max_token_id + 1))))

    async def encode(self, prompts: Sequence[Prompt], num_bytes: int, max_tokens: int) -> list[EncodedPrompt]:
        """Renders and encodes.

        num_bytes: about how large the prompts are, to choose where to work
        max_tokens: prompts that are certainly longer are refused before the work
        """
        return await run_sized(num_bytes, lambda: [self._encode(prompt, max_tokens) for prompt in prompts])

    async def tokenize(self, prompt: TextPrompt, num_bytes: int) -> list[int]:
        """Token ids of a text of any length, also an empty one."""
        return await run_sized(num_bytes, lambda: self.tokenizer.encode(prompt.text, prompt.add_special_tokens))

    async def render(self, chat: ChatPrompt, num_bytes: int) -> str:
        """The text that the model sees of a chat."""
        return await run_sized(num_bytes, lambda: self._render(chat))

    async def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool, param: str) -> str:
        """The text of token ids. param: what the request calls them"""
        check_token_ids(param, token_ids, self.tokenizer.max_token_id + 1)
        return await run_sized(
            4 * len(token_ids), lambda: self.tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
        )

    async def token_strings(self, token_ids: Sequence[int]) -> list[str]:
        """Each token as the vocabulary spells it."""
        return await run_sized(4 * len(token_ids), lambda: self.tokenizer.token_strings(token_ids))

    def _encode(self, prompt: Prompt, max_tokens: int) -> EncodedPrompt:
        match prompt:
            case TokensPrompt():
                check_token_ids(prompt.param, prompt.token_ids, self.tokenizer.max_token_id + 1)
                text, token_ids = None, prompt.token_ids
            case TextPrompt():
                text = prompt.text
                token_ids = self._encode_text(text, prompt, max_tokens)
            case ChatPrompt():
                text = self._render(prompt)
                token_ids = self._encode_text(text, prompt, max_tokens)
        if not token_ids:
            raise InvalidArgumentError(
                "The prompt is empty: send at least one token.", reason="EMPTY_PROMPT", param=prompt.param
            )
        return EncodedPrompt(token_ids, pack_u32(token_ids), text, prompt.param)

    def _encode_text(self, text: str, prompt: TextPrompt | ChatPrompt, max_tokens: int) -> list[int]:
        if len(text) > max_tokens * self._longest_token:
            raise InvalidArgumentError(
                f"This model's maximum context length is {max_tokens} tokens. However, you sent {len(text)} "
                f"characters, which are more than {len(text) // self._longest_token} tokens. Please reduce the length "
                "of the prompt.",
                reason="CONTEXT_LENGTH_EXCEEDED",
                param=prompt.param,
            )
        return self.tokenizer.encode(text, prompt.add_special_tokens)

    def _render(self, chat: ChatPrompt) -> str:
        template = self._templates[bool(chat.tools)]
        if template is None:
            raise FailedPreconditionError(
                "This model has no chat template: use /v1/completions, or start the service with --chat-template.",
                reason="NO_CHAT_TEMPLATE",
            )
        if reserved := sorted(_TEMPLATE_VARIABLES & chat.template_kwargs.keys()):
            raise InvalidArgumentError(
                f"chat_template_kwargs must not set {', '.join(reserved)}: these have parameters of their own.",
                param="chat_template_kwargs",
            )
        for index, message in enumerate(chat.messages):
            _check_role(message.get("role"), f"messages[{index}].role")
        return template.render(
            chat.messages,
            tools=chat.tools or None,
            add_generation_prompt=chat.add_generation_prompt,
            continue_final_message=chat.continue_final_message,
            **chat.template_kwargs,
        )


def _check_role(role: object, param: str) -> None:
    if not isinstance(role, str) or not _ROLE.fullmatch(role):
        raise InvalidArgumentError(
            f"Invalid '{param}': {role!r}. A role is a word such as system, user, assistant or tool.",
            reason="INVALID_VALUE",
            param=param,
        )
