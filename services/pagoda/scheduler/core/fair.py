"""Fair shares between clients: the Virtual Token Counter (Sheng et al., "Fairness in Serving Large Language Models",
OSDI 2024).

Every client has a counter of the service it got: tokens by their weights, divided by the client's own weight. Whoever
waits with the lowest counter is next. A client that was away is lifted to the lowest counter of those who wait, so that
nobody saves up service; so the counters of clients that keep waiting stay close together, whatever they send.

It knows clients only by their ids, and of the running requests only what they are charged for.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from pagoda.scheduler.core.ordered import Rank, RankedRequests
from pagoda.scheduler.core.request import Request

# Clients without requests whose counter is remembered, because it is above what they would come back with.
MAX_CLIENTS_AWAY = 4096


class Client:
    """One with unfinished requests. Its counter is in the queue's arrays, at `slot`."""

    __slots__ = ("counter_when_left", "id", "slot", "unfinished", "waiting")

    def __init__(self, client_id: str, slot: int) -> None:
        self.id = client_id
        self.slot = slot
        self.waiting = RankedRequests()
        self.unfinished: dict[int, float | None] = {}
        """By `arrival` of the request: the client's counter when it first got a row; None: it has not yet."""
        self.counter_when_left: float | None = None
        """None while it has unfinished requests."""


