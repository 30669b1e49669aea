"""Fair shares: turns, charges, who is lifted and who is remembered, against a plain counter and the published bound."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda.scheduler.core import fair
from pagoda.scheduler.core.fair import FairQueue
from pagoda.scheduler.core.policies import parse_weights
from pagoda.scheduler.core.queue import make_policy
from pagoda.scheduler.core.request import Request, RequestKey, Sampling

_arrivals = itertools.count(1)


def make_request(client: str, prompt: int = 10, *, priority: int = 0, arrival: int | None = None) -> Request:
    arrival = next(_arrivals) if arrival is None else arrival
    request = Request(RequestKey("t", arrival), [0] * prompt, Sampling(), client_id=client, priority=priority)
    request.arrival = arrival
    return request


def clients(requests: Iterable[Request]) -> str:
    return "".join(request.client_id for request in requests)


def filled(names: str, *, prompt: int = 10, weights: dict[str, float] | None = None) -> FairQueue:
    """A request for each letter, which is its client."""
    queue = FairQueue(1000, weights)
    for name in names:
        queue.add(make_request(name, prompt))
    return queue


def take(queue: FairQueue, count: int) -> list[Request]:
    """Admits the next `count` without cached tokens."""
    admitted = list(itertools.islice(queue, count))
    for request in admitted:
        queue.admit(request, request.num_prompt_tokens)
    return admitted


def charge(queue: FairQueue, request: Request, num_tokens: int) -> None:
    for _ in range(num_tokens):
        queue.charge_outputs(np.array([queue.slot(request)], np.intp))


def test_admissions_of_one_step_alternate_between_clients() -> None:
    queue = filled("aaaaabbb")
    assert clients(queue) == "abababaa"
    assert clients(take(queue, 4)) == "abab"
    assert clients(queue) == "abaa"


def test_long_prompts_cost_turns() -> None:
    queue = FairQueue(100)
    for _ in range(2):
        queue.add(make_request("a", 30))
    for _ in range(6):
        queue.add(make_request("b", 10))
    assert clients(queue) == "abbbabbb"


def test_weights_are_shares() -> None:
    queue = filled("aaaaaabbbbbb", weights={"a": 2})
    assert Counter(clients(take(queue, 9))) == {"a": 6, "b": 3}


def test_cached_tokens_cost_nothing() -> None:
    queue = filled("aabb")
    first = next(iter(queue))
    queue.admit(first, 0)
    assert clients(queue) == "abb"


def test_an_admission_in_the_loop_counts_as_what_it_cost() -> None:
    queue = filled("aaabbb")
    order = []
    for request in queue:
        order.append(request.client_id)
        queue.admit(request, 1 if request.client_id == "a" else 10)
    assert "".join(order) == "abaabb"


def test_one_clients_requests_go_by_priority_then_arrival() -> None:
    queue = FairQueue(100)
    requests = [make_request("a", priority=priority) for priority in (1, 0, -1, 0)]
    for request in requests:
        queue.add(request)
    assert list(queue) == [requests[2], requests[1], requests[3], requests[0]]


def test_generated_tokens_are_charged_in_one_go() -> None:
    queue = filled("aabbcc")
    running = {request.client_id: request for request in take(queue, 3)}
    slots = [queue.slot(running[name]) for name in "aaab"]
    queue.charge_outputs(np.array(slots, np.intp))
    assert clients(queue) == "cba"
    queue.charge_outputs(np.array([], np.intp))
    assert clients(queue) == "cba"


def test_who_comes_back_after_a_preemption_is_not_charged_again() -> None:
    queue = filled("aabb")
    first, _ = take(queue, 2)
    queue.add(first)
    queue.admit(first, 10)
    assert clients(queue) == "ab"


def test_who_was_away_saves_nothing_up() -> None:
    queue = filled("aaaaaaaa")
    take(queue, 4)
    for _ in range(4):
        queue.add(make_request("b"))
    assert clients(queue) == "abababab"


def test_an_idle_system_starts_where_the_last_client_is() -> None:
    queue = filled("a")
    (first,) = take(queue, 1)
    charge(queue, first, 5)
    queue.finish(first)
    for name in "bbaa":
        queue.add(make_request(name))
    assert clients(queue) == "baba"


def test_who_had_more_than_others_still_has_after_a_while_away() -> None:
    queue = filled("ab" + "b" * 9)
    first, _ = take(queue, 2)
    charge(queue, first, 14)
    queue.finish(first)
    queue.add(make_request("a"))
    # The counters: a 38, b 10.
    assert clients(queue) == "bbbabbbbbb"


def test_what_is_remembered_of_clients_away_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fair, "MAX_CLIENTS_AWAY", 2)
    queue = filled("zzabc")
    running = take(queue, 4)
    assert clients(running) == "zabc"
    for request in running[1:]:
        charge(queue, request, 100)
        queue.finish(request)
    for name in "cba":
        queue.add(make_request(name))
    # Only a, which was the first to leave, comes back without its 210.
    assert clients(queue) == "zacb"


def test_numbers_of_clients_are_small_and_used_again() -> None:
    queue = FairQueue(1000)
    for number in range(1000):
        request = make_request(f"client-{number}")
        queue.add(request)
        take(queue, 1)
        assert queue.slot(request) == 0
        queue.finish(request)
    requests = [make_request(f"client-{number}") for number in range(100)]
    for request in requests:
        queue.add(request)
    slots = [queue.slot(request) for request in requests]
    assert sorted(slots) == list(range(100))
    take(queue, 100)
    for request in requests[::2]:
        queue.finish(request)
    assert [queue.slot(request) for request in requests[1::2]] == slots[1::2]
    queue.add(make_request("new"))
    assert clients(queue) == "new"


def test_new_clients_cannot_pass_an_old_one_for_ever() -> None:
    queue = FairQueue(1000)
    # Numbers that are free again are given out first, and lower than the number of the client that waits.
    early = [make_request(f"early-{number}") for number in range(5)]
    patient = make_request("patient")
    for request in [*early, patient]:
        queue.add(request)
    for request in early:
        queue.remove(request)
        queue.finish(request)
    for number in range(3):
        queue.add(make_request(f"new-{number}"))
    assert next(iter(queue)) is patient


def test_who_got_a_row_with_more_behind_them_is_preempted_first() -> None:
    queue = filled("aaabbb")
    running = take(queue, 4)
    assert sorted(running, key=queue.rank) == running
    ranks = [queue.rank(request) for request in running]
    charge(queue, running[0], 50)
    queue.add(running[0])
    queue.admit(running[0], 10)
    assert [queue.rank(request) for request in running] == ranks


def test_a_priority_protects_from_ones_own_requests_only() -> None:
    queue = FairQueue(100)
    for _ in range(3):
        queue.add(make_request("a", priority=-100))
    queue.add(make_request("b"))
    running = take(queue, 4)
    assert clients(running) == "abaa"
    assert clients(sorted(running, key=queue.rank)) == "abaa"


def test_who_floods_the_queue_shuts_out_only_itself() -> None:
    queue = FairQueue(12)
    flood = [make_request("a") for _ in range(12)]
    for request in flood:
        assert not queue.refuses(request)
        queue.add(request)
    assert queue.refuses(make_request("a"))

    def join(name: str) -> int:
        for count in itertools.count():
            if queue.refuses(request := make_request(name)):
                return count
            queue.add(request)
        raise AssertionError

    assert [join(name) for name in "bcdefghijklm"] == [12 // 2, 12 // 3, 12 // 4, 2, 2, 1, 1, 1, 1, 1, 1, 0]
    queue.remove(flood[0])
    assert queue.refuses(make_request("a"))


@given(
    bound=st.integers(1, 12),
    events=st.lists(st.one_of(st.integers(0, 20).map(str), st.integers(-50, -1)), max_size=150),
)
def test_the_queue_stays_bounded_whoever_comes(bound: int, events: list[str | int]) -> None:
    queue = FairQueue(bound)
    waiting: list[Request] = []
    for event in events:
        if isinstance(event, int):
            if waiting:
                queue.remove(request := waiting.pop(event % len(waiting)))
                queue.finish(request)
            continue
        own = sum(request.client_id == event for request in waiting)
        num_clients = len({request.client_id for request in waiting} | {event})
        request = make_request(event)
        # A free queue takes everyone, and everyone has a share of a full one.
        assert queue.refuses(request) == (len(waiting) >= bound and own >= bound // num_clients)
        if not queue.refuses(request):
            queue.add(request)
            waiting.append(request)
        assert len(queue) == len(waiting) <= sum(bound // k for k in range(1, bound + 1))


class PlainCounters:
    """The algorithm of the paper over dictionaries, which forgets nobody."""

    def __init__(self, weights: dict[str, float]) -> None:
        self.weights = weights
        self.counters: dict[str, float] = {}
        self.waiting: list[Request] = []
        self.last = ""
        self.paid: set[int] = set()

    def charge(self, client: str, cost: float) -> None:
        self.counters[client] += cost / self.weights.get(client, 1)

    def add(self, request: Request) -> None:
        client = request.client_id
        backlogged = {each.client_id for each in self.waiting}
        if client not in backlogged:
            level = min((self.counters[each] for each in backlogged), default=self.counters.get(self.last, 0))
            self.counters[client] = max(self.counters.get(client, 0), level)
        self.waiting.append(request)

    def remove(self, request: Request) -> None:
        self.waiting.remove(request)
        if all(each.client_id != request.client_id for each in self.waiting):
            self.last = request.client_id

    def admit(self, request: Request, num_uncached: int) -> None:
        self.remove(request)
        if request.arrival not in self.paid:
            self.paid.add(request.arrival)
            self.charge(request.client_id, num_uncached)

    def next(self, order: list[Request], since: dict[str, int]) -> list[Request]:
        """Every request in turn; ties between clients go to who has waited longest."""
        counters, left, turns = dict(self.counters), list(self.waiting), []
        while left:
            client = min({each.client_id for each in left}, key=lambda each: (counters[each], since[each]))
            request = min(
                (each for each in left if each.client_id == client), key=lambda each: (each.priority, each.arrival)
            )
            left.remove(request)
            turns.append(request)
            if request.arrival not in self.paid:
                counters[client] += request.num_prompt_tokens / self.weights.get(client, 1)
        return turns


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from("abcde"), st.integers(1, 30), st.integers(-1, 1)),
        st.tuples(st.just("admit"), st.integers(1, 4), st.integers(0, 3), st.booleans()),
        st.tuples(st.just("generate"), st.integers(1, 20), st.none(), st.none()),
        st.tuples(st.just("preempt"), st.integers(0, 99), st.none(), st.none()),
        st.tuples(st.just("finish"), st.integers(0, 99), st.none(), st.none()),
        st.tuples(st.just("abort"), st.integers(0, 99), st.none(), st.none()),
    ),
    max_size=80,
)


@settings(max_examples=200, deadline=None)
@given(events=EVENTS)
def test_it_is_the_plain_algorithm(events: list[tuple[str, object, int, int]]) -> None:
    # Powers of two, so that sums are exact in any order.
    weights = {"a": 2.0, "b": 0.5}
    queue = make_policy("fair", max_num_waiting=1000, weights="a=2,b=0.5")
    plain = PlainCounters(weights)
    running: list[Request] = []
    since: dict[str, int] = {}
    num_added = num_yielded = 0

    def add(request: Request) -> None:
        if all(each.client_id != request.client_id for each in plain.waiting):
            since[request.client_id] = request.arrival
        queue.add(request)
        plain.add(request)

    for event, what, number, flag in events:
        if event == "arrive":
            add(make_request(str(what), number, priority=flag))
            num_added += 1
        elif event == "admit":
            assert isinstance(what, int)
            for request in list(itertools.islice(queue, what)) if flag else itertools.islice(queue, what):
                num_uncached = min(number * 10, request.num_prompt_tokens)
                queue.admit(request, num_uncached)
                plain.admit(request, num_uncached)
                running.append(request)
        elif event == "generate" and running:
            assert isinstance(what, int)
            rows = [request for request, _ in zip(itertools.cycle(running), range(what), strict=False)]
            queue.charge_outputs(np.array([queue.slot(request) for request in rows], np.intp))
            for request in rows:
                plain.charge(request.client_id, 2)
        elif event == "preempt" and running:
            assert isinstance(what, int)
            add(running.pop(what % len(running)))
        elif event == "finish" and running:
            assert isinstance(what, int)
            queue.finish(running.pop(what % len(running)))
            num_yielded += 1
        elif event == "abort" and plain.waiting:
            assert isinstance(what, int)
            request = plain.waiting[what % len(plain.waiting)]
            queue.remove(request)
            queue.finish(request)
            plain.remove(request)
            num_yielded += 1
        order = list(queue)
        assert order == plain.next(order, since)
        assert len(queue) == len(order)

    while len(queue):
        request = next(iter(queue))
        queue.admit(request, 1)
        running.append(request)
    assert len({request.arrival for request in running}) == len(running) == num_added - num_yielded


SHAPES = st.lists(st.tuples(st.integers(4, 30), st.integers(1, 20)), min_size=1, max_size=5)


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.fixed_dictionaries({"a": SHAPES, "b": SHAPES}),
    memory=st.integers(50, 150),
    weight=st.sampled_from([1.0, 2.0, 0.5]),
    in_the_loop=st.booleans(),
)
def test_clients_that_keep_waiting_get_the_same_service(
    shapes: dict[str, list[tuple[int, int]]], memory: int, weight: float, in_the_loop: bool
) -> None:
    """The paper's bound: over any interval the weighted services differ by at most
    2 max(w_in * longest prompt, w_out * tokens in memory), where a client's weight divides both.

    shapes: (prompt tokens, tokens to generate), sent over and over. An admitted request reserves memory for both.
    """
    weights = {"a": weight, "b": 1.0}
    queue = FairQueue(100, weights)
    sources = {name: itertools.cycle(shapes[name]) for name in shapes}
    num_waiting = {"a": 0, "b": 0}
    num_left: dict[Request, int] = {}
    sizes: dict[Request, int] = {}
    running: list[Request] = []
    free = memory
    service = {"a": 0.0, "b": 0.0}
    differences = [0.0]

    for _ in range(60):
        for name, source in sources.items():
            # More than fit into the memory at once: the smallest takes 5 tokens.
            while num_waiting[name] <= memory // 5:
                prompt, output = next(source)
                queue.add(request := make_request(name, prompt))
                num_left[request], sizes[request] = output, prompt + output
                num_waiting[name] += 1
        admitted = []
        for request in queue:
            if sizes[request] > free:
                break
            free -= sizes[request]
            admitted.append(request)
            num_waiting[request.client_id] -= 1
            if in_the_loop:
                queue.admit(request, request.num_prompt_tokens)
        for request in admitted:
            if not in_the_loop:
                queue.admit(request, request.num_prompt_tokens)
            service[request.client_id] += request.num_prompt_tokens / weights[request.client_id]
        running += admitted
        queue.charge_outputs(np.array([queue.slot(request) for request in running], np.intp))
        for request in running:
            service[request.client_id] += 2 / weights[request.client_id]
            num_left[request] -= 1
            if num_left[request] == 0:
                free += sizes[request]
                queue.finish(request)
        running = [request for request in running if num_left[request]]
        differences.append(service["a"] - service["b"])

    longest = max(prompt for each in shapes.values() for prompt, _ in each)
    bound = 2 * max(longest, 2 * memory) / min(weights.values())
    assert max(differences) - min(differences) <= bound
    assert min(service.values()) > 0


def test_weights_are_read_from_text() -> None:
    assert parse_weights("") == {}
    assert parse_weights("alice=2, bob=0.5,") == {"alice": 2.0, "bob": 0.5}
    assert parse_weights("team=a=3") == {"team=a": 3.0}
    for wrong in ("alice", "alice=", "alice=0", "alice=-1", "alice=inf", "alice=nan", "2"):
        with pytest.raises(ValueError, match="CLIENT=NUMBER"):
            parse_weights(wrong)
    with pytest.raises(ValueError, match="'alice' twice"):
        parse_weights("alice=1,alice=2")
