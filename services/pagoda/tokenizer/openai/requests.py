"""The JSON that clients send, read straight into structs.

Unknown fields are ignored, as OpenAI's servers and vLLM do; null means absent. Fields of type Any under "refused"
are read only to be refused: see `parameters`.
"""

from __future__ import annotations

import re
from typing import Any, Generic, TypeVar

import msgspec

from pagoda.errors import InvalidArgumentError

T = TypeVar("T")

_JsonObject = dict[str, Any]


class StreamOptions(msgspec.Struct):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerateRequest(msgspec.Struct, kw_only=True):
    """What chat completions and completions have in common."""

    model: str | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    # vLLM's.
    top_k: int | None = None
    min_p: float | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    priority: int | None = None
    cache_salt: str | None = None
    request_id: str | None = None
    return_token_ids: bool | None = None
    # Refused.
    frequency_penalty: Any = None
    presence_penalty: Any = None
    repetition_penalty: Any = None
    length_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    prompt_logprobs: Any = None
    response_format: Any = None
    structured_outputs: Any = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    use_beam_search: Any = None
    bad_words: Any = None
    allowed_token_ids: Any = None
    logits_processors: Any = None
    truncate_prompt_tokens: Any = None
    spaces_between_special_tokens: Any = None


class ChatCompletionRequest(GenerateRequest, kw_only=True):
    messages: list[_JsonObject]
    max_completion_tokens: int | None = None
    tools: list[_JsonObject] | None = None
    tool_choice: str | _JsonObject | None = None
    reasoning_effort: str | None = None
    # vLLM's.
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: _JsonObject | None = None
    # Refused.
    chat_template: Any = None
    documents: Any = None
    mm_processor_kwargs: Any = None
    top_logprobs: Any = None
    functions: Any = None
    function_call: Any = None
    modalities: Any = None
    audio: Any = None
    web_search_options: Any = None


class CompletionRequest(GenerateRequest, kw_only=True):
    prompt: str | list[str | int | list[int]]
    # OpenAI's default for this endpoint; null means as many as the context has room for.
    max_tokens: int | None = 16
    echo: bool | None = None
    add_special_tokens: bool | None = None
    best_of: int | None = None
    # Refused.
    suffix: Any = None
    prompt_embeds: Any = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """A prompt or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[_JsonObject] | None = None
    tools: list[_JsonObject] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    add_special_tokens: bool | None = None
    chat_template_kwargs: _JsonObject | None = None
    return_token_strs: bool | None = None
    # Refused.
    chat_template: Any = None
    mm_processor_kwargs: Any = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    tokens: list[int]
    model: str | None = None


class BodyDecoder(Generic[T]):
    """Reads bodies into one type; what is wrong with a body is an InvalidArgumentError that names the field."""

    def __init__(self, kind: type[T]) -> None:
        self._decoder = msgspec.json.Decoder(kind)

    def decode(self, body: bytes) -> T:
        try:
            return self._decoder.decode(body)
        except msgspec.ValidationError as error:
            raise _wrong_type(str(error)) from error
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidArgumentError(
                f"We could not parse the JSON body of your request: {error}.", reason="INVALID_JSON"
            ) from error


# "Expected `int | null`, got `str` - at `$.messages[0].n`", and the like.
_PLACE = re.compile(r"(?P<problem>.*?)(?: - at `(?P<key>key in )?\$\.?(?P<path>.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`")


def _wrong_type(message: str) -> InvalidArgumentError:
    match = _PLACE.fullmatch(message)
    assert match is not None, "the pattern matches any text"
    problem, path = match["problem"], match["path"] or ""
    if missing := _MISSING.fullmatch(problem):
        param = f"{path}.{missing[1]}" if path else missing[1]
        return InvalidArgumentError(
            f"Missing required parameter: '{param}'.", reason="MISSING_REQUIRED_PARAMETER", param=param
        )
    problem = problem.replace("`", "").replace("Expected", "expected").replace(", got", ", but got")
    where = f"type for '{path}'" if path else "request body"
    return InvalidArgumentError(f"Invalid {where}: {problem}.", reason="INVALID_TYPE", param=path or None)