class FairQueue:
    """Clients by their counters; one client's requests by priority, then by arrival.

    A request is charged for its prompt when it is first admitted, for the tokens that are not cached, and for each
    token it generates; what is computed again after a preemption is not the client's doing and costs it nothing.

    Costs: everything is constant per request, except for a few passes over one float per client whenever a client
    starts to wait and for every request yielded (5 us with 1,000 clients).
    """

    charges_outputs = True

    def __init__(
        self,
        max_num_waiting: int,
        weights: Mapping[str, float] | None = None,
        *,
        input_weight: float = 1.0,
        output_weight: float = 2.0,
    ) -> None:
        """weights: by client id; 1 for those not named. input_weight, output_weight: the price of a token."""
        self._max_num_waiting = max_num_waiting
        self._weights = dict(weights or {})
        self._input_weight = input_weight
        self._output_weight = output_weight
        self._num_waiting = 0
        self._num_clients_waiting = 0
        self._clients: dict[str, Client] = {}
        self._last_to_wait: Client | None = None
        """The client that was the last to stop waiting."""
        self._counters_away: OrderedDict[str, float] = OrderedDict()
        """Of clients without requests; who left last is at the end."""
        # By slot. A client that does not wait is barred: inf, which added to its counter keeps it from being next.
        self._slots: list[Client | None] = []
        self._free_slots: list[int] = []
        self._counters = np.zeros(0)
        self._barred = np.zeros(0)
        self._waiting_since = np.zeros(0, np.int64)
        self._output_costs = np.zeros(0)

    def __len__(self) -> int:
        return self._num_waiting

    def __iter__(self) -> Iterator[Request]:
        counters = self._counters + self._barred
        queues: dict[int, Iterator[Request]] = {}
        while (slot := self._lowest(counters)) is not None:
            client = self._slots[slot]
            assert client is not None
            if slot not in queues:
                queues[slot] = iter(client.waiting)
            if (request := next(queues[slot], None)) is None:
                counters[slot] = math.inf
                continue
            num_waiting, counter = self._num_waiting, self._counters.item(slot)
            yield request
            if self._num_waiting < num_waiting:
                counters[slot] += self._counters.item(slot) - counter
            elif client.unfinished[request.arrival] is None:
                counters[slot] += self._input_cost(client, request.num_prompt_tokens)

    def refuses(self, request: Request) -> bool:
        """A full queue still takes requests of clients that have less than their share: the bound, divided by the
        number of clients that wait. So whoever floods the queue shuts out only itself.

        With m clients waiting, the one with the k-th most requests has at most bound // k of them: the last time that
        k clients had that many each, the total was below the bound or the share of the last to join was. So at most
        bound * (1 + ln bound) requests wait, of at most `bound` clients: 7,262 where the bound is 1,024. Requests that
        come back after a preemption are on top of this; they are as many as there are rows.
        """
        if self._num_waiting < self._max_num_waiting:
            return False
        client = self._clients.get(request.client_id)
        num_own = len(client.waiting) if client else 0
        return num_own >= self._max_num_waiting // (self._num_clients_waiting + (num_own == 0))

    def add(self, request: Request) -> None:
        client = self._clients.get(request.client_id) or self._join(request.client_id)
        client.unfinished.setdefault(request.arrival, None)
        if not client.waiting:
            slot = client.slot
            self._counters[slot] = max(self._counters.item(slot), self._level())
            self._barred[slot] = 0.0
            self._waiting_since[slot] = request.arrival
            self._num_clients_waiting += 1
        client.waiting.add((request.priority, request.arrival), request)
        self._num_waiting += 1

    def remove(self, request: Request) -> None:
        client = self._clients[request.client_id]
        client.waiting.remove((request.priority, request.arrival), request)
        self._num_waiting -= 1
        if not client.waiting:
            self._barred[client.slot] = math.inf
            self._num_clients_waiting -= 1
            self._last_to_wait = client

    def admit(self, request: Request, num_uncached_tokens: int) -> None:
        self.remove(request)
        client = self._clients[request.client_id]
        if client.unfinished[request.arrival] is None:
            client.unfinished[request.arrival] = self._counters.item(client.slot)
            self._counters[client.slot] += self._input_cost(client, num_uncached_tokens)

    def finish(self, request: Request) -> None:
        client = self._clients[request.client_id]
        del client.unfinished[request.arrival]
        if not client.unfinished:
            self._leave(client)

    def rank(self, request: Request) -> Rank:
        """By the client's counter when the request first got a row: those grow with time, so that the request that runs
        longest is preempted last; and it is the client that had more than others whose requests go first.
        """
        client = self._clients[request.client_id]
        counter = client.unfinished[request.arrival]
        if counter is None:
            counter = self._counters.item(client.slot)
        return counter, request.priority, request.arrival

    def slot(self, request: Request) -> int:
        return self._clients[request.client_id].slot

    def charge_outputs(self, slots: NDArray[np.intp]) -> None:
        self._counters += np.bincount(slots, minlength=len(self._counters)) * self._output_costs

    def _lowest(self, counters: NDArray[np.float64]) -> int | None:
        """The slot of the lowest counter, of those the one that has waited longest; None: all are inf."""
        lowest = counters.min(initial=math.inf)
        if lowest == math.inf:
            return None
        ties = np.flatnonzero(counters == lowest)
        return int(ties[self._waiting_since[ties].argmin()])

    def _level(self) -> float:
        """What nobody starts to wait below. It never falls."""
        if self._num_clients_waiting:
            return float((self._counters + self._barred).min())
        if (client := self._last_to_wait) is None:
            return 0.0
        if client.counter_when_left is not None:
            return client.counter_when_left
        return self._counters.item(client.slot)

    def _input_cost(self, client: Client, num_tokens: int) -> float:
        return num_tokens * self._input_weight / self._weights.get(client.id, 1.0)

    def _join(self, client_id: str) -> Client:
        if not self._free_slots:
            self._grow()
        client = Client(client_id, self._free_slots.pop())
        self._clients[client_id] = client
        self._slots[client.slot] = client
        self._counters[client.slot] = self._counters_away.pop(client_id, 0.0)
        self._output_costs[client.slot] = self._output_weight / self._weights.get(client_id, 1.0)
        return client

    def _leave(self, client: Client) -> None:
        assert not client.waiting
        client.counter_when_left = self._counters.item(client.slot)
        del self._clients[client.id]
        self._slots[client.slot] = None
        self._free_slots.append(client.slot)
        # At or below the level it would come back with the level in any case.
        if client.counter_when_left > self._level():
            self._counters_away[client.id] = client.counter_when_left
            if len(self._counters_away) > MAX_CLIENTS_AWAY:
                self._counters_away.popitem(last=False)

    def _grow(self) -> None:
        """Doubles the number of slots."""
        old = len(self._slots)
        more = max(old, 16)
        self._slots += [None] * more
        self._free_slots += range(old + more - 1, old - 1, -1)
        self._counters = np.append(self._counters, np.zeros(more))
        self._barred = np.append(self._barred, np.full(more, math.inf))
        self._waiting_since = np.append(self._waiting_since, np.zeros(more, np.int64))
        self._output_costs = np.append(self._output_costs, np.zeros(more))
