"""What is learned of the links between lanes, and where prompts are computed with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pagoda.scheduler.core.links import HALF_LIFE_S, LATENCY_S, MEMORY_TOKENS, Link
from pagoda.scheduler.core.spec import ExecutorRole

# Seconds per token of a slow link.
SLOW = 0.01


def connected() -> Link:
    """Something has arrived, at once."""
    link = Link()
    send(link, 16, 0.0, 0.0)
    return link


def send(link: Link, num_tokens: int, now: float, seconds_per_token: float) -> float:
    """Blocks leave and arrive. Returns when."""
    link.num_tokens += num_tokens
    link.note_left(now)
    now += LATENCY_S + num_tokens * seconds_per_token
    link.note_arrived(num_tokens, now)
    return now


def test_a_fast_link_is_one_of_which_nothing_is_known() -> None:
    link, now = Link(), 100.0
    for _ in range(20):
        now = send(link, 16, now, 0.0)
        assert link.seconds_per_token(now) == 0.0


def test_the_rate_is_learned_from_what_has_arrived() -> None:
    link = connected()
    now = send(link, MEMORY_TOKENS, 100.0, SLOW)
    assert link.seconds_per_token(now) == pytest.approx(SLOW / 2)
    # Few tokens tell little.
    now = send(link, 16, now, 1.0)
    assert link.seconds_per_token(now) == pytest.approx(SLOW / 2 + 1.0 * 16 / MEMORY_TOKENS, rel=0.05)
    for _ in range(20):
        now = send(link, MEMORY_TOKENS, now, SLOW)
    assert link.seconds_per_token(now) == pytest.approx(SLOW, rel=1e-3)


def test_what_goes_the_same_way_waits_for_what_was_sent_before() -> None:
    link = connected()
    for _ in range(3):
        link.num_tokens += 100
        link.note_left(100.0)
    for i in (1, 2, 3):
        link.note_arrived(100, 100.0 + LATENCY_S + i * 100 * SLOW)
    expected = 0.0
    for _ in range(3):
        expected += (SLOW - expected) * 100 / (100 + MEMORY_TOKENS)
    assert link.seconds_per_token(103.0 + LATENCY_S) == pytest.approx(expected, rel=1e-3)


def test_the_time_until_the_step_that_pushes_is_not_the_links() -> None:
    link = Link()
    link.num_tokens += 100
    # The plan was sent ahead: its step begins ten seconds later.
    link.note_left(110.0)
    link.note_arrived(100, 110.0 + LATENCY_S)
    assert link.seconds_per_token(110.0 + LATENCY_S) == 0.0


def test_the_first_to_arrive_have_waited_for_a_connection() -> None:
    link = Link()
    now = send(link, MEMORY_TOKENS, 100.0, SLOW)
    assert link.seconds_per_token(now) == 0.0
    now = send(link, MEMORY_TOKENS, now, SLOW)
    assert link.seconds_per_token(now) == pytest.approx(SLOW / 2)


def test_what_does_not_arrive_is_news() -> None:
    link = Link()
    link.num_tokens += 100
    link.note_left(100.0)
    assert link.seconds_per_token(100.0) == 0.0
    assert link.seconds_per_token(110.0) == pytest.approx(0.1, rel=0.01)
    link.note_failed(110.0)
    link.forget(100)
    assert link.num_tokens == 0
    assert 0.04 < link.seconds_per_token(110.0) <= 0.1


def test_an_estimate_fades_while_nothing_travels() -> None:
    link = connected()
    now = send(link, MEMORY_TOKENS, 100.0, SLOW)
    assert link.seconds_per_token(now + HALF_LIFE_S) == pytest.approx(SLOW / 4)
    # It does not begin anew with the next push.
    link.num_tokens += 16
    link.note_left(now + 10 * HALF_LIFE_S)
    assert link.seconds_per_token(now + 10 * HALF_LIFE_S) < SLOW / 1000


@pytest.mark.parametrize("transfer_s", [0.0, 0.5])
def test_prompts_stay_where_they_are_decoded_if_the_link_is_slow(
    make_cell: Callable[..., Any], transfer_s: float
) -> None:
    """Prompts of which a step computes 16 tokens in 10 ms come one by one, and are different."""
    cell = make_cell(max_local_prefill_tokens=8)
    for name, role in (("P", ExecutorRole.PREFILL), ("D", ExecutorRole.DECODE)):
        cell.join(name, role=role, max_model_len=128, num_blocks=256)

    def ask(number: int) -> None:
        cell.submit(number, [(number + i) % 900 + 50 for i in range(64)], max_tokens=3, ignore_eos=True)
        while plans := cell.plan():
            cell.now += 0.01
            for name in plans:
                plan, result = cell.in_flight[name].pop()
                cell.in_flight[name].append((plan, result._replace(forward_ns=10_000_000)))
                cell.answer(name)
            while cell.parcels:
                cell.now += transfer_s
                cell.deliver()
            cell.check()

    for number in range(20):
        ask(number)
    counters = cell.core.counters
    if not transfer_s:
        assert (counters.remote_prefills, counters.local_prefills) == (20, 0)
        return
    assert 0 < counters.remote_prefills < 10
    # Sooner or later the link is tried again.
    cell.now += 10 * HALF_LIFE_S
    before = counters.remote_prefills
    ask(20)
    assert counters.remote_prefills == before + 1


def test_a_lane_that_leaves_is_forgotten(make_cell: Callable[..., Any]) -> None:
    cell = make_cell(max_local_prefill_tokens=8)
    cell.join("P", role=ExecutorRole.PREFILL, max_model_len=64, num_blocks=64)
    cell.join("D", role=ExecutorRole.DECODE, max_model_len=64, num_blocks=64)
    source, target = cell.core.lanes["P"], cell.core.lanes["D"]
    cell.submit(1, range(100, 130), max_tokens=3, ignore_eos=True)
    while cell.core.moves.links.between(source, target).num_tokens == 0:
        assert cell.plan()
        for name in [name for name, flights in cell.in_flight.items() if flights]:
            cell.answer(name)
    cell.lose("D")
    assert cell.core.moves.links.between(source, target).num_tokens == 0
    cell.run()
