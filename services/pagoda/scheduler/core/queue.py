"""The requests that wait for an executor, and whose turn it is: a policy object is the waiting queue.

It knows requests and their clients. It does not know lanes, blocks or budgets: the scheduler walks through those who
wait, in order of turn, and decides who fits where.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pagoda.scheduler.core.fair import FairQueue
from pagoda.scheduler.core.ordered import FcfsQueue, PriorityQueue, Rank
from pagoda.scheduler.core.policies import check_policy, parse_weights
from pagoda.scheduler.core.request import Request


class Policy(Protocol):
    """Who comes first.

    A request is added when it is accepted, and again whenever it loses its row; it leaves by `admit` or `remove`.
    """

    @property
    def charges_outputs(self) -> bool:
        """Whether the policy wants to hear of generated tokens: if not, nobody needs `slot` and `charge_outputs`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Request]:
        """Those who wait, in order of turn, as if each were admitted before the next.

        In the loop, the request just yielded may be admitted or removed; everything else waits until after it.
        """

    def refuses(self, request: Request) -> bool:
        """Whether too many wait for `request` to join them."""

    def add(self, request: Request) -> None:
        """Starts to wait: at arrival, or again after a preemption or the loss of an executor."""

    def remove(self, request: Request) -> None:
        """Waits no longer, and did not get a row."""

    def admit(self, request: Request, num_uncached_tokens: int) -> None:
        """Waits no longer: it got a row, and `num_uncached_tokens` of its tokens will be computed."""

    def finish(self, request: Request) -> None:
        """Ended; comes once per request, when it does not wait (any more)."""

    def rank(self, request: Request) -> Rank:
        """Compares running requests: the highest is preempted first. Unique, and fixed by the first `admit`."""

    def slot(self, request: Request) -> int:
        """A small number for the request's client, which holds while the client has unfinished requests."""

    def charge_outputs(self, slots: NDArray[np.intp]) -> None:
        """slots: [num_tokens], of the clients of unfinished requests that generated one token each."""


def make_policy(name: str, *, max_num_waiting: int, weights: str = "", tie_window_s: float = 0.0) -> Policy:
    """An empty queue.

    max_num_waiting: requests that may wait; more are refused. With fair, clients that have less than their share
        of it are not refused (see FairQueue)
    weights: with fair, what share of the service a client gets compared to others, as in "alice=2,bob=0.5"; 1 for
        those not named
    tie_window_s: with fcfs and priority, requests that arrive within the same window of so many seconds go shortest
        prompt first; 0 = in order of arrival

    Raises ValueError for a policy there is not, or for options that are not this policy's.
    """
    check_policy(name, max_num_waiting=max_num_waiting, weights=weights, tie_window_s=tie_window_s)
    if name == "fair":
        return FairQueue(max_num_waiting, parse_weights(weights))
    return (FcfsQueue if name == "fcfs" else PriorityQueue)(max_num_waiting, tie_window_s)
