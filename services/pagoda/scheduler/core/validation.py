"""What a request may ask for. Every refusal names the parameter as the client knows it, the bound, and what to do."""

from __future__ import annotations

import math

import numpy as np

from pagoda.errors import InvalidArgumentError
from pagoda.scheduler.core.request import Request
from pagoda.scheduler.core.spec import ModelSpec


def check_parameters(request: Request) -> None:
    """Raises InvalidArgumentError for parameters that no model could serve."""
    sampling = request.sampling
    if not request.token_ids:
        raise InvalidArgumentError(
            "the prompt is empty; send at least one token", reason="EMPTY_PROMPT", param="prompt"
        )
    if not 1 <= request.num_prompt_tokens <= request.num_tokens:
        raise InvalidArgumentError(
            f"num_prompt_tokens must be from 1 to the number of tokens sent ({request.num_tokens}), "
            f"got {request.num_prompt_tokens}",
            param="num_prompt_tokens",
        )
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        raise InvalidArgumentError(f"max_tokens must be at least 1, got {sampling.max_tokens}", param="max_tokens")
    if not (math.isfinite(sampling.temperature) and sampling.temperature >= 0):
        raise InvalidArgumentError(
            f"temperature must be a number of at least 0, got {sampling.temperature:g}", param="temperature"
        )
    if not 0 < sampling.top_p <= 1:
        raise InvalidArgumentError(f"top_p must be in (0, 1], got {sampling.top_p:g}", param="top_p")
    if sampling.top_k < -1:
        raise InvalidArgumentError(
            f"top_k must be at least 1, or 0 or -1 to keep all tokens, got {sampling.top_k}", param="top_k"
        )
    if not 0 <= sampling.min_p <= 1:
        raise InvalidArgumentError(f"min_p must be in [0, 1], got {sampling.min_p:g}", param="min_p")
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        raise InvalidArgumentError(
            f"min_tokens ({sampling.min_tokens}) must not be larger than max_tokens ({sampling.max_tokens})",
            param="min_tokens",
        )


def check_fits(request: Request, model: ModelSpec) -> None:
    """Raises InvalidArgumentError for a request that `model` cannot serve."""
    if (largest := int(np.frombuffer(request.token_ids, dtype=np.uint32).max())) >= model.vocab_size:
        raise InvalidArgumentError(
            f"token id {largest} is outside the model's vocabulary of {model.vocab_size} tokens",
            reason="TOKEN_OUT_OF_VOCABULARY",
            param="prompt",
        )
    if (largest := max(request.sampling.stop_token_ids, default=0)) >= model.vocab_size:
        raise InvalidArgumentError(
            f"stop token id {largest} is outside the model's vocabulary of {model.vocab_size} tokens",
            reason="TOKEN_OUT_OF_VOCABULARY",
            param="stop_token_ids",
        )
    num_prompt, max_tokens, limit = request.num_prompt_tokens, request.sampling.max_tokens, model.max_model_len
    if num_prompt >= limit:
        raise InvalidArgumentError(
            f"This model's maximum context length is {limit} tokens. However, your prompt has {num_prompt} tokens, "
            "which leaves no room for the completion. Please shorten the prompt.",
            reason="CONTEXT_LENGTH_EXCEEDED",
            param="prompt",
        )
    if max_tokens is not None and num_prompt + max_tokens > limit:
        raise InvalidArgumentError(
            f"This model's maximum context length is {limit} tokens. However, you requested "
            f"{num_prompt + max_tokens} tokens ({num_prompt} in the prompt, {max_tokens} in the completion). "
            "Please shorten the prompt or lower max_tokens.",
            reason="CONTEXT_LENGTH_EXCEEDED",
            param="max_tokens",
        )
