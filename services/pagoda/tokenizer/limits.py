"""Bounds on request parameters, for the typed API and the OpenAI facade alike.

Parameters have the same names in both, so that an error can name the one at fault. Messages and reasons follow
OpenAI's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pagoda.errors import InvalidArgumentError
from pagoda.v1.common_pb2 import SamplingParams

MAX_N = 128
MAX_PROMPTS = 2048
MAX_MESSAGES = 2**20
MAX_STOP_STRINGS = 64
MAX_STOP_STRING_CHARS = 1024
MAX_STOP_TOKEN_IDS = 256
# Salts, client names and request ids.
MAX_LABEL_CHARS = 256

_MAX_U32 = 2**32 - 1
_MAX_I32 = 2**31 - 1


def check_integer(name: str, value: int, low: int, high: int = _MAX_I32) -> None:
    """Raises InvalidArgumentError unless low <= value <= high."""
    if value < low:
        raise _out_of_range("integer", name, value, f"below minimum value. Expected a value >= {low}")
    if value > high:
        raise _out_of_range("integer", name, value, f"above maximum value. Expected a value <= {high}")


def check_decimal(name: str, value: float, low: float, high: float, *, above_low: bool = False) -> None:
    """Raises InvalidArgumentError unless low <= value <= high (low < value with above_low)."""
    if math.isnan(value) or value < low or (above_low and value == low):
        bound = f"> {low:g}" if above_low else f">= {low:g}"
        raise _out_of_range("decimal", name, value, f"below minimum value. Expected a value {bound}")
    if value > high:
        raise _out_of_range("decimal", name, value, f"above maximum value. Expected a value <= {high:g}")


def check_length(name: str, items: Sequence[object], low: int, high: int) -> None:
    """Raises InvalidArgumentError unless a list (or a string) has between `low` and `high` items (characters)."""
    kind = "string" if isinstance(items, str) else "array"
    if len(items) < low:
        raise InvalidArgumentError(
            f"Invalid '{name}': empty {kind}. Expected a minimum length of {low}.",
            reason=f"EMPTY_{kind.upper()}",
            param=name,
        )
    if len(items) > high:
        raise InvalidArgumentError(
            f"Invalid '{name}': {kind} too long. Expected a maximum length of {high}, but got {len(items)}.",
            reason=f"{kind.upper()}_ABOVE_MAX_LENGTH",
            param=name,
        )


def check_sampling(sampling: SamplingParams) -> None:
    """Checks every field that is present. Absent ones have defaults that are in range."""
    if sampling.HasField("max_tokens"):
        check_integer("max_tokens", sampling.max_tokens, 1)
        check_integer("min_tokens", sampling.min_tokens, 0, sampling.max_tokens)
    if sampling.HasField("temperature"):
        check_decimal("temperature", sampling.temperature, 0, 2)
    if sampling.HasField("top_p"):
        check_decimal("top_p", sampling.top_p, 0, 1, above_low=True)
    if sampling.HasField("top_k"):
        check_integer("top_k", sampling.top_k, -1)
    if sampling.HasField("min_p"):
        check_decimal("min_p", sampling.min_p, 0, 1)
    check_length("stop_token_ids", sampling.stop_token_ids, 0, MAX_STOP_TOKEN_IDS)


def check_stop(stop: Sequence[str]) -> None:
    """Stop strings are few, short and not empty."""
    check_length("stop", stop, 0, MAX_STOP_STRINGS)
    for text in stop:
        check_length("stop", text, 1, MAX_STOP_STRING_CHARS)


def check_token_ids(name: str, token_ids: Sequence[int], vocab_size: int) -> None:
    """Raises InvalidArgumentError unless every id is in [0, vocab_size)."""
    if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
        wrong = next(token_id for token_id in token_ids if not 0 <= token_id < vocab_size)
        raise InvalidArgumentError(
            f"Invalid '{name}': token id {wrong} is out of range. This model's token ids are 0 to {vocab_size - 1}.",
            reason="TOKEN_ID_OUT_OF_RANGE",
            param=name,
        )


def completion_budget(num_prompt_tokens: int, max_tokens: int | None, max_model_len: int, param: str) -> int:
    """max_tokens, or all that the context has left; InvalidArgumentError if prompt and completion do not fit.

    param: what the request calls the prompt
    """
    room = max_model_len - num_prompt_tokens
    if room < 1 or (max_tokens is not None and max_tokens > room):
        asked = "" if max_tokens is None else f", and {max_tokens} more in the completion"
        raise InvalidArgumentError(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{num_prompt_tokens} tokens in the prompt{asked}. Please reduce the length of the prompt"
            f"{'' if max_tokens is None else ' or max_tokens'}.",
            reason="CONTEXT_LENGTH_EXCEEDED",
            param="max_tokens" if room > 0 else param,
        )
    return room if max_tokens is None else max_tokens


def _out_of_range(kind: str, name: str, value: float, problem: str) -> InvalidArgumentError:
    side = "BELOW_MIN" if problem.startswith("below") else "ABOVE_MAX"
    return InvalidArgumentError(
        f"Invalid '{name}': {kind} {problem}, but got {value:g} instead.",
        reason=f"{kind.upper()}_{side}_VALUE",
        param=name,
    )
