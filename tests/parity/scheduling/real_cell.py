"""The scheduler's core and real executors in one process.

Plans and results travel as bytes, as they do between processes. A plan is executed at once, for an executor runs its
plans in order, and the result comes back when the test says so. What no row may read is NaN: memory to which nothing
was written, and blocks that the core holds to be free. Blocks go from one executor to another as they do between
processes, too, through shared memory or by TCP, in threads and in their own time.
"""

from __future__ import annotations

import math
import select
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda.executor.batch import StepInputs
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.description import Description
from pagoda.executor.kv_cache import HostMemory, KvLayout
from pagoda.executor.loader import Model
from pagoda.executor.runner import Runner, load_runner
from pagoda.executor.transfers import Transfers, make_transfers
from pagoda.scheduler import codec
from pagoda.scheduler.core.kv_events import KvEvents
from pagoda.scheduler.core.plan import StepPlan
from pagoda.scheduler.core.request import End, Request, RequestKey
from pagoda.scheduler.core.scheduler import CoreOptions, Scheduler
from pagoda.v1 import scheduler_pb2, step_pb2

# A push that takes longer than this does not arrive at all.
_MOST_WAIT_S = 30.0


@dataclass(frozen=True)
class Shape:
    """Sizes of an executor."""

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int
    num_blocks: int
    num_host_blocks: int = 0
    swap_only: bool = False


@dataclass(frozen=True)
class Served:
    """A model in memory, of which any number of executors can be made."""

    model: Model
    layout: KvLayout

    @classmethod
    def load(cls, folder: Path, dtype: str, max_model_len: int) -> Served:
        model_dtype, _, kv_cache_dtype = dtype.partition("/")
        runner = load_runner(
            ExecutorOptions(
                model=str(folder),
                device="cpu",
                dtype=model_dtype,
                kv_cache_dtype=kv_cache_dtype or "auto",
                threads=1,
                max_model_len=max_model_len,
                max_num_seqs=1,
            )
        )
        return cls(runner.model, runner.layout)

    @property
    def vocab_size(self) -> int:
        return self.model.decoder.config.vocab_size

    @property
    def tolerance(self) -> float:
        """How far apart the final hidden states of a token may lie that is computed in two ways."""
        if self.layout.dtype == torch.float32:
            return 1e-3
        # bfloat16 has the same bits where that was measured (see DenseLinear); elsewhere, equal tokens must do.
        return 0.0 if torch.backends.cpu.get_cpu_capability() == "AVX512" else math.inf


class NanRunner(Runner):
    """Keeps the final hidden states that it samples from. What was not written is NaN."""

    sampled_from: Tensor
    """In the last step: [rows that sample, hidden_size]."""

    def __init__(self, served: Served, shape: Shape) -> None:
        super().__init__(
            served.model,
            replace(served.layout, block_size=shape.block_size, num_blocks=shape.num_blocks),
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_batched_tokens,
            host_memory=HostMemory(shape.num_host_blocks, shape.swap_only) if shape.num_host_blocks else None,
            share_cache=True,
        )
        # In int8, bytes whose scales are NaN.
        self._nothing = -1 if self.layout.dtype == torch.int8 else math.nan
        self._copier._host.fill_(self._nothing)
        self.erase(torch.ones(shape.num_blocks, dtype=torch.bool))

    def erase(self, blocks: Tensor) -> None:
        """blocks: [num_blocks] bool"""
        for k_cache, v_cache in self._kv:
            k_cache[blocks] = self._nothing
            v_cache[blocks] = self._nothing

    def execute(self, plan: step_pb2.StepPlan) -> step_pb2.StepResult:
        self.sampled_from = torch.empty(0)
        return super().execute(plan)

    def forward(self, inputs: StepInputs, tokens: NDArray[np.int64] | None = None) -> Tensor:
        self.sampled_from = super().forward(inputs, tokens)
        return self.sampled_from


class Step(NamedTuple):
    """One that was executed and has not come back."""

    answer: bytes
    keys: list[RequestKey]
    """Of the requests that sampled, by row."""
    sampled_from: Tensor
    """Parallel."""


