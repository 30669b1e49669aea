"""Prompts computed on one executor and continued on another, and whatever can go wrong on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pagoda.errors import InvalidArgumentError
from pagoda.scheduler.core import balance, placement
from pagoda.scheduler.core.moves import PAUSE_S
from pagoda.scheduler.core.request import FinishReason, Request
from pagoda.scheduler.core.simulated import expected_tokens
from pagoda.scheduler.core.spec import ExecutorRole

BLOCK_SIZE = 4
PROMPT = list(range(100, 130))
# As much as a step of the cell's executors computes.
BUDGET = 16
MAX_TOKENS = 12


@pytest.fixture
def cell(make_cell: Callable[..., Any]) -> Any:
    """Nobody but P prefills more than 8 tokens; D decodes."""
    cell = make_cell(max_local_prefill_tokens=8)
    join(cell, "P", ExecutorRole.PREFILL)
    join(cell, "D", ExecutorRole.DECODE)
    return cell


def join(cell: Any, name: str, role: ExecutorRole, **changes: Any) -> None:
    cell.join(name, role=role, **({"max_model_len": 64, "num_blocks": 64} | changes))


def submit(cell: Any, number: int = 1, prompt: list[int] = PROMPT, **changes: Any) -> Request:
    request: Request = cell.submit(number, prompt, **({"max_tokens": MAX_TOKENS, "ignore_eos": True} | changes))
    return request


def check(cell: Any, request: Request, count: int = MAX_TOKENS) -> None:
    """It has ended with the tokens that it would have had on one executor."""
    prompt = list(request.token_ids[: request.num_prompt_tokens])
    assert cell.tokens[request.key] == expected_tokens(prompt, request.sampling.seed, 1000, count)
    assert cell.ends[request.key].reason is FinishReason.LENGTH


def until(cell: Any, happened: Callable[[], object], *, delivers: bool = True) -> None:
    """Steps, in which every push arrives, or none."""
    for _ in range(100):
        if happened():
            return
        for name in cell.plan():
            cell.answer(name)
        while delivers and cell.parcels:
            cell.deliver()
        cell.core.settle()
        cell.check()
    raise AssertionError("it does not happen")


def test_a_prompt_is_computed_on_one_executor_and_continued_on_another(cell: Any) -> None:
    request = submit(cell)
    until(cell, lambda: request.lane)
    assert request.lane.id == "P"
    until(cell, lambda: request.lane and request.lane.id == "D")
    # P has sampled the first token, and D the second.
    assert len(cell.tokens[request.key]) == 2
    cell.run()
    check(cell, request)
    counters = cell.core.counters
    assert (counters.remote_prefills, counters.moves_done, counters.moves_failed) == (1, 1, 0)
    assert counters.moved_blocks == -(-len(PROMPT) // BLOCK_SIZE)


def test_blocks_travel_while_the_rest_of_the_prompt_is_computed(cell: Any) -> None:
    request = submit(cell)
    cell.step()
    cell.step()
    assert cell.core.counters.moved_blocks == 0
    assert not request.move.has_left
    assert request.move.num_pushed == request.move.num_arrived == BUDGET // BLOCK_SIZE


@pytest.mark.parametrize("num_tokens", [BUDGET - 1, BUDGET, len(PROMPT)], ids=["one-step", "full-step", "two-steps"])
def test_the_first_token_does_not_wait_for_the_transfer(cell: Any, num_tokens: int) -> None:
    request = submit(cell, prompt=PROMPT[:num_tokens])
    until(cell, lambda: request.move and request.move.has_left, delivers=False)
    assert len(cell.tokens[request.key]) == 1
    assert cell.parcels
    until(cell, lambda: request.end)
    check(cell, request)


@pytest.fixture
def stopped(make_cell: Callable[..., Any]) -> tuple[Any, Request]:
    """Plans are sent ahead: a request's row is stopped, and both its steps are still in flight."""
    cell = make_cell(max_local_prefill_tokens=8, max_plans_in_flight=2)
    join(cell, "P", ExecutorRole.PREFILL)
    join(cell, "D", ExecutorRole.DECODE)
    request = submit(cell)
    cell.plan()
    cell.plan()
    cell.answer("D")
    cell.plan()
    cell.check()
    assert request.move.is_stopped
    assert not request.move.has_left
    return cell, request


