"""Random traffic on small pools: each request ends once, with the tokens it would have had alone.

A trace is made from bytes, a few for each event, so that drawing one is cheap and a failing one shrinks. The same
traces are run each time; PAGODA_TRACES=N runs N new ones per case.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from pagoda.errors import DeadlineExceededError, UnavailableError
from pagoda.scheduler.core import balance, draft, placement
from pagoda.scheduler.core.request import FinishReason, Request, RequestKey
from pagoda.scheduler.core.simulated import expected_tokens
from pagoda.scheduler.core.spec import ExecutorRole

VOCAB = 40
BLOCK_SIZE = 4
MOST_LANES = 6
NUM_TRACES = int(os.environ.get("PAGODA_TRACES", "0"))

T = TypeVar("T")


class Bytes:
    """Choices made from a string of bytes; zeros when it is used up."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)
        self.is_empty = not data

    def below(self, count: int) -> int:
        byte = next(self._data, None)
        if byte is None:
            self.is_empty = True
        return (byte or 0) % count

    def between(self, low: int, high: int) -> int:
        return low + self.below(high - low + 1)

    def of(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def happens(self, percent: int) -> bool:
        return self.below(100) < percent


class Trace:
    """One cell, what happens to it, and what must come of it."""

    def __init__(self, make_cell: Callable[..., Any], choices: Bytes, **options: Any) -> None:
        self.choices = choices
        num_blocks = choices.of([4, 5, 6, 7, 8, 10, 12, 16, 32, 64])
        max_num_seqs = choices.between(1, 5)
        self.max_model_len = min(24, num_blocks * BLOCK_SIZE)
        self.shape: dict[str, Any] = {
            "block_size": BLOCK_SIZE,
            "num_blocks": num_blocks,
            "max_model_len": self.max_model_len,
            "vocab_size": VOCAB,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": max_num_seqs + choices.between(0, 15),
            "num_host_blocks": choices.of([0, 0, 1, 4, 20]),
            "swap_only": choices.happens(50),
        }
        self.cell = make_cell(
            policy=choices.of(["fcfs", "priority", "fair"]),
            max_num_waiting=10_000,
            no_executor_timeout_s=1e9,
            inter_token_target_s=choices.of([0.0, 1e-9, 1.0]),
            blocks_ahead=choices.of([0, 0, 0, 1]),
            max_local_prefill_tokens=choices.of([0, 3, 8]),
            transfer_timeout_s=choices.of([3.0, 100.0]),
            **options,
        )
        self.roles = choices.of([[ExecutorRole.MIXED], list(ExecutorRole), [ExecutorRole.PREFILL, ExecutorRole.DECODE]])
        self.requests: list[Request] = []
        self.prompts: dict[RequestKey, list[int]] = {}
        self.num_joined = 0
        # Few different tokens make blocks that are alike after beginnings that are not.
        alphabet = choices.of([2, VOCAB])
        self.texts = [[choices.below(alphabet) for _ in range(6)] * 4 for _ in range(2)]

    def submit(self, prompt: list[int], *, num_done: int = 0, forked_from: RequestKey | None = None) -> None:
        choices = self.choices
        prompt = prompt[: self.max_model_len - 1]
        room = self.max_model_len - len(prompt)
        max_tokens = choices.of([None, choices.between(1, room)])
        sampling: dict[str, Any] = {
            "seed": choices.below(3),
            "max_tokens": max_tokens,
            "min_tokens": min(choices.below(3), max_tokens or 2),
            "ignore_eos": choices.happens(30),
            "stop_token_ids": frozenset(choices.of([(), (), (5,), (1, 7)])),
        }
        done = self.expected(prompt, **sampling)[0][:num_done]
        request = self.cell.submit(
            len(self.requests),
            prompt + done,
            num_prompt_tokens=len(prompt),
            priority=choices.of([0, 0, 1]),
            cache_salt=choices.of([b"", b"", b"x"]),
            client_id=choices.of(["a", "b"]),
            adapter=choices.of(["", "", "", "lora"]),
            forked_from=forked_from,
            timeout_s=choices.of([None, None, None, 5.0]),
            **sampling,
        )
        self.requests.append(request)
        self.prompts[request.key] = prompt

    def expected(self, prompt: list[int], **sampling: Any) -> tuple[list[int], FinishReason]:
        """What a request must generate, from the model alone."""
        room = self.max_model_len - len(prompt)
        tokens = expected_tokens(prompt, sampling["seed"], VOCAB, min(room, sampling["max_tokens"] or room))
        stops = sampling["stop_token_ids"] | (set() if sampling["ignore_eos"] else {2})
        for count, token in enumerate(tokens, start=1):
            if token in stops and count >= sampling["min_tokens"]:
                return tokens[:count], FinishReason.STOP
        return tokens, FinishReason.LENGTH

    def event(self) -> None:
        choices, cell = self.choices, self.cell
        kind = choices.below(100)
        if kind < 22:
            # Handed over after a restart, some of the tokens are there already.
            text = choices.of(self.texts)[choices.below(3) :]
            self.submit(text[: choices.between(1, len(text))], num_done=choices.of([0, 0, 0, 3]))
        elif kind < 32 and self.requests:
            parent = choices.of(self.requests)
            text = self.prompts[parent.key] + cell.tokens[parent.key]
            self.submit([*text, choices.below(VOCAB)], forked_from=choices.of([parent.key, None]))
        elif kind < 36 and self.requests:
            cell.core.abort(choices.of(self.requests).key)
        elif kind < 41 and self.num_joined < MOST_LANES:
            self.join()
        elif kind < 43 and cell.executors:
            cell.lose(choices.of(sorted(cell.executors)), died=choices.happens(70))
        elif kind < 45:
            cell.now += choices.below(4)
        elif kind < 47 and cell.executors:
            cell.core.set_role(choices.of(sorted(cell.executors)), choices.of(self.roles))
        elif kind < 48 and cell.executors:
            cell.core.begin_leaving(choices.of(sorted(cell.executors)))
        elif kind < 58 and cell.parcels:
            self.deliver()
        elif kind < 78:
            cell.plan(settles=choices.happens(60))
        else:
            self.answer()
        for name in [name for name, lane in cell.core.lanes.items() if lane.is_leaving and cell.core.may_leave(name)]:
            cell.lose(name, died=False)
        cell.check()

    def join(self) -> None:
        self.num_joined += 1
        role = self.choices.of(self.roles)
        receives = role is ExecutorRole.DECODE or self.choices.happens(80)
        self.cell.join(f"lane-{self.num_joined}", role=role, receives=receives, **self.shape)

    def deliver(self) -> None:
        """One of the pushes on their way arrives, in whatever order, or is lost."""
        index = self.choices.below(len(self.cell.parcels))
        if self.choices.happens(90):
            self.cell.deliver(index)
        else:
            self.cell.lose_parcel(index)

    def answer(self) -> bool:
        busy = sorted(name for name, steps in self.cell.in_flight.items() if steps)
        if busy:
            self.cell.answer(self.choices.of(busy))
        return bool(busy)

    def finish(self) -> None:
        self.join()
        for _ in range(10_000):
            planned = self.cell.plan()
            self.cell.check()
            is_busy = self.answer()
            if self.cell.parcels:
                self.deliver()
            elif not is_busy and not planned:
                return
        raise AssertionError("requests do not come to an end")

    def check(self) -> None:
        cell = self.cell
        assert not cell.core.requests
        assert len(cell.ends) == len(self.requests)
        for request in self.requests:
            sampling, end, tokens = request.sampling, cell.ends[request.key], cell.tokens[request.key]
            wanted, reason = self.expected(
                self.prompts[request.key],
                seed=sampling.seed,
                max_tokens=sampling.max_tokens,
                min_tokens=sampling.min_tokens,
                ignore_eos=sampling.ignore_eos,
                stop_token_ids=sampling.stop_token_ids,
            )
            assert list(request.token_ids[request.num_prompt_tokens :]) == tokens
            if end.reason in (FinishReason.ABORT, FinishReason.ERROR):
                assert tokens == wanted[: len(tokens)]
                assert end.error is None or isinstance(end.error, (UnavailableError, DeadlineExceededError))
            else:
                assert (tokens, end.reason) == (wanted, reason)
        cell.core.settle()
        for lane in cell.core.lanes.values():
            assert lane.pool.num_referenced == 0
            assert lane.pool.num_free + lane.pool.num_cached == lane.pool.num_blocks
            assert not lane.origins
            assert not lane.arriving
        counters, num_requests = cell.core.counters, len(self.requests)
        assert counters.moves_begun == counters.moves_done + counters.moves_failed
        assert counters.requests_admitted == counters.requests_finished + counters.requests_aborted == num_requests


def random_bytes(seed: int, count: int) -> bytes:
    """Livelier than what hypothesis makes, which prefers small numbers."""
    return random.Random(seed).randbytes(count)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("max_plans_in_flight", "enable_prefix_caching", "num_traces"),
    [(1, True, 4000), (2, True, 4000), (1, False, 1000), (2, False, 1000)],
)
def test_random_traffic(
    make_cell: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    max_plans_in_flight: int,
    enable_prefix_caching: bool,
    num_traces: int,
) -> None:
    # Steps and batches here are that small.
    monkeypatch.setattr(draft, "LEAST_CHUNK", 2)
    monkeypatch.setattr(balance, "SLACK", 1)
    monkeypatch.setattr(placement, "SLACK", 0)

    @settings(
        max_examples=NUM_TRACES or num_traces,
        derandomize=not NUM_TRACES,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(st.binary(min_size=30, max_size=250) | st.builds(random_bytes, st.integers(0), st.integers(30, 250)))
    def run(data: bytes) -> None:
        choices = Bytes(data)
        trace = Trace(
            make_cell, choices, max_plans_in_flight=max_plans_in_flight, enable_prefix_caching=enable_prefix_caching
        )
        while not choices.is_empty:
            trace.event()
        trace.finish()
        trace.check()

    run()
