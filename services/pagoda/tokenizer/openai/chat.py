"""/v1/chat/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

from google.api.httpbody_pb2 import HttpBody

from pagoda.errors import InvalidArgumentError
from pagoda.tokenizer.caller import Caller
from pagoda.tokenizer.generation import Engine, Generation
from pagoda.tokenizer.limits import MAX_MESSAGES, check_integer, check_length
from pagoda.tokenizer.models import ServedModel
from pagoda.tokenizer.openai.answer import answer
from pagoda.tokenizer.openai.chat_format import ChatFormat
from pagoda.tokenizer.openai.parameters import to_generation, unsupported
from pagoda.tokenizer.openai.requests import BodyDecoder, ChatCompletionRequest, TokenizeRequest
from pagoda.tokenizer.openai.responses import envelope
from pagoda.tokenizer.prompts import ChatPrompt

_decoder = BodyDecoder(ChatCompletionRequest)


class ChatCompletions:
    """The endpoint. role: of the messages it answers with"""

    def __init__(self, engine: Engine, model: ServedModel, role: str) -> None:
        self._engine = engine
        self._model = model
        self._role = role

    def respond(self, body: bytes, caller: Caller) -> AsyncGenerator[HttpBody, None]:
        """The answer to a request's JSON. Raises PagodaError, now or when iterated."""
        request = _decoder.decode(body)
        model_name = self._model.resolve(request.model)
        max_tokens = request.max_tokens
        if request.max_completion_tokens is not None:
            check_integer("max_completion_tokens", request.max_completion_tokens, 1)
            max_tokens = request.max_completion_tokens
        generation_request = to_generation(request, [_prompt(request)], max_tokens, caller, len(body))

        def make_format(generation: Generation) -> ChatFormat:
            common = envelope("chatcmpl", generation_request.request_id, model_name, self._engine.fingerprint)
            return ChatFormat(common, generation, role=self._role, return_token_ids=bool(request.return_token_ids))

        return answer(self._engine, generation_request, request, make_format)


def _prompt(request: ChatCompletionRequest) -> ChatPrompt:
    """The conversation, without tools the caller turned off."""
    if request.tool_choice not in (None, "auto", "none"):
        raise unsupported("tool_choice", ": only 'auto' and 'none' are")
    if request.tool_choice == "none":
        request.tools = None
    if request.reasoning_effort is not None:
        kwargs = request.chat_template_kwargs or {}
        request.chat_template_kwargs = {"reasoning_effort": request.reasoning_effort, **kwargs}
    return chat_prompt(request)


def chat_prompt(request: ChatCompletionRequest | TokenizeRequest) -> ChatPrompt:
    """The conversation in a request, for the template."""
    messages = request.messages or []
    check_length("messages", messages, 1, MAX_MESSAGES)
    for index, tool in enumerate(request.tools or ()):
        _check_tool(tool, f"tools[{index}]")
    return ChatPrompt(
        messages=messages,
        tools=request.tools or None,
        add_generation_prompt=request.add_generation_prompt is not False,
        continue_final_message=bool(request.continue_final_message),
        add_special_tokens=bool(request.add_special_tokens),
        template_kwargs=request.chat_template_kwargs or {},
    )


def _check_tool(tool: dict[str, Any], param: str) -> None:
    function = tool.get("function")
    if tool.get("type", "function") != "function" or not isinstance(function, dict):
        raise InvalidArgumentError(
            f"Invalid '{param}': expected an object with the type 'function' and a function.",
            reason="INVALID_VALUE",
            param=param,
        )
    if not isinstance(function.get("name"), str) or not function["name"]:
        raise InvalidArgumentError(
            f"Missing required parameter: '{param}.function.name'.",
            reason="MISSING_REQUIRED_PARAMETER",
            param=f"{param}.function.name",
        )
