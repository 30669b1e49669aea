"""Prompts in, text out: what the typed API and the OpenAI facade have in common.

    async with engine.generate(request) as generation:
        async for deltas in generation:
            ...

A request is `prompts x n` completions. Completion i of each prompt draws with the seed `seed + i` (mod 2**64); a
request without a seed gets a random one per prompt. Leaving the block aborts what has not ended. Knows text and
token ids; knows neither protocols nor JSON.
"""

from __future__ import annotations

import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pagoda.errors import InternalError, InvalidArgumentError, PagodaError, ResourceExhaustedError
from pagoda.tokenizer.cell import Cell
from pagoda.tokenizer.completion import Completion, Delta, End
from pagoda.tokenizer.limits import completion_budget
from pagoda.tokenizer.metrics import Metrics, RequestTimes
from pagoda.tokenizer.prompts import EncodedPrompt, Prompt, PromptEncoder
from pagoda.tokenizer.token_stream import TokenRequest, TokenStream
from pagoda.tokenizer.traces import RequestTrace
from pagoda.v1.common_pb2 import FinishReason, SamplingParams, Usage

if TYPE_CHECKING:  # an optional package
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """What to generate; checked against `limits` by whoever made it.

    request_id: what logs call it
    sampling: max_tokens and seed may be absent
    n: completions per prompt
    stop, include_stop: texts that end a completion, and whether they stay in it
    client_id: whose it is, for fair shares
    num_bytes: about how large the prompts are
    arrived_at: when the client's request came, on the clock of `time.perf_counter`
    deadline: on the same clock; what has not ended by then fails with DeadlineExceededError
    traceparent: W3C trace context that it is a part of; may be empty
    """

    request_id: str
    prompts: Sequence[Prompt]
    sampling: SamplingParams
    n: int = 1
    stop: Sequence[str] = ()
    include_stop: bool = False
    skip_special_tokens: bool = True
    priority: int = 0
    cache_salt: bytes = b""
    client_id: str = ""
    num_bytes: int = 0
    arrived_at: float = field(default_factory=time.perf_counter)
    deadline: float | None = None
    traceparent: str = ""


class Engine:
    """Generates through one cell.

    max_num_requests: completions in flight; more are refused with ResourceExhaustedError
    tracer: makes spans; None: nobody wants them
    """

    def __init__(
        self, encoder: PromptEncoder, cell: Cell, metrics: Metrics, max_num_requests: int, tracer: Tracer | None = None
    ) -> None:
        self.encoder = encoder
        self.cell = cell
        self.metrics = metrics
        self._max_num_requests = max_num_requests
        self._tracer = tracer
        self._num_requests = 0

    @property
    def max_model_len(self) -> int:
        """The model's context in tokens; 0 while no executor has told it."""
        return self.cell.status.model.max_model_len

    @property
    def fingerprint(self) -> str:
        """The model's; "" while no executor has told it."""
        return self.cell.status.model.fingerprint

    @asynccontextmanager
    async def generate(self, request: GenerationRequest) -> AsyncIterator[Generation]:
        """Raises PagodaError for a prompt that does not fit, a full service, or a cell that is not ready."""
        with RequestTrace(self._tracer, request) as trace, self._admit(len(request.prompts) * request.n):
            self.cell.check_ready()
            prompts = await self.encoder.encode(request.prompts, request.num_bytes, self.max_model_len)
            token_requests = [
                each for prompt in prompts for each in self._token_requests(request, prompt, trace.traceparent)
            ]
            async with self.cell.submit(token_requests, request.deadline) as stream:
                generation = trace.generation = Generation(request, prompts, stream, self)
                try:
                    yield generation
                except PagodaError:
                    generation.left(FinishReason.FINISH_REASON_ERROR)
                    raise
                finally:
                    generation.left(FinishReason.FINISH_REASON_ABORT)
                    logger.info("request %s: %s", request.request_id, generation)

    @contextmanager
    def _admit(self, count: int) -> Iterator[None]:
        if count > self._max_num_requests:
            raise InvalidArgumentError(
                f"the request asks for {count} completions, but this server runs at most {self._max_num_requests} at a "
                "time; send fewer prompts or a smaller n",
                param="n",
            )
        if self._num_requests + count > self._max_num_requests:
            raise ResourceExhaustedError(
                f"this server has {self._num_requests} of at most {self._max_num_requests} completions in flight; "
                "try again later",
                reason="TOO_MANY_REQUESTS",
            )
        self._num_requests += count
        try:
            yield
        finally:
            self._num_requests -= count

    def _token_requests(
        self, request: GenerationRequest, prompt: EncodedPrompt, traceparent: str
    ) -> list[TokenRequest]:
        """The n completions of a prompt."""
        given = request.sampling
        max_tokens = given.max_tokens if given.HasField("max_tokens") else None
        budget = completion_budget(len(prompt.token_ids), max_tokens, self.max_model_len, prompt.param)
        seed = given.seed if given.HasField("seed") else random.getrandbits(64)
        token_requests = []
        for index in range(request.n):
            sampling = SamplingParams()
            sampling.CopyFrom(given)
            sampling.max_tokens = budget
            sampling.seed = (seed + index) % 2**64
            token_requests.append(
                TokenRequest(
                    request_id=request.request_id,
                    prompt=prompt.packed,
                    sampling=sampling,
                    priority=request.priority,
                    cache_salt=request.cache_salt,
                    client_id=request.client_id,
                    traceparent=traceparent,
                )
            )
        return token_requests


