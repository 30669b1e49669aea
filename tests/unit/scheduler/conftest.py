"""A cell with simulated executors and a virtual clock."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from pagoda.scheduler.core.kv_events import KvEvents
from pagoda.scheduler.core.plan import StepPlan, StepResult
from pagoda.scheduler.core.request import End, Request, RequestKey, Sampling
from pagoda.scheduler.core.scheduler import CoreOptions, Scheduler
from pagoda.scheduler.core.simulated import Parcel, SimulatedExecutor
from pagoda.scheduler.core.spec import ExecutorRole, LaneSpec, ModelSpec

EOS = 2


def make_model(**changes: Any) -> ModelSpec:
    values: dict[str, Any] = {
        "fingerprint": "f" * 8,
        "model_type": "llama",
        "max_model_len": 32,
        "vocab_size": 1000,
        "eos_token_ids": frozenset({EOS}),
        "dtype": "bfloat16",
    }
    return ModelSpec(**(values | changes))


def make_spec(**changes: Any) -> LaneSpec:
    """Changes go to the lane or to its model, whichever has a field of that name."""
    of_model = {name: value for name, value in changes.items() if name in ModelSpec.__slots__}
    values: dict[str, Any] = {
        "name": "executor",
        "role": ExecutorRole.MIXED,
        "model": make_model(**of_model),
        "block_size": 4,
        "num_blocks": 8,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 16,
        "receives": True,
    }
    return LaneSpec(**(values | {name: value for name, value in changes.items() if name not in of_model}))


class Cell:
    """Drives the core as the engine does: plans travel to executors, results come back when the test says so."""

    def __init__(self, **options: Any) -> None:
        core_options = CoreOptions(**({"max_plans_in_flight": 1, "blocks_ahead": 0} | options))
        # Every check of the core then also finds blocks that were not told of.
        self.core = Scheduler(core_options, KvEvents() if core_options.enable_prefix_caching else None)
        self.now = 100.0
        self.executors: dict[str, SimulatedExecutor] = {}
        self.in_flight: dict[str, deque[tuple[StepPlan, StepResult]]] = {}
        self.parcels: list[tuple[str, Parcel]] = []
        """(who sent it, what): pushes on their way."""
        self.work: dict[int, dict[int, int]] = {}
        """By step of the last plans: rows that ran, and how many of their tokens."""
        self.tokens: dict[RequestKey, list[int]] = {}
        self.ends: dict[RequestKey, End] = {}

    def join(self, name: str = "A", **changes: Any) -> None:
        spec = make_spec(name=name, **changes)
        self.core.add_lane(name, spec)
        self.executors[name] = SimulatedExecutor(spec)
        self.in_flight[name] = deque()

    def lose(self, name: str, *, died: bool = True) -> None:
        del self.executors[name], self.in_flight[name]
        self.core.remove_lane(name, self.now, died=died)
        self._collect()

    def submit(self, number: int, token_ids: Sequence[int], origin: str = "t", **fields: Any) -> Request:
        """Fields go to the request or to its sampling parameters."""
        of_request = {
            name: fields.pop(name)
            for name in (
                "num_prompt_tokens",
                "request_id",
                "priority",
                "cache_salt",
                "client_id",
                "adapter",
                "media",
                "forked_from",
                "timeout_s",
            )
            if name in fields
        }
        request = Request(RequestKey(origin, number), token_ids, Sampling(**fields), **of_request)
        self.core.submit(request, self.now)
        self.tokens[request.key] = list(request.token_ids[request.num_prompt_tokens :])
        self._collect()
        return request

    def plan(self, *, settles: bool = True) -> dict[str, StepPlan]:
        """One step of the core; the executors work on what it plans at once, and keep their answers."""
        plans = dict(self.core.step(self.now))
        for name, plan in plans.items():
            self.in_flight[name].append((plan, self.executors[name].run(plan)))
            self.work[plan.step] = self.executors[name].work
            self.parcels += [(name, parcel) for parcel in self.executors[name].outbox]
            self.executors[name].outbox.clear()
        if settles:
            self.core.settle()
        self._collect()
        return plans

    def deliver(self, index: int = 0) -> None:
        """A push arrives, or cannot."""
        sender, parcel = self.parcels.pop(index)
        target = parcel.push.target
        if target not in self.executors:
            if sender in self.executors:
                self.core.note_failed(sender, parcel.push.number, "unreachable", self.now)
        elif news := self.executors[target].receive(parcel):
            self.core.note_arrived(target, *news, self.now)

    def lose_parcel(self, index: int = 0) -> None:
        sender, parcel = self.parcels.pop(index)
        if sender in self.executors:
            self.core.note_failed(sender, parcel.push.number, "unreachable", self.now)

    def answer(self, name: str = "A") -> StepResult:
        """The oldest step in flight of an executor comes back."""
        _, result = self.in_flight[name].popleft()
        self.core.commit(name, result, self.now)
        self._collect()
        return result

    def step(self) -> dict[str, StepPlan]:
        plans = self.plan()
        for name in plans:
            self.answer(name)
        while self.parcels:
            self.deliver()
        self.core.settle()
        self.check()
        return plans

    def run(self, most_steps: int = 10_000) -> int:
        """Steps until nothing is left to do; returns how many."""
        for count in range(most_steps):
            if not self.step():
                return count
        raise AssertionError("requests do not come to an end")

    def check(self) -> None:
        assert self.core.check_integrity() == []

    def _collect(self) -> None:
        outputs = self.core.take_outputs()
        for run in outputs.tokens:
            for number, token_id in zip(run.keys.tolist(), run.token_ids.tolist(), strict=True):
                key = RequestKey(run.origin, number)
                assert key not in self.ends, "a token after the end"
                self.tokens[key].append(token_id)
        for request in outputs.ended:
            assert request.key not in self.ends, "a second end"
            assert request.end is not None
            self.ends[request.key] = request.end


@pytest.fixture(scope="session")
def spec_of() -> Callable[..., LaneSpec]:
    return make_spec


@pytest.fixture(scope="session")
def make_cell() -> Callable[..., Cell]:
    return Cell


@pytest.fixture
def cell() -> Cell:
    """One executor: 8 blocks of 4 tokens, 4 rows, 16 tokens per step, contexts of 32 tokens."""
    cell = Cell()
    cell.join()
    return cell
