"""First come first served and by priority: orders, ties, bounds, and options that are refused."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagoda.scheduler.core.policies import POLICIES
from pagoda.scheduler.core.queue import Policy, make_policy
from pagoda.scheduler.core.request import Request, RequestKey, Sampling


def make_request(arrival: int, *, prompt: int = 4, priority: int = 0, at: float = 0.0) -> Request:
    request = Request(RequestKey("t", arrival), [0] * prompt, Sampling(), priority=priority)
    request.arrival, request.arrived_at = arrival, at
    return request


def arrivals(requests: Iterable[Request]) -> list[int]:
    return [request.arrival for request in requests]


def filled(policy: str, requests: Iterable[Request], **options: float) -> Policy:
    queue = make_policy(policy, max_num_waiting=100, **options)  # type: ignore[arg-type]
    for request in requests:
        queue.add(request)
    return queue


def test_fcfs_ignores_priorities() -> None:
    queue = filled("fcfs", [make_request(1, priority=3), make_request(2, priority=-1), make_request(3)])
    assert arrivals(queue) == [1, 2, 3]


def test_priority_is_lower_first_then_arrival() -> None:
    queue = filled("priority", [make_request(1, priority=1), make_request(2), make_request(3, priority=-2)])
    queue.add(make_request(4))
    assert arrivals(queue) == [3, 2, 4, 1]


@pytest.mark.parametrize("policy", POLICIES)
def test_who_comes_back_is_in_front_of_who_arrived_later(policy: str) -> None:
    requests = [make_request(arrival) for arrival in (1, 2, 3, 4)]
    queue = filled(policy, requests)
    for request in requests[:3]:
        queue.admit(request, 4)
    assert arrivals(queue) == [4]
    queue.add(requests[2])
    queue.add(requests[0])
    assert arrivals(queue) == [1, 3, 4]
    assert len(queue) == 3


def test_a_tie_window_puts_short_prompts_first_within_it_only() -> None:
    requests = [
        make_request(1, prompt=9, at=10.0),
        make_request(2, prompt=5, at=10.4),
        make_request(3, prompt=5, at=10.9),
        make_request(4, prompt=1, at=11.0),
        make_request(5, prompt=2, at=11.9),
        make_request(6, prompt=1, at=11.9),
    ]
    assert arrivals(filled("fcfs", requests, tie_window_s=1.0)) == [2, 3, 1, 4, 6, 5]
    assert arrivals(filled("fcfs", requests)) == [1, 2, 3, 4, 5, 6]


def test_priority_goes_before_the_tie_window() -> None:
    requests = [
        make_request(1, prompt=9),
        make_request(2, prompt=1),
        make_request(3, prompt=5, priority=-1, at=8.0),
        make_request(4, prompt=3, priority=1),
    ]
    assert arrivals(filled("priority", requests, tie_window_s=1.0)) == [3, 2, 1, 4]


@given(
    st.lists(st.tuples(st.floats(0, 3), st.integers(1, 50)), max_size=40),
    st.sampled_from([0.1, 0.3, 1.0]),
)
def test_nobody_is_passed_by_who_came_a_window_later(requests: list[tuple[float, int]], window: float) -> None:
    clock = itertools.accumulate(wait for wait, _ in requests)
    waiting = [
        make_request(arrival, prompt=prompt, at=at)
        for arrival, (at, (_, prompt)) in enumerate(zip(clock, requests, strict=True))
    ]
    order = list(filled("fcfs", waiting, tie_window_s=window))
    for first, second in itertools.combinations(order, 2):
        # 1e-9: the windows' limits are rounded.
        assert first.arrived_at - second.arrived_at < window + 1e-9
        if first.arrival > second.arrival:
            assert first.num_prompt_tokens < second.num_prompt_tokens


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_the_highest_rank_is_last_in_turn(policy: str) -> None:
    waiting = [make_request(arrival, priority=arrival % 3, prompt=arrival * 7 % 5 + 1) for arrival in range(20)]
    queue = filled(policy, waiting, tie_window_s=1.0)
    assert sorted(waiting, key=queue.rank) == list(queue)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_full_queue_refuses(policy: str) -> None:
    queue = make_policy(policy, max_num_waiting=2)
    first, second, third = (make_request(arrival) for arrival in (1, 2, 3))
    queue.add(first)
    assert not queue.refuses(second)
    queue.add(second)
    assert queue.refuses(third)
    queue.admit(first, 4)
    assert not queue.refuses(third)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_request_just_yielded_may_leave_in_the_loop(policy: str) -> None:
    queue = filled(policy, [make_request(arrival) for arrival in range(6)])
    seen = []
    for request in queue:
        seen.append(request.arrival)
        if request.arrival % 3 == 0:
            queue.admit(request, 4)
        elif request.arrival % 3 == 1:
            queue.remove(request)
    assert seen == [0, 1, 2, 3, 4, 5]
    assert arrivals(queue) == [2, 5]


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.integers(-2, 2), st.integers(1, 9)),
        st.tuples(st.just("admit"), st.integers(0, 4), st.booleans()),
        st.tuples(st.just("come back"), st.integers(0, 99), st.none()),
        st.tuples(st.just("remove"), st.integers(0, 99), st.none()),
    ),
    max_size=60,
)


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("window", [0.0, 4.0], ids=["no-window", "window"])
@given(events=EVENTS)
def test_it_is_a_sorted_list(policy: str, window: float, events: list[tuple[str, int, int]]) -> None:
    def rank(request: Request) -> tuple[float, ...]:
        tie = (int(request.arrived_at / window), request.num_prompt_tokens) if window else ()
        return (*((request.priority,) if policy == "priority" else ()), *tie, request.arrival)

    queue = make_policy(policy, max_num_waiting=1000, tie_window_s=window)
    waiting: list[Request] = []
    running: list[Request] = []
    for now, (event, number, extra) in enumerate(events):
        if event == "arrive":
            waiting.append(make_request(now, priority=number, prompt=extra, at=float(now)))
            queue.add(waiting[-1])
        elif event == "admit":
            in_the_loop, admitted = bool(extra), []
            for request in itertools.islice(queue, number):
                admitted.append(request)
                if in_the_loop:
                    queue.admit(request, 1)
            assert admitted == sorted(waiting, key=rank)[:number]
            for request in admitted:
                if not in_the_loop:
                    queue.admit(request, 1)
                waiting.remove(request)
                running.append(request)
        elif event == "come back" and running:
            waiting.append(running.pop(number % len(running)))
            queue.add(waiting[-1])
        elif event == "remove" and waiting:
            queue.remove(waiting.pop(number % len(waiting)))
        assert list(queue) == sorted(waiting, key=rank)
        assert len(queue) == len(waiting)


def test_what_a_policy_cannot_do_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="one of fcfs, priority, fair, got 'lottery'"):
        make_policy("lottery", max_num_waiting=1)
    with pytest.raises(ValueError, match="max_num_waiting must be at least 1, got 0"):
        make_policy("fcfs", max_num_waiting=0)
    with pytest.raises(ValueError, match="tie_window_s must be 0 or more seconds, got -1"):
        make_policy("fcfs", max_num_waiting=1, tie_window_s=-1)
    with pytest.raises(ValueError, match="tie_window_s must be 0 or more seconds, got nan"):
        make_policy("fcfs", max_num_waiting=1, tie_window_s=float("nan"))
    with pytest.raises(ValueError, match="weights are for the policy fair, not for priority"):
        make_policy("priority", max_num_waiting=1, weights="alice=2")
    with pytest.raises(ValueError, match="not for fair"):
        make_policy("fair", max_num_waiting=1, tie_window_s=1.0)