def finish(cell: Any) -> None:
    """All that is in flight comes back, and everything ends."""
    for name, flights in cell.in_flight.items():
        while flights:
            cell.answer(name)
    cell.run()


def test_no_token_is_computed_in_vain_where_plans_are_sent_ahead(stopped: tuple[Any, Request]) -> None:
    cell, request = stopped
    cell.answer("P")
    plan = cell.plan()["P"]
    assert (plan.ended_rows, len(cell.in_flight["P"][-1][1].rows)) == ([0], 0)
    while cell.parcels:
        cell.deliver()
    # Everything is there, but for the token that the last step has sampled.
    assert (request.move.num_arrived, cell.tokens[request.key]) == (-(-len(PROMPT) // BLOCK_SIZE), [])
    cell.answer("P")
    cell.plan()
    assert request_is_on(request, "D")
    finish(cell)
    check(cell, request)


def lose_push(cell: Any, request: Request) -> None:
    cell.core.note_failed("P", request.move.arrival.number, "unreachable", cell.now)


@pytest.mark.parametrize(
    "fails",
    [lambda cell, _: cell.lose("P"), lambda cell, _: cell.lose("D"), lose_push],
    ids=["source", "target", "push"],
)
def test_what_goes_wrong_when_a_row_is_stopped_costs_a_recompute(
    stopped: tuple[Any, Request], fails: Callable[[Any, Request], None]
) -> None:
    cell, request = stopped
    fails(cell, request)
    assert request.move is None
    cell.check()
    join(cell, "D2", ExecutorRole.DECODE)
    finish(cell)
    check(cell, request)
    assert (cell.core.counters.recoveries, cell.core.counters.moves_failed) == (1, 1)


def test_a_stopped_request_can_be_aborted(stopped: tuple[Any, Request]) -> None:
    cell, request = stopped
    cell.core.abort(request.key)
    cell.check()
    finish(cell)
    assert not any(lane.arriving or lane.pool.num_referenced for lane in cell.core.lanes.values())


def test_nothing_is_pushed_before_the_target_knows(cell: Any) -> None:
    request = submit(cell)
    cell.plan()
    cell.answer("P")
    cell.plan()
    assert not request.move.arrival.is_granted
    assert not cell.parcels
    cell.answer("D")
    cell.answer("P")
    cell.plan()
    assert cell.parcels


def test_a_short_prompt_stays_where_it_is_decoded(cell: Any) -> None:
    request = submit(cell, prompt=PROMPT[:8])
    cell.run()
    check(cell, request)
    assert cell.core.counters.remote_prefills == 0


def test_what_the_target_has_cached_is_not_sent(cell: Any) -> None:
    submit(cell, 1)
    cell.run()
    moved = cell.core.counters.moved_blocks
    # P has forgotten it.
    cell.lose("P")
    join(cell, "P2", ExecutorRole.PREFILL)
    follower = submit(cell, 2, PROMPT + list(range(300, 312)))
    cell.run()
    check(cell, follower)
    assert cell.core.counters.remote_prefills == 2
    assert cell.core.counters.moved_blocks - moved == -(-42 // BLOCK_SIZE) - 30 // BLOCK_SIZE


def test_a_follow_up_whose_prefix_is_cached_is_computed_where_it_is_decoded(cell: Any) -> None:
    submit(cell, 1)
    cell.run()
    follower = submit(cell, 2, [*PROMPT, 7, 8])
    cell.run()
    check(cell, follower)
    assert cell.core.counters.remote_prefills == 1


@pytest.mark.parametrize(
    ("num_here", "num_tokens", "is_local"),
    [
        (0, 20, True),
        (0, 32, True),  # 4 * 32 <= 100 + 32
        (0, 34, False),
        (2, 32, False),  # The two that run are to be computed, too: 4 * (2 + 32) > 100 + 32
    ],
)
def test_while_much_is_to_be_prefilled_short_prompts_are_computed_where_they_are_decoded(
    cell: Any, num_here: int, num_tokens: int, is_local: bool
) -> None:
    here = [submit(cell, number, [number, *range(7)]) for number in range(num_here)]
    # 100 tokens for P.
    long = [submit(cell, 2 + number, list(range(200 + 100 * number, 250 + 100 * number))) for number in range(2)]
    cell.plan()
    assert [request.lane.id for request in (*here, long[0])] == ["D"] * num_here + ["P"]
    cell.answer("D")
    other = submit(cell, 4, list(range(500, 500 + num_tokens)))
    cell.plan()
    assert request_is_on(other, "D") == is_local
    assert is_local or other.lane is None
    for name in ("P", "D"):
        while cell.in_flight[name]:
            cell.answer(name)
    cell.run()
    for request in (*here, *long, other):
        check(cell, request)


def test_the_emptier_of_two_targets_is_taken(cell: Any) -> None:
    join(cell, "D2", ExecutorRole.DECODE)
    requests = [submit(cell, number, [number, *PROMPT]) for number in range(4)]
    homes = set()
    for _ in range(100):
        if not cell.step():
            break
        homes |= {(request.key.number, request.lane.id) for request in requests if request.lane}
    assert {name for _, name in homes} == {"P", "D", "D2"}
    for request in requests:
        check(cell, request)


def test_a_request_goes_on_where_its_beginning_is(cell: Any) -> None:
    """Though another executor has fewer requests."""
    submit(cell, 1)
    cell.run()
    join(cell, "D2", ExecutorRole.DECODE)
    moved = cell.core.counters.moved_blocks
    other = submit(cell, 2, PROMPT[:4], max_tokens=40)
    cell.step()
    assert other.lane.id == "D"
    follower = submit(cell, 3, PROMPT + list(range(300, 312)))
    until(cell, lambda: request_is_on(follower, "D") or request_is_on(follower, "D2"))
    assert follower.lane.id == "D"
    cell.run()
    check(cell, follower)
    check(cell, other, count=40)
    assert cell.core.counters.moved_blocks - moved == -(-42 // BLOCK_SIZE) - 30 // BLOCK_SIZE


def test_but_not_where_many_others_are(cell: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "SLACK", 0)
    submit(cell, 1)
    cell.run()
    join(cell, "D2", ExecutorRole.DECODE)
    other = submit(cell, 2, PROMPT[:4], max_tokens=40)
    cell.step()
    assert other.lane.id == "D"
    follower = submit(cell, 3, PROMPT + list(range(300, 312)))
    until(cell, lambda: request_is_on(follower, "D") or request_is_on(follower, "D2"))
    assert follower.lane.id == "D2"
    cell.run()
    check(cell, follower)


def test_a_prompt_waits_as_long_as_nobody_could_continue_it(make_cell: Callable[..., Any]) -> None:
    cell = make_cell(max_local_prefill_tokens=0)
    join(cell, "P", ExecutorRole.PREFILL)
    join(cell, "D", ExecutorRole.DECODE, max_num_seqs=1)
    first, second = submit(cell, 1), submit(cell, 2, PROMPT[5:])
    until(cell, lambda: request_is_on(first, "D"))
    assert second.lane is None
    cell.run()
    check(cell, first)
    check(cell, second)


def request_is_on(request: Request, name: str) -> bool:
    return request.lane is not None and request.lane.id == name


def test_prefill_executors_alone_do_everything(make_cell: Callable[..., Any]) -> None:
    cell = make_cell()
    join(cell, "P", ExecutorRole.PREFILL)
    request = submit(cell)
    cell.run()
    check(cell, request)


def test_decode_executors_alone_do_everything(make_cell: Callable[..., Any]) -> None:
    cell = make_cell(max_local_prefill_tokens=0)
    join(cell, "D", ExecutorRole.DECODE)
    request = submit(cell)
    cell.run()
    check(cell, request)


def test_when_decode_executors_come_later_requests_move_to_them(make_cell: Callable[..., Any]) -> None:
    cell = make_cell()
    join(cell, "P", ExecutorRole.PREFILL)
    request = submit(cell)
    until(cell, lambda: len(cell.tokens[request.key]) == 3)
    join(cell, "D", ExecutorRole.DECODE)
    until(cell, lambda: request_is_on(request, "D"))
    cell.run()
    check(cell, request)
    assert cell.core.counters.recoveries == 0


@pytest.mark.parametrize("dead", ["P", "D"])
@pytest.mark.parametrize("stage", ["granted", "pushed", "left"])
def test_an_executor_dies_on_the_way(cell: Any, dead: str, stage: str) -> None:
    request = submit(cell)
    reached = {
        "granted": lambda: request.move and request.move.arrival.is_granted,
        "pushed": lambda: request.move and request.move.num_pushed,
        "left": lambda: request.move and request.move.has_left,
    }
    until(cell, reached[stage], delivers=False)
    cell.lose(dead)
    assert request.move is None
    cell.check()
    join(cell, dead + "2", ExecutorRole.PREFILL if dead == "P" else ExecutorRole.DECODE)
    cell.run()
    check(cell, request)
    assert cell.core.counters.moves_failed == 1


def test_a_push_that_fails_costs_a_recompute(cell: Any) -> None:
    request = submit(cell)
    until(cell, lambda: request.move and request.move.has_left, delivers=False)
    cell.lose_parcel()
    assert request.move is None
    cell.run()
    check(cell, request)
    assert cell.core.counters.recoveries == 1


@pytest.mark.parametrize(("lane", "ends"), [("P", True), ("D", True), ("D2", False)])
def test_either_end_of_a_move_may_say_that_it_has_failed(cell: Any, lane: str, ends: bool) -> None:
    request = submit(cell)
    until(cell, lambda: request.move and request.move.has_left, delivers=False)
    join(cell, "D2", ExecutorRole.DECODE)
    cell.core.note_failed(lane, request.move.arrival.number, "corrupt", cell.now)
    assert (request.move is None) == ends
    assert cell.core.counters.move_failures == ({"push_corrupt": 1} if ends else {})
    while cell.parcels:
        cell.deliver()
    cell.run()
    check(cell, request)


def test_after_a_failure_nothing_is_moved_between_the_two_for_a_while(cell: Any) -> None:
    first = submit(cell)
    until(cell, lambda: cell.parcels, delivers=False)
    cell.lose_parcel()
    # It has its row still, and goes on there.
    until(cell, lambda: len(cell.tokens[first.key]) == 4, delivers=False)
    assert request_is_on(first, "P")
    assert cell.core.counters.recoveries == 0
    cell.now += PAUSE_S
    until(cell, lambda: request_is_on(first, "D"))
    cell.run()
    check(cell, first)


def test_blocks_that_do_not_arrive_in_time_are_computed_again(make_cell: Callable[..., Any]) -> None:
    cell = make_cell(max_local_prefill_tokens=0, transfer_timeout_s=3.0)
    join(cell, "P", ExecutorRole.PREFILL)
    join(cell, "D", ExecutorRole.DECODE)
    request = submit(cell)
    until(cell, lambda: request.move and request.move.has_left, delivers=False)
    late, cell.parcels = cell.parcels, []
    cell.now += 3.0
    until(cell, lambda: request.lane, delivers=False)
    # They come after all, and find no right to write.
    cell.parcels += late
    cell.run()
    check(cell, request)


def test_an_aborted_request_frees_both_executors(cell: Any) -> None:
    request = submit(cell)
    until(cell, lambda: request.move and request.move.has_left, delivers=False)
    cell.core.abort(request.key)
    cell.run()
    assert cell.ends.keys() == {request.key} or not cell.ends
    for lane in cell.core.lanes.values():
        assert not lane.arriving
        assert lane.pool.num_referenced == 0


def test_a_request_that_ends_with_its_first_token_does_not_move(cell: Any) -> None:
    request = submit(cell, max_tokens=1)
    cell.run()
    check(cell, request, count=1)
    assert cell.core.counters.moves_done == 0


def test_requests_of_an_executor_that_leaves_move(cell: Any) -> None:
    requests = [submit(cell, number, [number, *PROMPT]) for number in range(3)]
    until(cell, lambda: all(request_is_on(request, "D") for request in requests))
    join(cell, "D2", ExecutorRole.DECODE)
    cell.core.begin_leaving("D")
    assert not cell.core.may_leave("D")
    until(cell, lambda: cell.core.may_leave("D"))
    cell.lose("D", died=False)
    assert all(request_is_on(request, "D2") for request in requests)
    cell.run()
    for request in requests:
        check(cell, request)
    assert cell.core.counters.recoveries == 0


def test_an_executor_that_leaves_gets_nothing_new(cell: Any) -> None:
    cell.core.begin_leaving("D")
    join(cell, "D2", ExecutorRole.DECODE)
    request = submit(cell, prompt=PROMPT[:8])
    cell.step()
    assert request_is_on(request, "D2")
    assert cell.core.may_leave("D")


def test_without_anywhere_to_go_requests_end_before_their_executor_leaves(make_cell: Callable[..., Any]) -> None:
    cell = make_cell()
    join(cell, "A", ExecutorRole.MIXED)
    request = submit(cell)
    cell.step()
    cell.core.begin_leaving("A")
    cell.run()
    check(cell, request)
    assert cell.core.may_leave("A")


def test_a_new_role_moves_those_who_should_be_elsewhere(make_cell: Callable[..., Any]) -> None:
    cell = make_cell()
    join(cell, "A", ExecutorRole.MIXED)
    request = submit(cell)
    until(cell, lambda: cell.tokens[request.key])
    join(cell, "B", ExecutorRole.DECODE)
    cell.core.set_role("A", ExecutorRole.PREFILL)
    until(cell, lambda: request_is_on(request, "B"))
    cell.run()
    check(cell, request)


def test_a_lane_short_of_blocks_hands_a_request_over_instead_of_preempting_it(make_cell: Callable[..., Any]) -> None:
    cell = make_cell()
    join(cell, "A", ExecutorRole.MIXED, num_blocks=16)
    requests = [submit(cell, number, [number, *PROMPT[:13]], max_tokens=40) for number in range(3)]
    cell.step()
    join(cell, "B", ExecutorRole.MIXED, num_blocks=64)
    cell.run()
    for request in requests:
        check(cell, request, count=40)
    assert cell.core.counters.preemptions == 0
    assert cell.core.counters.moves_done > 0


def test_running_requests_spread_to_an_executor_that_comes(
    make_cell: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(balance, "SLACK", 2)
    cell = make_cell()
    size = {"max_num_seqs": 16, "num_blocks": 256}
    join(cell, "A", ExecutorRole.MIXED, **size)
    requests = [submit(cell, number, [number, *PROMPT[:7]], max_tokens=50) for number in range(12)]
    until(cell, lambda: all(cell.tokens[request.key] for request in requests))
    join(cell, "B", ExecutorRole.MIXED, **size)
    until(cell, lambda: all(len(cell.tokens[request.key]) > 40 for request in requests))
    # 8 and 4 would still be one too many on A, by the rule: 2 * 4 + 2 are more.
    assert sum(request_is_on(request, "B") for request in requests) == 4
    assert cell.core.counters.moves_done == 4
    cell.run()
    for request in requests:
        check(cell, request, count=50)
    assert cell.core.counters.recoveries == cell.core.counters.preemptions == 0


def test_running_requests_turn_those_on_their_way_away(make_cell: Callable[..., Any]) -> None:
    """Of two that need the last blocks, the one that is there goes on."""
    cell = make_cell(max_local_prefill_tokens=8)
    join(cell, "P", ExecutorRole.PREFILL)
    join(cell, "D", ExecutorRole.DECODE, num_blocks=16)
    here = submit(cell, 1, PROMPT[:8], max_tokens=50)
    until(cell, lambda: request_is_on(here, "D"))
    coming = submit(cell, 2, PROMPT[:29])
    until(cell, lambda: coming.move)
    until(cell, lambda: len(cell.tokens[here.key]) == 50 or coming.move is None, delivers=False)
    assert coming.move is None
    assert here.lane
    cell.run()
    check(cell, here, count=50)
    check(cell, coming)


def test_without_an_endpoint_nothing_is_pushed(make_cell: Callable[..., Any]) -> None:
    cell = make_cell(max_local_prefill_tokens=0)
    with pytest.raises(InvalidArgumentError) as raised:
        join(cell, "D", ExecutorRole.DECODE, receives=False)
    assert raised.value.param == "transfer_endpoints"
    join(cell, "P", ExecutorRole.PREFILL, receives=False)
    join(cell, "M", ExecutorRole.MIXED, receives=False)
    requests = [submit(cell, number, [number, *PROMPT]) for number in range(3)]
    cell.run()
    for request in requests:
        check(cell, request)
    assert cell.core.counters.moves_begun == 0
