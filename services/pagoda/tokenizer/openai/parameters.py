"""Parameters that both generating endpoints take: checked, defaults filled in, and refused where not supported.

Nothing that changes the answer is ignored silently: a parameter that this server does not have is refused unless
its value asks for what happens anyway.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from pagoda.errors import InvalidArgumentError
from pagoda.tokenizer import limits
from pagoda.tokenizer.caller import Caller
from pagoda.tokenizer.generation import GenerationRequest
from pagoda.tokenizer.openai.requests import GenerateRequest
from pagoda.tokenizer.prompts import Prompt
from pagoda.v1.common_pb2 import SamplingParams

# Refused parameters -> the values, beside null, that ask for nothing special.
_REFUSED: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "top_logprobs": (0,),
    "prompt_logprobs": (),
    "response_format": ({"type": "text"},),
    "structured_outputs": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_choice": (),
    "guided_grammar": (),
    "use_beam_search": (False,),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "logits_processors": ([],),
    "truncate_prompt_tokens": (),
    "spaces_between_special_tokens": (True,),
    "chat_template": (),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),
    "prompt_embeds": (),
}


def refuse_unsupported(request: msgspec.Struct) -> None:
    """Raises InvalidArgumentError for the first parameter that asks for what this server does not do."""
    for name, harmless in _REFUSED.items():
        value = getattr(request, name, None)
        if value is not None and value not in harmless:
            raise unsupported(name)
    # Chat sends a bool. For completions it is a number, and 0 asks for the chosen tokens' log probabilities.
    logprobs = getattr(request, "logprobs", None)
    if logprobs is not None and logprobs is not False:
        raise unsupported("logprobs")


def unsupported(param: str, detail: str = "") -> InvalidArgumentError:
    """The error for a parameter, or a value of it, that this server does not have."""
    return InvalidArgumentError(
        f"Unsupported parameter: '{param}' is not supported by this server{detail}. Leave it out.",
        reason="UNSUPPORTED_PARAMETER",
        param=param,
    )


def to_generation(
    request: GenerateRequest, prompts: Sequence[Prompt], max_tokens: int | None, caller: Caller, num_bytes: int
) -> GenerationRequest:
    """The request for the engine. Raises InvalidArgumentError for a value out of bounds.

    prompts: in order
    max_tokens: None for all that the context has left
    num_bytes: size of the request's JSON
    """
    refuse_unsupported(request)
    n = 1 if request.n is None else request.n
    limits.check_integer("n", n, 1, limits.MAX_N)
    if request.stream_options is not None and not request.stream:
        raise InvalidArgumentError(
            "The 'stream_options' parameter is only allowed when 'stream' is enabled.", param="stream_options"
        )
    stop = [request.stop] if isinstance(request.stop, str) else request.stop or []
    limits.check_stop(stop)
    for name in ("cache_salt", "request_id", "user"):
        limits.check_length(name, getattr(request, name) or "", 0, limits.MAX_LABEL_CHARS)
    priority = request.priority or 0
    limits.check_integer("priority", priority, -(2**31))
    return GenerationRequest(
        request_id=request.request_id or caller.request_id,
        prompts=prompts,
        sampling=_sampling(request, max_tokens),
        n=n,
        stop=stop,
        include_stop=bool(request.include_stop_str_in_output),
        skip_special_tokens=request.skip_special_tokens is not False,
        priority=priority,
        cache_salt=caller.cache_salt(request.cache_salt or ""),
        # Without keys, clients are who they say they are: good enough to share fairly, not to keep caches apart.
        client_id=caller.client_id or request.user or "",
        num_bytes=num_bytes,
        arrived_at=caller.arrived_at,
        deadline=caller.deadline(),
        traceparent=caller.traceparent,
    )


def _sampling(request: GenerateRequest, max_tokens: int | None) -> SamplingParams:
    # What does not fit the message's types is checked here, the rest on the message.
    for name, value, low in (
        ("max_tokens", max_tokens, 1),
        ("top_k", request.top_k, -1),
        ("min_tokens", request.min_tokens, 0),
        *(("stop_token_ids", token_id, 0) for token_id in request.stop_token_ids or ()),
    ):
        if value is not None:
            limits.check_integer(name, value, low)
    seed = request.seed
    if seed is not None:
        limits.check_integer("seed", seed, -(2**63), 2**64 - 1)
        seed %= 2**64
    sampling = SamplingParams(
        max_tokens=max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        min_p=request.min_p,
        seed=seed,
        stop_token_ids=request.stop_token_ids,
        ignore_eos=bool(request.ignore_eos),
        min_tokens=request.min_tokens or 0,
    )
    limits.check_sampling(sampling)
    return sampling
