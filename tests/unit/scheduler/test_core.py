"""Steps of one executor with 8 blocks of 4 tokens, 4 rows and 16 tokens per step: exact plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pagoda.scheduler.core.lane import BadResultError
from pagoda.scheduler.core.plan import BlockCopies, StepResult
from pagoda.scheduler.core.request import End, FinishReason, RequestKey
from pagoda.scheduler.core.simulated import expected_tokens


def tokens(count: int, first: int = 10) -> list[int]:
    return list(range(first, first + count))


def result(step: int, rows: list[int], token_ids: list[int]) -> StepResult:
    return StepResult(step, np.array(rows, np.uint32), np.array(token_ids, np.uint32))


def appended(plan: Any) -> list[tuple[int, int]]:
    return list(zip(plan.block_rows, plan.block_ids, strict=True))


def blocks(cell: Any, lane: str = "A") -> tuple[int, int, int]:
    cell.core.settle()
    pool = cell.core.lanes[lane].pool
    return pool.num_free, pool.num_referenced, pool.num_cached


def test_a_prompt_runs_whole_and_then_token_by_token(cell: Any) -> None:
    cell.submit(1, tokens(6), max_tokens=4, seed=9, temperature=0.5)
    first = cell.step()["A"]
    (start,) = first.started_rows
    assert (start.row, list(start.token_ids), start.num_computed_tokens, start.block_ids) == (0, tokens(6), 0, (0, 1))
    assert (start.sampling.seed, start.sampling.temperature) == (9, 0.5)
    assert (first.step, cell.work[first.step], appended(first)) == (1, {0: 6}, [])
    second, third, fourth = (cell.step()["A"] for _ in range(3))
    assert [cell.work[plan.step] for plan in (second, third, fourth)] == [{0: 1}] * 3
    # Token 8 is the first of block 2.
    assert [appended(plan) for plan in (second, third, fourth)] == [[], [], [(0, 2)]]
    assert (second.started_rows, second.ended_rows) == ([], [])
    assert cell.ends[RequestKey("t", 1)] == End(FinishReason.LENGTH)
    assert cell.tokens[RequestKey("t", 1)] == expected_tokens(tokens(6), 9, 1000, 4)
    assert cell.step() == {}
    # Two blocks are full; the third holds the last token but one, and can still be copied.
    assert blocks(cell) == (5, 0, 3)


def test_a_row_that_ended_is_named_in_the_next_plan_and_used_again(cell: Any) -> None:
    cell.submit(1, tokens(2), max_tokens=1)
    cell.step()
    cell.submit(2, tokens(3, first=50), max_tokens=1)
    plan = cell.step()["A"]
    assert plan.ended_rows == [0]
    assert [start.row for start in plan.started_rows] == [0]


def test_a_long_prompt_is_computed_in_chunks(cell: Any) -> None:
    cell.submit(1, tokens(22), max_tokens=1)
    first, second = cell.step()["A"], cell.step()["A"]
    assert first.started_rows[0].block_ids == (0, 1, 2, 3, 4, 5)
    assert (cell.work[first.step], cell.work[second.step]) == ({0: 16}, {0: 6})
    assert len(cell.tokens[RequestKey("t", 1)]) == 1


def test_running_requests_get_their_token_before_a_prompt_gets_its_chunk(cell: Any) -> None:
    cell.submit(1, tokens(2), max_tokens=9)
    cell.step()
    cell.submit(2, tokens(16, first=50), max_tokens=9)
    assert cell.work[cell.step()["A"].step] == {0: 1, 1: 15}
    # The first token of the third prompt comes with what is left of the budget.
    cell.submit(3, tokens(3, first=90), max_tokens=9)
    assert cell.work[cell.step()["A"].step] == {0: 1, 1: 1, 2: 3}
    assert cell.work[cell.step()["A"].step] == {0: 1, 1: 1, 2: 1}


def test_a_chunk_under_way_goes_on_before_the_next_prompt_starts(cell: Any) -> None:
    cell.submit(1, tokens(18), max_tokens=2)
    cell.submit(2, tokens(4, first=50), max_tokens=2)
    first, second = cell.step()["A"], cell.step()["A"]
    assert (cell.work[first.step], cell.work[second.step]) == ({0: 16}, {0: 2, 1: 4})


def test_a_prefix_that_was_computed_is_shared(cell: Any) -> None:
    cell.submit(1, tokens(10), max_tokens=9)
    cell.step()
    request = cell.submit(2, [*tokens(8), 99], max_tokens=9)
    (start,) = cell.step()["A"].started_rows
    assert (start.num_computed_tokens, start.block_ids) == (8, (0, 1, 3))
    assert request.num_cached_tokens == 8
    counters = cell.core.counters
    assert (counters.prefix_cache_queries, counters.prefix_cache_hits, counters.prompt_tokens) == (19, 8, 19)


def test_the_last_token_is_always_computed_again(cell: Any) -> None:
    cell.submit(1, tokens(8), max_tokens=1)
    cell.step()
    cell.submit(2, tokens(8), max_tokens=1)
    plan = cell.step()["A"]
    (start,) = plan.started_rows
    # Block 0 is shared; the row goes on in a copy of block 1, whose last slot it writes again.
    assert (start.num_computed_tokens, start.block_ids, cell.work[plan.step]) == (7, (0, 2), {0: 1})
    assert plan.copies == BlockCopies((1,), (2,))
    assert cell.tokens[RequestKey("t", 1)] == cell.tokens[RequestKey("t", 2)]
    # Block 2 came to hold what block 1 held already.
    assert blocks(cell) == (6, 0, 2)


def test_generated_tokens_are_cached_like_prompts(cell: Any) -> None:
    cell.submit(1, tokens(6), max_tokens=8)
    cell.run()
    conversation = tokens(6) + expected_tokens(tokens(6), 0, 1000, 8)
    # The very last token was sampled and never computed; of 13 that were, 12 are in full blocks.
    assert cell.submit(2, [*conversation, 5], max_tokens=1).num_cached_tokens is None
    plan = cell.step()["A"]
    assert plan.started_rows[0].num_computed_tokens == 13
    assert len(plan.copies.sources) == 1


def test_requests_alike_wait_for_the_first_to_compute_what_they_share(cell: Any) -> None:
    for number in (1, 2, 3):
        cell.submit(number, [*tokens(8), 90 + number], max_tokens=2)
    assert cell.work[cell.step()["A"].step] == {0: 9}
    plan = cell.step()["A"]
    assert cell.work[plan.step] == {0: 1, 1: 1, 2: 1}
    assert [start.block_ids for start in plan.started_rows] == [(0, 1, 3), (0, 1, 4)]


def test_a_request_does_not_wait_for_a_small_part_of_it(cell: Any) -> None:
    cell.submit(1, tokens(4), max_tokens=2)
    cell.submit(2, tokens(10), max_tokens=2)
    assert cell.work[cell.step()["A"].step] == {0: 4, 1: 10}


def test_a_request_that_waits_for_a_prefix_keeps_its_place(cell: Any) -> None:
    cell.submit(1, tokens(8), max_tokens=8)  # blocks 0 1, later 2
    cell.submit(2, [*tokens(8), 91], max_tokens=8)
    cell.submit(3, tokens(18, first=50), max_tokens=2)  # 5 blocks, of the 6 that are left
    assert cell.work[cell.step()["A"].step] == {0: 8}
    assert [start.row for start in cell.step()["A"].started_rows] == [1]


def test_prefixes_are_shared_within_one_salt_only(cell: Any) -> None:
    cell.submit(1, tokens(9), max_tokens=1, cache_salt=b"alice")
    cell.step()
    for number, (salt, cached) in enumerate([(b"", 0), (b"bob", 0), (b"alice", 8)], start=2):
        request = cell.submit(number, tokens(9), max_tokens=1, cache_salt=salt)
        cell.step()
        assert request.num_cached_tokens == cached


def test_without_prefix_caching_everything_is_computed(make_cell: Callable[..., Any]) -> None:
    cell = make_cell(enable_prefix_caching=False)
    cell.join()
    for number in (1, 2):
        cell.submit(number, tokens(9), max_tokens=1)
        assert cell.step()["A"].started_rows[0].num_computed_tokens == 0
    assert blocks(cell) == (8, 0, 0)


def test_the_last_to_come_is_preempted_and_goes_on_later(cell: Any) -> None:
    cell.submit(1, tokens(12), max_tokens=9)  # blocks 0 1 2
    cell.step()
    cell.submit(2, tokens(13, first=50), max_tokens=9)  # blocks 4 5 6 7, as request 1 has taken block 3
    cell.step()
    assert blocks(cell) == (0, 8, 0)
    for _ in range(3):
        cell.step()
    # Both need a block for token 16. Request 2 makes room, and its end is evicted before its beginning.
    plan = cell.step()["A"]
    assert (appended(plan), cell.work[plan.step]) == ([(0, 7)], {0: 1})
    assert plan.ended_rows == [1]
    assert [request.key.number for request in cell.core.waiting] == [2]
    assert cell.core.counters.preemptions == 1
    assert blocks(cell) == (0, 5, 3)
    cell.run()
    for number, prompt in ((1, tokens(12)), (2, tokens(13, first=50))):
        assert cell.tokens[RequestKey("t", number)] == expected_tokens(prompt, 0, 1000, 9)


def test_the_lowest_priority_is_preempted_first(cell: Any) -> None:
    cell.submit(1, tokens(12), max_tokens=9, priority=5)
    cell.step()
    cell.submit(2, tokens(14, first=50), max_tokens=9)
    while not cell.core.counters.preemptions:
        cell.step()
    assert [request.key.number for request in cell.core.waiting] == [1]


def test_a_request_that_fills_the_context_ends_by_length(cell: Any) -> None:
    cell.submit(1, tokens(30))
    cell.run()
    assert cell.ends[RequestKey("t", 1)] == End(FinishReason.LENGTH)
    assert len(cell.tokens[RequestKey("t", 1)]) == 2


def test_nobody_overtakes_the_first_in_the_queue(cell: Any) -> None:
    cell.submit(1, tokens(16), max_tokens=16)
    cell.step()
    cell.submit(2, tokens(20, first=50), max_tokens=1)  # needs 5 blocks of the 3 there are
    cell.submit(3, tokens(2, first=90), max_tokens=1)
    assert cell.work[cell.step()["A"].step] == {0: 1}
    assert [request.key.number for request in cell.core.waiting] == [2, 3]


def test_the_queue_is_ordered_by_priority_and_then_arrival(cell: Any) -> None:
    for number, priority in enumerate([1, 0, 1, -2], start=1):
        cell.submit(number, [number], priority=priority)
    assert [request.key.number for request in cell.core.waiting] == [4, 2, 1, 3]


def test_an_aborted_request_keeps_its_blocks_until_its_step_came_back(cell: Any) -> None:
    cell.submit(1, tokens(6), max_tokens=9)
    cell.plan()
    cell.core.abort(RequestKey("t", 1))
    cell.check()
    assert blocks(cell) == (6, 2, 0)
    cell.answer()
    assert blocks(cell) == (6, 0, 2)
    assert cell.ends[RequestKey("t", 1)].reason is FinishReason.ABORT
    assert cell.tokens[RequestKey("t", 1)] == []
    cell.core.abort(RequestKey("t", 1))
    assert cell.step() == {}


def test_an_aborted_request_that_waits_or_rests_is_freed_at_once(cell: Any) -> None:
    cell.submit(1, tokens(6), max_tokens=9)
    cell.step()
    cell.submit(2, tokens(6), max_tokens=9)
    for number in (1, 2):
        cell.core.abort(RequestKey("t", number))
    assert blocks(cell) == (6, 0, 2)
    assert not cell.core.waiting


@pytest.mark.parametrize(
    ("position", "fields", "end"),
    [
        (2, {"stop": True}, FinishReason.STOP),
        (2, {"stop": True, "min_tokens": 3}, FinishReason.STOP),
        (2, {"stop": True, "min_tokens": 4}, FinishReason.LENGTH),
        (2, {"eos": True}, FinishReason.STOP),
        (2, {"eos": True, "ignore_eos": True}, FinishReason.LENGTH),
        (4, {"stop": True}, FinishReason.STOP),
    ],
)
def test_stop_tokens(make_cell: Callable[..., Any], position: int, fields: dict[str, Any], end: FinishReason) -> None:
    generated = expected_tokens(tokens(3), 0, 1000, 5)
    stop = generated[position]
    cell = make_cell()
    cell.join(eos_token_ids=frozenset({stop} if fields.pop("eos", False) else {999}))
    stop_ids = frozenset({stop} if fields.pop("stop", False) else ())
    cell.submit(1, tokens(3), max_tokens=5, stop_token_ids=stop_ids, **fields)
    cell.run()
    expected = generated[: position + 1] if end is FinishReason.STOP else generated
    assert cell.tokens[RequestKey("t", 1)] == expected
    ended = cell.ends[RequestKey("t", 1)]
    assert (ended.reason, ended.stop_token_id) == (end, stop if end is FinishReason.STOP else None)


def test_a_request_handed_over_goes_on_where_it_was(cell: Any) -> None:
    generated = expected_tokens(tokens(5), 0, 1000, 6)
    cell.submit(1, tokens(5) + generated[:2], num_prompt_tokens=5, max_tokens=6)
    cell.submit(2, tokens(5) + generated, num_prompt_tokens=5, max_tokens=6)
    stop = frozenset({generated[1]})
    cell.submit(3, tokens(5) + generated[:2], num_prompt_tokens=5, max_tokens=6, stop_token_ids=stop)
    assert cell.ends[RequestKey("t", 2)] == End(FinishReason.LENGTH)
    assert cell.ends[RequestKey("t", 3)] == End(FinishReason.STOP, stop_token_id=generated[1])
    cell.run()
    assert cell.tokens[RequestKey("t", 1)] == generated


@pytest.mark.parametrize(
    "answer",
    [
        result(2, [0, 1], [5, 5]),
        result(1, [0], [5]),
        result(1, [0, 0], [5, 5]),
        result(1, [0, 2], [5, 5]),
        result(1, [0, 1], [5]),
        result(1, [0, 1], [5, 1000]),
    ],
)
def test_a_result_that_does_not_answer_the_plan_changes_nothing(cell: Any, answer: StepResult) -> None:
    cell.submit(1, tokens(2), max_tokens=2)
    cell.submit(2, tokens(3), max_tokens=2)
    cell.plan()
    with pytest.raises(BadResultError):
        cell.core.commit("A", answer, cell.now)
    cell.answer()
    cell.run()
    assert len(cell.ends) == 2


def test_two_plans_in_flight_wait_for_nobody(make_cell: Callable[..., Any]) -> None:
    cell = make_cell(max_plans_in_flight=2)
    cell.join()
    cell.submit(1, tokens(6), max_tokens=3)
    assert [cell.work[cell.plan()["A"].step] for _ in range(2)] == [{0: 6}, {0: 1}]
    assert cell.plan() == {}
    cell.answer()
    assert cell.work[cell.plan()["A"].step] == {0: 1}
    # The third and last token is on its way: there is nothing to plan for.
    cell.answer()
    assert cell.plan() == {}
    cell.answer()
    assert cell.ends[RequestKey("t", 1)].reason is FinishReason.LENGTH
    assert blocks(cell) == (6, 0, 2)


def test_what_two_plans_in_flight_computed_is_shared_to_the_last_token(make_cell: Callable[..., Any]) -> None:
    """The engine sends both before it settles."""
    cell = make_cell(max_plans_in_flight=2)
    cell.join()
    for number in (1, 2):
        cell.submit(number, tokens(7), max_tokens=8, seed=number)
    assert cell.work[cell.plan(settles=False)["A"].step] == {0: 7}
    assert cell.work[cell.plan()["A"].step] == {0: 1}
    cell.answer()
    plan = cell.plan()["A"]
    assert cell.work[plan.step] == {0: 1, 1: 1}
    assert (plan.started_rows[0].block_ids, plan.copies) == ((0, 3), BlockCopies((1,), (3,)))


@pytest.mark.parametrize(("blocks_ahead", "work"), [(2, {0: 1, 1: 4}), (3, {0: 1})])
def test_running_requests_have_blocks_ahead(
    make_cell: Callable[..., Any], blocks_ahead: int, work: dict[int, int]
) -> None:
    cell = make_cell(blocks_ahead=blocks_ahead)
    cell.join()
    cell.submit(1, tokens(17), max_tokens=8)  # 5 of the 8 blocks
    cell.submit(2, tokens(4, first=50), max_tokens=2)
    assert cell.work[cell.step()["A"].step] == {0: 16}
    assert cell.work[cell.step()["A"].step] == work
