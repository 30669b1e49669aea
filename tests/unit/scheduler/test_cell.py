"""Several executors: who gets a request, what happens when they leave, and whom the cell refuses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pagoda.errors import (
    Code,
    FailedPreconditionError,
    InvalidArgumentError,
    PagodaError,
    ResourceExhaustedError,
    UnavailableError,
)
from pagoda.scheduler.core.request import FinishReason, RequestKey
from pagoda.scheduler.core.scheduler import MAX_LANES_LOST
from pagoda.scheduler.core.simulated import expected_tokens


def key(number: int, origin: str = "t") -> RequestKey:
    return RequestKey(origin, number)


def tokens(count: int, first: int = 10) -> list[int]:
    return list(range(first, first + count))


def place(cell: Any, number: int) -> str | None:
    """The lane that runs a request."""
    lane = cell.core.requests[key(number)].lane
    return lane.id if lane else None


@pytest.fixture
def pair(make_cell: Callable[..., Any]) -> Any:
    cell = make_cell()
    cell.join("A")
    cell.join("B")
    return cell


def test_requests_spread_over_equal_lanes(pair: Any) -> None:
    for number in range(4):
        pair.submit(number, tokens(4, first=10 * number), max_tokens=9)
    pair.plan()
    assert [place(pair, number) for number in range(4)] == ["A", "B", "A", "B"]


def test_a_request_goes_where_its_prefix_is(pair: Any) -> None:
    pair.submit(1, tokens(9), max_tokens=1)
    pair.submit(2, tokens(9, first=50), max_tokens=1)
    pair.run()
    pair.submit(3, tokens(9, first=50), max_tokens=2)
    pair.submit(4, tokens(9), max_tokens=2)
    pair.plan()
    assert (place(pair, 3), place(pair, 4)) == ("B", "A")


def test_a_long_queue_outweighs_a_short_prefix(pair: Any) -> None:
    pair.submit(1, tokens(5), max_tokens=1)
    pair.run()
    pair.submit(2, tokens(16, first=50), max_tokens=2)
    pair.submit(3, tokens(5), max_tokens=2)
    pair.plan()
    assert (place(pair, 2), place(pair, 3)) == ("A", "B")


def test_a_busy_lane_with_the_prefix_is_worth_waiting_for(pair: Any) -> None:
    pair.submit(1, tokens(13), max_tokens=9)
    pair.step()
    pair.plan()
    pair.submit(2, tokens(13), max_tokens=9)
    assert pair.plan() == {}
    pair.answer("A")
    assert list(pair.plan()) == ["A"]
    assert place(pair, 2) == "A"


def test_a_lost_lanes_requests_return_to_the_front_with_their_tokens(make_cell: Callable[..., Any]) -> None:
    cell = make_cell()
    cell.join("A", max_num_seqs=2)
    for number in (1, 2, 3):
        cell.submit(number, tokens(4, first=20 * number), max_tokens=6)
    for _ in range(3):
        cell.step()
    cell.plan()
    cell.lose("A")
    assert [request.key.number for request in cell.core.waiting] == [1, 2, 3]
    assert cell.core.counters.recoveries == 2
    cell.check()
    cell.join("B")
    start = cell.step()["B"].started_rows[0]
    assert len(start.token_ids) == 4 + 3
    cell.run()
    for number in (1, 2, 3):
        assert cell.tokens[key(number)] == expected_tokens(tokens(4, first=20 * number), 0, 1000, 6)


@pytest.mark.parametrize(("died", "survives"), [(True, False), (False, True)])
def test_a_request_outlives_some_dead_executors_and_any_that_leave(
    make_cell: Callable[..., Any], died: bool, survives: bool
) -> None:
    cell = make_cell()
    cell.submit(1, tokens(4), max_tokens=9)
    for number in range(MAX_LANES_LOST):
        cell.join(f"lane-{number}")
        cell.submit(2 + number, tokens(4), max_tokens=1)
        cell.plan()
        cell.lose(f"lane-{number}", died=died)
    cell.join("last")
    cell.run()
    end = cell.ends[key(1)]
    assert end.reason is (FinishReason.LENGTH if survives else FinishReason.ERROR)
    if not survives:
        assert end.error.reason == "EXECUTOR_LOST"
        assert end.error.code is Code.UNAVAILABLE
        assert cell.tokens[key(1)] == []


def test_a_request_that_gets_further_outlives_any_number_of_dead_executors(make_cell: Callable[..., Any]) -> None:
    cell = make_cell()
    cell.submit(1, tokens(4), max_tokens=9)
    for number in range(6):
        cell.join(f"lane-{number}")
        cell.step()
        cell.lose(f"lane-{number}")
    cell.join("last")
    cell.run()
    assert cell.ends[key(1)].reason is FinishReason.LENGTH


def test_a_request_that_waited_is_no_suspect(make_cell: Callable[..., Any]) -> None:
    cell = make_cell()
    cell.submit(1, tokens(4), max_tokens=2)
    for _ in range(4):
        cell.join("A")
        cell.lose("A")
    cell.join("A")
    cell.run()
    assert cell.ends[key(1)].reason is FinishReason.LENGTH


def test_requests_wait_for_an_executor_until_a_deadline(make_cell: Callable[..., Any]) -> None:
    cell = make_cell(no_executor_timeout_s=60)
    cell.submit(1, tokens(4))
    cell.now += 59
    cell.submit(2, tokens(4))
    cell.step()
    assert not cell.ends
    cell.now += 1
    cell.step()
    assert list(cell.ends) == [key(1)]
    assert cell.ends[key(1)].error.reason == "NO_EXECUTOR"


def test_the_deadline_counts_from_the_loss_of_the_last_executor(make_cell: Callable[..., Any]) -> None:
    cell = make_cell(no_executor_timeout_s=60)
    cell.join()
    cell.submit(1, tokens(4))
    cell.step()
    cell.now += 1000
    cell.lose("A")
    cell.now += 59
    cell.step()
    assert not cell.ends
    cell.now += 1
    cell.step()
    assert cell.ends[key(1)].error.reason == "NO_EXECUTOR"


def test_waiting_requests_meet_the_model_when_it_comes(make_cell: Callable[..., Any]) -> None:
    cell = make_cell()
    cell.submit(1, tokens(32))
    cell.submit(2, tokens(4), max_tokens=1)
    cell.submit(3, tokens(6), num_prompt_tokens=4, max_tokens=2)
    cell.join(max_model_len=32)
    cell.run()
    assert cell.ends[key(1)].error.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert cell.ends[key(2)].reason is cell.ends[key(3)].reason is FinishReason.LENGTH
    assert cell.tokens[key(3)] == tokens(2, first=14)


def test_a_new_model_ends_what_was_meant_for_the_old_one(make_cell: Callable[..., Any]) -> None:
    cell = make_cell()
    cell.join()
    cell.submit(1, tokens(4))
    cell.lose("A")
    cell.join("B", fingerprint="another")
    cell.run()
    assert cell.ends[key(1)].error.reason == "MODEL_CHANGED"
    assert cell.core.model.fingerprint == "another"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fingerprint": "x"}, "fingerprint 'x' instead of 'ffffffff'"),
        ({"max_model_len": 16}, "max_model_len 16 instead of 32"),
        ({"vocab_size": 7}, "vocab_size 7 instead of 1000"),
        ({"block_size": 8}, "block_size 8 instead of 4"),
        ({"kv_dtype": "int8"}, "kv_dtype 'int8' instead of ''"),
    ],
)
def test_an_executor_of_another_kind_is_refused(
    cell: Any, spec_of: Callable[..., Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(FailedPreconditionError, match=message):
        cell.core.add_lane("B", spec_of(**changes))
    assert list(cell.core.lanes) == ["A"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"num_blocks": 7}, "num_blocks"),
        ({"num_blocks": 0}, "num_blocks"),
        ({"num_blocks": 1 << 31}, "num_blocks"),
        ({"block_size": 0}, "block_size"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_batched_tokens": 3}, "max_num_batched_tokens"),
        ({"max_model_len": 1}, "max_model_len"),
        ({"vocab_size": 0}, "vocab_size"),
    ],
)
def test_an_executor_that_could_not_work_is_refused(
    make_cell: Callable[..., Any], spec_of: Callable[..., Any], changes: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        make_cell().core.add_lane("B", spec_of(**changes))
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("token_ids", "fields", "param"),
    [
        ([], {}, "prompt"),
        ([1000], {}, "prompt"),
        (tokens(32), {}, "prompt"),
        (tokens(30), {"max_tokens": 3}, "max_tokens"),
        ([1], {"max_tokens": 0}, "max_tokens"),
        ([1], {"temperature": -0.1}, "temperature"),
        ([1], {"temperature": float("nan")}, "temperature"),
        ([1], {"temperature": float("inf")}, "temperature"),
        ([1], {"top_p": 0.0}, "top_p"),
        ([1], {"top_p": 1.1}, "top_p"),
        ([1], {"top_p": float("nan")}, "top_p"),
        ([1], {"top_k": -2}, "top_k"),
        ([1], {"min_p": -0.1}, "min_p"),
        ([1], {"min_p": 1.1}, "min_p"),
        ([1], {"min_tokens": 5, "max_tokens": 4}, "min_tokens"),
        ([1], {"stop_token_ids": frozenset({1000})}, "stop_token_ids"),
        ([1], {"num_prompt_tokens": 2}, "num_prompt_tokens"),
        ([1], {"num_prompt_tokens": 0}, "num_prompt_tokens"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused_by_name(
    cell: Any, token_ids: list[int], fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        cell.submit(1, token_ids, **fields)
    assert raised.value.param == param
    assert not cell.core.requests
    assert cell.core.counters.requests_rejected == 1


def test_too_long_requests_are_told_the_numbers(cell: Any) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        cell.submit(1, tokens(30), max_tokens=3)
    assert raised.value.reason == "CONTEXT_LENGTH_EXCEEDED"
    assert raised.value.message == (
        "This model's maximum context length is 32 tokens. However, you requested 33 tokens (30 in the prompt, "
        "3 in the completion). Please shorten the prompt or lower max_tokens."
    )
    cell.submit(1, tokens(30), max_tokens=2)
    cell.submit(2, tokens(31))


def test_a_full_queue_refuses_but_takes_back_what_was_accepted(make_cell: Callable[..., Any]) -> None:
    cell = make_cell(max_num_waiting=1)
    cell.submit(1, tokens(4))
    with pytest.raises(ResourceExhaustedError) as raised:
        cell.submit(2, tokens(4))
    assert raised.value.reason == "QUEUE_FULL"
    cell.submit(3, tokens(4), num_prompt_tokens=2)
    assert len(cell.core.waiting) == 2


def test_all_of_one_origin_are_aborted(cell: Any) -> None:
    for number in (1, 2):
        cell.submit(number, tokens(4), origin="gone")
        cell.submit(number, tokens(4), origin="here", max_tokens=2)
    cell.step()
    cell.core.abort_all_of("gone")
    cell.run()
    assert {name for name, end in cell.ends.items() if end.reason is FinishReason.ABORT} == {
        key(1, "gone"),
        key(2, "gone"),
    }


def test_after_refusing_new_requests_the_old_ones_go_on(cell: Any) -> None:
    cell.submit(1, tokens(4), max_tokens=3)
    assert cell.core.is_ready
    cell.core.refuse_new(UnavailableError("draining"))
    assert not cell.core.is_ready
    with pytest.raises(PagodaError, match="draining"):
        cell.submit(2, tokens(4))
    cell.run()
    assert cell.ends[key(1)].reason is FinishReason.LENGTH


def test_every_request_can_be_ended_at_once(cell: Any) -> None:
    for number in range(6):
        cell.submit(number, tokens(4))
    cell.plan()
    cell.core.end_all(UnavailableError("shutting down"))
    cell.answer()
    cell.check()
    assert all(end.reason is FinishReason.ERROR for end in cell.ends.values())
    assert len(cell.ends) == 6
