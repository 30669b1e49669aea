"""What requests' diaries tell, why moves failed, and what recoveries cost."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pagoda.scheduler.core.counters import Durations
from pagoda.scheduler.core.diary import Diary
from pagoda.scheduler.core.request import Request
from pagoda.scheduler.core.spec import ExecutorRole

PROMPT = list(range(100, 130))
STEP_S = 0.5


@pytest.fixture
def cell(make_cell: Callable[..., Any]) -> Any:
    """P prefills, 16 tokens a step; D decodes."""
    cell = make_cell(max_local_prefill_tokens=8, transfer_timeout_s=3.0)
    cell.join("P", role=ExecutorRole.PREFILL, max_model_len=64, num_blocks=64)
    cell.join("D", role=ExecutorRole.DECODE, max_model_len=64, num_blocks=64)
    return cell


def submit(cell: Any, number: int = 1, prompt: list[int] = PROMPT, **changes: Any) -> Request:
    request: Request = cell.submit(number, prompt, **({"max_tokens": 6, "ignore_eos": True} | changes))
    # As if it had been there when the request came.
    request.diary = Diary()
    request.diary.enter("queued", cell.now)
    return request


def step(cell: Any, *, delivers: bool = True) -> bool:
    """Half a second passes between a plan and its result. False: there is nothing to do."""
    plans = cell.plan()
    cell.now += STEP_S
    for name in plans:
        cell.answer(name)
    while delivers and cell.parcels:
        cell.deliver()
    cell.core.settle()
    cell.check()
    return bool(plans)


def until(cell: Any, happened: Callable[[], object], *, delivers: bool = True) -> None:
    for _ in range(100):
        if happened():
            return
        step(cell, delivers=delivers)
    raise AssertionError("it does not happen")


def run(cell: Any) -> None:
    while step(cell):
        pass


def stages(cell: Any, request: Request, since: float = 100.0) -> list[tuple[Any, ...]]:
    """(name, begin, end, details), with times in steps since the request came."""
    assert request.diary
    request.diary.close(cell.now)
    told = []
    for stage in request.diary.stages:
        assert stage.ended_at is not None
        begin, end = ((time - since) / STEP_S for time in (stage.began_at, stage.ended_at))
        told.append((stage.name, begin, end, stage.details))
    return told


def recoveries(cell: Any) -> dict[str, tuple[int, float]]:
    """What was lost -> how many requests have recovered, and the longest time."""
    times = cell.core.counters.recovery_times
    return {lost: (sum(each.counts), each.longest_s) for lost, each in times.items() if each.longest_s}


def test_a_request_that_moves(cell: Any) -> None:
    request = submit(cell)
    until(cell, lambda: request.end)
    # Its 30 tokens take two steps, of which the second brings the first token; then it leaves, and what remains to be
    # sent arrives with the third.
    assert stages(cell, request) == [
        ("queued", 0, 0, {}),
        ("prefill", 0, 2, {"executor": "P", "cached_tokens": 0}),
        ("transfer", 0, 3, {"source": "P", "target": "D", "blocks": 8}),
        ("decode", 2, 2, {"executor": "P"}),
        ("handover", 2, 3, {}),
        ("decode", 3, 8, {"executor": "D"}),
    ]
    counters = cell.core.counters
    assert (counters.local_prefills, counters.remote_prefills) == (0, 1)
    assert (counters.moves_done, counters.move_wait_s) == (1, STEP_S)
    assert recoveries(cell) == {}


def test_a_request_that_stays(cell: Any) -> None:
    request = submit(cell, prompt=PROMPT[:8])
    until(cell, lambda: request.end)
    assert stages(cell, request) == [
        ("queued", 0, 0, {}),
        ("prefill", 0, 1, {"executor": "D", "cached_tokens": 0}),
        ("decode", 1, 6, {"executor": "D"}),
    ]
    assert (cell.core.counters.local_prefills, cell.core.counters.remote_prefills) == (1, 0)


def test_a_prompt_whose_last_token_has_a_step_of_its_own(make_cell: Callable[..., Any]) -> None:
    cell = make_cell()
    cell.join()
    request = submit(cell, prompt=PROMPT[:17])
    until(cell, lambda: request.end)
    assert [stage[:3] for stage in stages(cell, request)] == [("queued", 0, 0), ("prefill", 0, 2), ("decode", 2, 7)]


def test_who_leaves_before_its_first_token_leaves_its_row_to_others(cell: Any) -> None:
    first = submit(cell, 1, PROMPT[:17])
    step(cell)
    cell.core.abort(first.key)
    second = submit(cell, 2, [7, *PROMPT[:29]])
    step(cell)
    assert cell.core.counters.remote_prefills == 2
    assert second.diary.stages[-1].name == "transfer"
    until(cell, lambda: second.end)
    assert [stage[:3] for stage in stages(cell, second, since=100 + STEP_S)][1] == ("prefill", 0, 2)


def test_a_loss_is_over_with_the_next_token(cell: Any) -> None:
    request = submit(cell)
    until(cell, lambda: len(cell.tokens[request.key]) == 4)
    lost_at = (cell.now - 100) / STEP_S
    cell.lose("D")
    # Nobody decodes: P does what it can.
    until(cell, lambda: len(cell.tokens[request.key]) == 5)
    run(cell)
    told = stages(cell, request)
    assert [name for name, *_ in told[-4:]] == ["queued", "recovery", "prefill", "decode"]
    found = told[-2][3]["cached_tokens"]
    assert found >= 28, "P has kept the prompt"
    assert told[-3] == ("recovery", lost_at, lost_at + 1, {})
    assert cell.core.counters.recoveries == 1
    assert recoveries(cell) == {"executor": (1, STEP_S)}


def test_two_losses_before_a_token_are_one_long_recovery(cell: Any) -> None:
    request = submit(cell)
    until(cell, lambda: len(cell.tokens[request.key]) == 4)
    began_at = cell.now
    cell.lose("D")
    cell.plan()
    cell.now += STEP_S
    cell.lose("P")
    cell.now += 7.0
    cell.join("M", max_model_len=64, num_blocks=64)
    until(cell, lambda: len(cell.tokens[request.key]) == 5)
    assert cell.core.counters.recoveries == 2
    assert cell.now - began_at > 7.0
    assert recoveries(cell) == {"executors": (1, cell.now - began_at)}
    run(cell)
    assert [name for name, *_ in stages(cell, request)].count("recovery") == 1


@pytest.mark.parametrize("waits", [True, False])
def test_a_recovery_that_had_to_wait_for_an_executor(cell: Any, waits: bool) -> None:
    request = submit(cell)
    until(cell, lambda: len(cell.tokens[request.key]) == 4)
    began_at = cell.now
    cell.core.begin_leaving("P")
    cell.lose("D")
    if waits:
        step(cell)
    cell.join("M", max_model_len=64, num_blocks=64)
    until(cell, lambda: len(cell.tokens[request.key]) == 5)
    assert recoveries(cell) == {"executors" if waits else "executor": (1, cell.now - began_at)}


def test_blocks_that_are_lost_on_their_way(cell: Any) -> None:
    request = submit(cell)
    until(cell, left(request), delivers=False)
    began_at = cell.now
    cell.lose_parcel()
    until(cell, lambda: len(cell.tokens[request.key]) == 2)
    assert recoveries(cell) == {"blocks": (1, cell.now - began_at)}


def test_durations_are_counted_in_buckets() -> None:
    durations = Durations((0.1, 2.0))
    for seconds in (0.05, 0.1, 0.11, 2.0, 7.0):
        durations.add(seconds)
    assert durations.counts == [2, 2, 1]
    assert durations.longest_s == 7.0
    assert durations.sum_s == pytest.approx(9.26)


def left(request: Request) -> Callable[[], object]:
    return lambda: request.move and request.move.has_left


def test_why_moves_fail(cell: Any) -> None:
    def failed(*reasons: str) -> None:
        counters = cell.core.counters
        assert counters.move_failures == {reason: reasons.count(reason) for reason in reasons}
        assert counters.moves_failed == len(reasons)

    aborted = submit(cell, 1, [1, *PROMPT])
    until(cell, left(aborted), delivers=False)
    cell.core.abort(aborted.key)
    failed("ended")
    assert [stage[0] for stage in stages(cell, aborted)][-1] == "handover"
    run(cell)

    refused = submit(cell, 2, [2, *PROMPT])
    until(cell, left(refused), delivers=False)
    cell.lose_parcel()
    failed("ended", "push_unreachable")
    run(cell)
    (transfer,) = [stage for stage in stages(cell, refused) if stage[0] == "transfer"]
    assert transfer[3]["failure"] == "push_unreachable"

    cell.now += 10
    late = submit(cell, 3, [3, *PROMPT])
    until(cell, left(late), delivers=False)
    cell.now += 3.0
    until(cell, lambda: late.move is None, delivers=False)
    failed("ended", "push_unreachable", "timeout")
    run(cell)

    cell.now += 10
    orphan = submit(cell, 4, [4, *PROMPT])
    until(cell, left(orphan), delivers=False)
    cell.lose("D")
    failed("ended", "push_unreachable", "timeout", "executor_lost")
    run(cell)
    assert orphan.end


def test_requests_that_run_turn_those_on_their_way_away(make_cell: Callable[..., Any]) -> None:
    cell = make_cell(max_local_prefill_tokens=8, transfer_timeout_s=1000.0)
    cell.join("P", role=ExecutorRole.PREFILL, max_model_len=64, num_blocks=64)
    cell.join("D", role=ExecutorRole.DECODE, max_model_len=64, num_blocks=16)
    here = submit(cell, 1, PROMPT[:8], max_tokens=50)
    until(cell, lambda: here.lane and here.lane.id == "D")
    coming = submit(cell, 2, PROMPT[:29])
    until(cell, lambda: coming.move)
    until(cell, lambda: coming.move is None, delivers=False)
    assert cell.core.counters.move_failures == {"no_room": 1}
    run(cell)


def test_without_a_diary_nothing_is_written(cell: Any) -> None:
    request = cell.submit(1, PROMPT, max_tokens=6, ignore_eos=True)
    run(cell)
    assert request.diary is None
    assert request.end
