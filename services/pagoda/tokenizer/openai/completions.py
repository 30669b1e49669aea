"""/v1/completions."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any, cast

from google.api.httpbody_pb2 import HttpBody

from pagoda.errors import InvalidArgumentError
from pagoda.tokenizer.caller import Caller
from pagoda.tokenizer.completion import Delta
from pagoda.tokenizer.generation import Engine, Generation
from pagoda.tokenizer.limits import MAX_PROMPTS, check_length
from pagoda.tokenizer.models import ServedModel
from pagoda.tokenizer.openai.answer import answer
from pagoda.tokenizer.openai.parameters import to_generation, unsupported
from pagoda.tokenizer.openai.requests import BodyDecoder, CompletionRequest
from pagoda.tokenizer.openai.responses import (
    CompletionChoice,
    Envelope,
    TextCompletion,
    Usage,
    envelope,
    finish_reason,
)
from pagoda.tokenizer.prompts import Prompt, TextPrompt, TokensPrompt

_decoder = BodyDecoder(CompletionRequest)


class Completions:
    """The endpoint."""

    def __init__(self, engine: Engine, model: ServedModel) -> None:
        self._engine = engine
        self._model = model

    def respond(self, body: bytes, caller: Caller) -> AsyncGenerator[HttpBody, None]:
        """The answer to a request's JSON. Raises PagodaError, now or when iterated."""
        request = _decoder.decode(body)
        model_name = self._model.resolve(request.model)
        generation_request = to_generation(request, _prompts(request), request.max_tokens, caller, len(body))

        def make_format(generation: Generation) -> CompletionFormat:
            common = envelope("cmpl", generation_request.request_id, model_name, self._engine.fingerprint)
            echoes = self._echoes(generation) if request.echo else []
            return CompletionFormat(common, generation, echoes=echoes, return_token_ids=bool(request.return_token_ids))

        return answer(self._engine, generation_request, request, make_format)

    def _echoes(self, generation: Generation) -> list[str]:
        """Each prompt's text, as it was sent or as its tokens read."""
        decode = self._engine.encoder.tokenizer.decode
        return [decode(prompt.token_ids) if prompt.text is None else prompt.text for prompt in generation.prompts]


def _prompts(request: CompletionRequest) -> list[Prompt]:
    """The prompts in a request: a text, texts, token ids, or lists of them."""
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise unsupported("best_of", ", except when it equals n")
    given = request.prompt
    add_special_tokens = request.add_special_tokens is not False
    if isinstance(given, str):
        return [TextPrompt(given, add_special_tokens)]
    check_length("prompt", given, 1, 2**30)
    kinds = {type(item) for item in given}
    if kinds == {int}:
        return [TokensPrompt(cast(Sequence[int], given))]
    check_length("prompt", given, 1, MAX_PROMPTS)
    if kinds == {str}:
        return [TextPrompt(text, add_special_tokens) for text in cast(Sequence[str], given)]
    if kinds == {list}:
        return [TokensPrompt(token_ids) for token_ids in cast(Sequence[list[int]], given)]
    raise InvalidArgumentError(
        "Invalid type for 'prompt': expected a string, an array of strings, an array of token ids, or an array of "
        "arrays of token ids, but got a mixture.",
        reason="INVALID_TYPE",
        param="prompt",
    )


class CompletionFormat:
    """Completions as OpenAI words them.

    common: what every answer and event begins with
    echoes: the text of each prompt, to begin its completions with; empty for none
    """

    def __init__(
        self, common: Envelope, generation: Generation, *, echoes: Sequence[str], return_token_ids: bool
    ) -> None:
        self._common = common
        self._prompts = generation.prompts
        self._n = len(generation.completions) // len(generation.prompts)
        self._echoes = echoes
        self._return_token_ids = return_token_ids
        self._opened: set[int] = set()

    def document(self, deltas: list[Delta], usage: Usage) -> TextCompletion:
        return self._completion([self._choice(delta) for delta in deltas], usage)

    def events(self, delta: Delta, usage: Any) -> Iterator[TextCompletion]:
        choice = self._choice(delta)
        if choice.text or delta.end is not None or self._return_token_ids:
            yield self._completion([choice], usage)

    def last_event(self, usage: Usage) -> TextCompletion:
        return self._completion([], usage)

    def _completion(self, choices: list[CompletionChoice], usage: Any) -> TextCompletion:
        return TextCompletion(**self._common, object="text_completion", choices=choices, usage=usage)

    def _choice(self, delta: Delta) -> CompletionChoice:
        choice = CompletionChoice(text=delta.text, index=delta.index)
        prompt = delta.index // self._n
        if delta.index not in self._opened:
            self._opened.add(delta.index)
            if self._echoes:
                choice.text = self._echoes[prompt] + choice.text
            if self._return_token_ids:
                choice.prompt_token_ids = list(self._prompts[prompt].token_ids)
        if self._return_token_ids:
            choice.token_ids = delta.token_ids
        if delta.end is not None:
            choice.finish_reason = finish_reason(delta.end.reason)
            if delta.end.stopped_by is not None:
                choice.stop_reason = delta.end.stopped_by
        return choice