class Generation:
    """The completions of one request as they grow: an async iterator over lists of deltas.

    prompts: as encoded; completion `prompt x n + i` is the i-th of its prompt
    """

    def __init__(
        self, request: GenerationRequest, prompts: Sequence[EncodedPrompt], stream: TokenStream, engine: Engine
    ) -> None:
        self.prompts = prompts
        self._stream = stream
        self._times = RequestTimes(engine.metrics, request.arrived_at)
        self._n = request.n
        self.completions = [
            Completion(
                prompts[index // request.n].token_ids,
                engine.encoder.tokenizer,
                stop=request.stop,
                include_stop=request.include_stop,
                skip_special_tokens=request.skip_special_tokens,
                min_tokens=request.sampling.min_tokens,
            )
            for index in range(len(prompts) * request.n)
        ]

    def __aiter__(self) -> Generation:
        return self

    async def __anext__(self) -> list[Delta]:
        arrivals = await anext(self._stream)
        now = time.perf_counter()
        deltas = []
        for arrival in arrivals:
            completion = self.completions[arrival.index]
            try:
                delta = completion.take(arrival)
            except InvalidArgumentError as error:
                raise InternalError(f"the executors' model does not fit this tokenizer: {error}") from error
            if delta.end is not None and arrival.finished is None:
                self._stream.abort(arrival.index)
            self._times.took(completion, delta, now, is_first_of_prompt=arrival.index % self._n == 0)
            deltas.append(delta)
        return deltas

    async def ended(self) -> AsyncIterator[Delta]:
        """Each completion as one delta, when it has ended."""
        parts: list[list[Delta]] = [[] for _ in self.completions]
        async for deltas in self:
            for delta in deltas:
                parts[delta.index].append(delta)
                if delta.end is not None:
                    yield _joined(parts[delta.index])
                    parts[delta.index] = []

    def usage_of(self, index: int) -> Usage:
        """Tokens of one completion and its prompt, so far."""
        completion = self.completions[index]
        return Usage(
            prompt_tokens=completion.num_prompt_tokens,
            completion_tokens=completion.num_tokens,
            cached_tokens=completion.num_cached_tokens or 0,
        )

    def usage(self) -> Usage:
        """Tokens of all completions so far; each prompt counts once."""
        usage = Usage()
        for start in range(0, len(self.completions), self._n):
            siblings = self.completions[start : start + self._n]
            usage.prompt_tokens += siblings[0].num_prompt_tokens
            # Siblings find each other's blocks: what the prompt found in the cache is what the least lucky one did.
            told = [each.num_cached_tokens for each in siblings if each.num_cached_tokens is not None]
            usage.cached_tokens += min(told, default=0)
            usage.completion_tokens += sum(each.num_tokens for each in siblings)
        return usage

    def __str__(self) -> str:
        """What became of it, for logs."""
        usage = self.usage()
        ends = Counter(FinishReason.Name(each.end.reason) for each in self.completions if each.end is not None)
        reasons = ", ".join(f"{count} {name.removeprefix('FINISH_REASON_').lower()}" for name, count in ends.items())
        return f"{usage.prompt_tokens} prompt tokens, {usage.completion_tokens} completion tokens, ended by {reasons}"

    def left(self, reason: FinishReason) -> None:
        """Accounts for completions that have not come to their end, and now never will."""
        for completion in self.completions:
            if completion.end is None:
                completion.end = End(reason)
                self._times.left(reason)


def _joined(parts: Sequence[Delta]) -> Delta:
    token_ids = [token_id for part in parts for token_id in part.token_ids]
    return Delta(parts[-1].index, "".join([part.text for part in parts]), token_ids, parts[-1].end)
