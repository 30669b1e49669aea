"""Rates from the differences between states."""

from __future__ import annotations

from typing import Any

from pagoda.cli.top_history import History


def history_of(*states: Any, interval_s: float = 1.0) -> History:
    history = History(interval_s)
    for state in states:
        history.add(state)
    return history


def steps_per_s(history: History, name: str) -> float | None:
    return history.lane_rate(f"session of {name}", lambda lane: lane.steps)


def test_rates_go_by_the_scheduler_s_clock(state_of: Any) -> None:
    history = history_of(
        state_of(10, generation_tokens=100), state_of(12, generation_tokens=300), state_of(12.5, generation_tokens=300)
    )
    assert history.rates("generation_tokens") == [100, 0]
    assert history.rate("generation_tokens") == 0
    assert history.last == state_of(12.5, generation_tokens=300)


def test_one_state_has_no_rate(state_of: Any, lane_of: Any) -> None:
    assert history_of().last is None
    history = history_of(state_of(10, lane_of(), generation_tokens=100))
    assert history.rate("generation_tokens") is None
    assert steps_per_s(history, "executor-0") is None
    assert history.recent("generation_tokens") == 0
    assert history.recent_s == 0


def test_another_scheduler_begins_a_new_history(state_of: Any) -> None:
    history = history_of(state_of(10, preemptions=5), state_of(11, preemptions=6), state_of(0.5, preemptions=1))
    assert len(history.states) == 1
    assert history.rate("preemptions") is None


def test_recent_is_a_minute(state_of: Any) -> None:
    history = history_of(*(state_of(second, preemptions=second) for second in range(200)))
    assert (history.recent("preemptions"), history.recent_s) == (60, 60)


def test_recent_is_what_there_is(state_of: Any) -> None:
    history = history_of(state_of(100, preemptions=1), state_of(130, preemptions=4))
    assert (history.recent("preemptions"), history.recent_s) == (3, 30)


def test_a_minute_is_kept_at_any_interval(state_of: Any) -> None:
    history = history_of(*(state_of(1 + i / 10, preemptions=i) for i in range(2000)), interval_s=0.1)
    assert history.recent("preemptions") == 600
    history = history_of(*(state_of(300 * i, preemptions=i) for i in range(1, 200)), interval_s=300)
    assert len(history.states) == 120
    assert (history.recent("preemptions"), history.recent_s) == (1, 300)


def test_lanes_come_and_go(state_of: Any, lane_of: Any) -> None:
    history = history_of(
        state_of(10, lane_of("a", steps=1000)),
        state_of(11, lane_of("b", steps=20), lane_of("a", steps=1100)),
        state_of(13, lane_of("b", steps=80)),
    )
    assert history.lane_values("session of a", lambda lane: lane.steps) == [1000, 1100, None]
    assert steps_per_s(history, "a") is None
    assert steps_per_s(history, "b") == 30