class RealCell:
    """Drives the core as the engine does. Executors that push blocks have threads, until `close`."""

    def __init__(self, served: Served, **options: Any) -> None:
        core_options = CoreOptions(blocks_ahead=0, **options)
        # Every check of the core then also finds blocks that were not told of.
        self.core = Scheduler(core_options, KvEvents() if core_options.enable_prefix_caching else None)
        self.now = 100.0
        self.runners: dict[str, NanRunner] = {}
        self.transfers: dict[str, Transfers] = {}
        self.in_flight: dict[str, deque[Step]] = {}
        self.tokens: dict[RequestKey, list[int]] = {}
        self.sampled_from: dict[RequestKey, list[Tensor]] = {}
        """Final hidden states, parallel to those tokens that were generated here."""
        self.ends: dict[RequestKey, End] = {}
        self.work: Counter[str] = Counter()
        """
        branches                    requests that came while the one they branch off was running
        steps, computed_tokens
        full_steps, full_batches    steps with as many tokens, and as many rows, as an executor takes
        steps_ahead                 steps that were sent while another one was in flight
        """
        self._served = served

    def close(self) -> None:
        for transfers in self.transfers.values():
            transfers.close()

    @property
    def counts(self) -> dict[str, int]:
        """What happened: the core's counters, and `work`."""
        return asdict(self.core.counters) | dict(self.work)

    def join(self, name: str, shape: Shape, *, role: str = "mixed", transfer: str | None = None) -> None:
        """transfer: how blocks come to it, "auto" or "tcp"; None: not at all"""
        runner = NanRunner(self._served, shape)
        options = ExecutorOptions(
            name=name,
            role=role,
            max_num_seqs=shape.max_num_seqs,
            max_num_batched_tokens=shape.max_num_batched_tokens,
        )
        transfers = None
        if transfer:
            transfers = make_transfers(
                runner, "tcp://127.0.0.1:*", only="tcp" if transfer == "tcp" else None, encrypted=False
            )
            self.transfers[name] = transfers
        registration = Description(options, runner, transfers).registration().SerializeToString()
        spec = codec.decode_lane(scheduler_pb2.ExecutorRegistration.FromString(registration))
        self.core.add_lane(name, spec)
        self.runners[name] = runner
        self.in_flight[name] = deque()

    def lose(self, name: str) -> None:
        """An executor dies, and with it what its last steps brought, and what it was pushing or pushed."""
        del self.runners[name], self.in_flight[name]
        if transfers := self.transfers.pop(name, None):
            transfers.close()
        self.core.remove_lane(name, self.now)
        self._collect()

    def submit(self, request: Request) -> None:
        parent = self.core.requests.get(request.forked_from) if request.forked_from else None
        self.work["branches"] += parent is not None and parent.lane is not None
        self.tokens[request.key] = list(request.token_ids[request.num_prompt_tokens :])
        self.sampled_from[request.key] = []
        self.core.submit(request, self.now)
        self._collect()

    def abort(self, key: RequestKey) -> None:
        self.core.abort(key)
        self._collect()

    def turn(self, waits: Callable[[], bool] = lambda: True) -> bool:
        """Plans as far ahead as it may, and takes results back. False when nothing was left to do.

        waits: whether a result stays away although it could come
        """
        while self._plan() and waits():
            pass
        self.core.settle()
        was_busy = any(self.in_flight.values())
        self._take_news(waits=not was_busy and len(self.core.moves) > 0)
        was_busy |= len(self.core.moves) > 0
        for name, steps in self.in_flight.items():
            if steps:
                self._answer(name)
            while steps and not waits():
                self._answer(name)
        return was_busy

    def finish(self) -> None:
        while self.turn():
            pass

    def encode(self, plan: StepPlan) -> bytes:
        endpoints = {name: transfers.endpoints for name, transfers in self.transfers.items()}
        return codec.encode_plan(plan, endpoints, grant_timeout_s=_MOST_WAIT_S)

    def _plan(self) -> bool:
        """One step of the core. False: nothing was to be done."""
        plans = self.core.step(self.now)
        for name, plan in plans:
            self._execute(name, plan)
        self._collect()
        return bool(plans)

    def _execute(self, name: str, plan: StepPlan) -> None:
        lane, runner = self.core.lanes[name], self.runners[name]
        flight = lane.flights[-1]
        requests = [lane.rows.requests[row] for row in flight.rows]
        message = step_pb2.StepPlan.FromString(self.encode(plan))
        if transfers := self.transfers.get(name):
            transfers.apply(message)
            transfers.push(message)
        result = runner.execute(message)
        self.in_flight[name].append(
            Step(
                answer=step_pb2.ExecutorMessage(result=result).SerializeToString(),
                keys=[request.key for request in requests if request],
                sampled_from=runner.sampled_from,
            )
        )
        self.work["steps"] += 1
        self.work["computed_tokens"] += flight.num_tokens
        self.work["full_steps"] += flight.num_tokens == lane.spec.max_num_batched_tokens
        self.work["full_batches"] += flight.num_rows == lane.spec.max_num_seqs
        self.work["steps_ahead"] += len(lane.flights) > 1

    def _answer(self, name: str) -> None:
        """The oldest step in flight of an executor comes back."""
        step = self.in_flight[name].popleft()
        result = codec.decode_executor_message(step.answer).result
        assert result is not None
        lane = self.core.lanes[name]
        # Others have left meanwhile: what they sampled counts no more.
        live = lane.rows.live[lane.flights[0].rows]
        for key, state, is_live in zip(step.keys, step.sampled_from, live, strict=True):
            if is_live:
                self.sampled_from[key].append(state)
        self.now += 0.001
        self.core.commit(name, result, self.now)
        self._collect()
        is_free = (lane.pool.ref_counts == 0) & ~lane.pool.cached_mask()
        # What was evicted early is read once more, by the next plan.
        is_free[[source for source, _ in lane.offloads]] = False
        self.runners[name].erase(torch.from_numpy(is_free))

    def _take_news(self, *, waits: bool) -> None:
        """Of what has arrived and what has not. waits: until there is some"""
        if waits:
            filenos = [fileno for transfers in self.transfers.values() for fileno in transfers.filenos]
            assert select.select(filenos, [], [], _MOST_WAIT_S)[0], "nothing comes of what was pushed"
        for name, transfers in self.transfers.items():
            message = step_pb2.ExecutorMessage()
            if transfers.add_news(message):
                news = codec.decode_executor_message(message.SerializeToString())
                for number, word in news.failed:
                    self.core.note_failed(name, number, word, self.now)
                for number, count in news.arrived:
                    self.core.note_arrived(name, number, count, self.now)
        self._collect()

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
        assert self.core.check_integrity() == []
