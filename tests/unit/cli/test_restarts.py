"""When the supervisor restarts what died, on a clock of the test's."""

from __future__ import annotations

import pytest

from pagoda.cli.restarts import LONGEST_PAUSE_S, WELL_S, Restarts

KINDS = {"gateway": "gateway", "prefill": "executor", "decode": "executor"}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def restarts(clock: Clock) -> Restarts:
    return Restarts(KINDS, clock)


def test_pauses_double_up_to_the_longest(restarts: Restarts) -> None:
    restarts.note_ready("prefill")
    pauses = [restarts.pause_after_death("decode") for _ in range(2000)]
    assert pauses[:11] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    assert set(pauses[9:]) == {LONGEST_PAUSE_S}
    assert restarts.pause_after_death("prefill") == 0.1


def test_who_was_well_begins_anew(restarts: Restarts, clock: Clock) -> None:
    def live(ready_s: float) -> float | None:
        restarts.note_ready("decode")
        clock.now += ready_s
        return restarts.pause_after_death("decode")

    assert [live(0), live(WELL_S - 1), live(WELL_S), live(WELL_S - 1)] == [0.1, 0.2, 0.1, 0.2]
    clock.now += 2 * WELL_S
    assert restarts.pause_after_death("decode") == 0.4, "the time until it could not start is none in which it was well"


def test_there_is_no_point_where_nobody_of_a_kind_was_ever_ready(restarts: Restarts) -> None:
    restarts.note_ready("gateway")
    # The other one may still start.
    assert [restarts.pause_after_death("prefill") for _ in range(3)] == [0.1, 0.2, 0.4]
    assert restarts.pause_after_death("decode") is None


def test_one_that_was_ready_once_is_reason_enough_to_go_on(restarts: Restarts) -> None:
    restarts.note_ready("decode")
    assert restarts.pause_after_death("decode") == 0.1
    assert restarts.pause_after_death("prefill") == 0.1
    assert restarts.pause_after_death("decode") == 0.2
    assert restarts.pause_after_death("gateway") is None
