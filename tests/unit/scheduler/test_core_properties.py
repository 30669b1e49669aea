"""Random traffic, aborts, preemptions, failures: each request ends once, with the tokens it would have had alone."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pagoda.errors import UnavailableError
from pagoda.scheduler.core.request import FinishReason, Request, RequestKey, Sampling
from pagoda.scheduler.core.simulated import expected_tokens

VOCAB = 40
MAX_MODEL_LEN = 24


def expected(request: Request, prompt: list[int]) -> tuple[list[int], FinishReason]:
    """What `request` must generate, from the model alone."""
    sampling = request.sampling
    room = MAX_MODEL_LEN - len(prompt)
    most = min(room, sampling.max_tokens or room)
    tokens = expected_tokens(prompt, sampling.seed, VOCAB, most)
    stops = sampling.stop_token_ids | (set() if sampling.ignore_eos else {2})
    for count, token in enumerate(tokens, start=1):
        if token in stops and count >= sampling.min_tokens:
            return tokens[:count], FinishReason.STOP
    return tokens, FinishReason.LENGTH


@pytest.mark.parametrize("max_plans_in_flight", [1, 2])
@pytest.mark.parametrize("enable_prefix_caching", [True, False], ids=["cache", "no-cache"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), num_blocks=st.integers(6, 12), num_events=st.integers(5, 120))
def test_random_traffic(
    make_cell: Callable[..., Any],
    max_plans_in_flight: int,
    enable_prefix_caching: bool,
    seed: int,
    num_blocks: int,
    num_events: int,
) -> None:
    rng = random.Random(seed)
    shape: dict[str, Any] = {
        "num_blocks": num_blocks,
        "max_model_len": MAX_MODEL_LEN,
        "vocab_size": VOCAB,
        "max_num_seqs": rng.randint(1, 5),
        "max_num_batched_tokens": rng.randint(5, 20),
    }
    cell = make_cell(
        max_plans_in_flight=max_plans_in_flight,
        enable_prefix_caching=enable_prefix_caching,
        no_executor_timeout_s=1e9,
    )
    requests: list[Request] = []
    # Few different tokens make blocks that are alike after beginnings that are not.
    alphabet = rng.choice([2, VOCAB])
    prompts = [[rng.randrange(alphabet) for _ in range(MAX_MODEL_LEN - 1)] for _ in range(4)]
    num_lanes = 0

    def submit() -> None:
        prompt = rng.choice(prompts)[: rng.randint(1, MAX_MODEL_LEN - 1)]
        max_tokens = rng.choice([None, rng.randint(1, MAX_MODEL_LEN - len(prompt))])
        sampling: dict[str, Any] = {
            "seed": rng.randrange(3),
            "max_tokens": max_tokens,
            "min_tokens": rng.randint(0, min(2, max_tokens or 2)),
            "ignore_eos": rng.random() < 0.3,
            "stop_token_ids": frozenset(rng.sample(range(VOCAB), rng.randint(0, 3))),
        }
        # Handed over after a restart: some of the tokens are there already.
        probe = Request(RequestKey("t", 0), prompt, Sampling(**sampling))
        done = expected(probe, prompt)[0][: rng.choice([0, 0, 0, 3])]
        request = cell.submit(
            len(requests),
            prompt + done,
            num_prompt_tokens=len(prompt),
            priority=rng.choice([0, 0, 1]),
            cache_salt=rng.choice([b"", b"x"]),
            **sampling,
        )
        requests.append(request)

    for _ in range(num_events):
        event = rng.random()
        if event < 0.3:
            submit()
        elif event < 0.35 and requests:
            cell.core.abort(rng.choice(requests).key)
        elif event < 0.4 and num_lanes < 6:
            num_lanes += 1
            cell.join(f"lane-{num_lanes}", **shape)
        elif event < 0.43 and cell.executors:
            cell.lose(rng.choice(sorted(cell.executors)), died=rng.random() < 0.7)
        elif event < 0.7:
            cell.plan()
        else:
            busy = sorted(name for name, steps in cell.in_flight.items() if steps)
            if busy:
                cell.answer(rng.choice(busy))
        cell.check()

    cell.join("last", **shape)
    for _ in range(10_000):
        planned = cell.plan()
        busy = sorted(name for name, steps in cell.in_flight.items() if steps)
        if not planned and not busy:
            break
        cell.answer(rng.choice(busy))
        cell.check()

    assert not cell.core.requests
    assert len(cell.ends) == len(requests)
    for request in requests:
        end, tokens = cell.ends[request.key], cell.tokens[request.key]
        prompt = list(request.token_ids[: request.num_prompt_tokens])
        wanted, reason = expected(request, prompt)
        if end.reason in (FinishReason.ABORT, FinishReason.ERROR):
            assert tokens == wanted[: len(tokens)]
            assert end.error is None or isinstance(end.error, UnavailableError)
        else:
            assert (tokens, end.reason) == (wanted, reason)
    for lane in cell.core.lanes.values():
        assert lane.pool.num_referenced == 0
        assert lane.pool.num_free + lane.pool.num_cached == num_blocks
    counters = cell.core.counters
    assert counters.requests_admitted == counters.requests_finished + counters.requests_aborted == len(requests)
