"""A cell in one process: the scheduler's core, one executor, and between them the bytes that services exchange.

    with Engine(ExecutorOptions(model=folder)) as engine:
        requests = [engine.submit(token_ids, Sampling(max_tokens=16, ignore_eos=True)) for token_ids in prompts]
        engine.finish()
        answers = [request.token_ids[request.num_prompt_tokens :] for request in requests]

The model runs in a thread of its own, as it does in an executor's process: while a step computes, the core does its
bookkeeping and, with two plans in flight, plans the next one. Knows token ids only, no text, and no transport.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from pagoda.errors import FailedPreconditionError
from pagoda.executor.config import ExecutorOptions
from pagoda.executor.description import Description
from pagoda.executor.openmp import configure_waiting
from pagoda.executor.pending import Pending
from pagoda.scheduler import codec
from pagoda.scheduler.core.request import Request, RequestKey, Sampling
from pagoda.scheduler.core.scheduler import CoreOptions, Outputs, Scheduler
from pagoda.scheduler.core.spec import LaneSpec
from pagoda.v1 import scheduler_pb2, step_pb2

if TYPE_CHECKING:  # torch is loaded later
    from pagoda.executor.runner import Runner

_LANE = "offline"
# Nobody else waits: what is submitted may wait as long as it likes.
UNBOUNDED = 2**31


class Engine:
    """Requests in, steps, tokens out. Its methods belong to one thread."""

    def __init__(self, executor: ExecutorOptions, core: CoreOptions | None = None) -> None:
        """Loads the model. Raises PagodaError, with what to change, where model and options do not go together.

        executor: `model` is a checkpoint's folder
        """
        self.core = Scheduler(core or CoreOptions(max_num_waiting=UNBOUNDED))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="steps")
        self._in_flight: deque[Future[Pending]] = deque()
        self._num_requests = 0
        try:
            # OpenMP has workers for every thread that needs some: the model is loaded by the thread that runs it.
            self._runner, self.spec = self._thread.submit(_load, executor).result()
            self.spec.check()
        except BaseException:
            self._thread.shutdown()
            raise
        self.core.add_lane(_LANE, self.spec)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """After the steps in flight."""
        self._thread.shutdown()

    def submit(self, token_ids: Sequence[int], sampling: Sampling) -> Request:
        """A request to be run by `step`, to which its tokens are added. Raises PagodaError when it is refused."""
        self._num_requests += 1
        request = Request(RequestKey(_LANE, self._num_requests), token_ids, sampling)
        self.core.submit(request, time.monotonic())
        return request

    def step(self) -> Outputs:
        """Plans as far ahead as the core will, waits for the oldest step in flight, and tells what came of it."""
        while plans := self.core.step(time.monotonic()):
            for _, plan in plans:
                self._in_flight.append(self._thread.submit(self._launch, codec.encode_plan(plan)))
        self.core.settle()
        assert self._in_flight or not self.core.requests, "requests, but nothing to do"
        if self._in_flight:
            message = step_pb2.ExecutorMessage(result=self._in_flight.popleft().result().finish())
            result = codec.decode_executor_message(message.SerializeToString()).result
            assert result is not None
            self.core.commit(_LANE, result, time.monotonic())
        return self.core.take_outputs()

    def finish(self) -> None:
        """Steps until nothing is left to do; every request has then its `end`, and all its tokens."""
        while self.core.requests or self._in_flight:
            self.step()

    def _launch(self, plan: bytes) -> Pending:
        return self._runner.launch(step_pb2.StepPlan.FromString(plan))


def _load(options: ExecutorOptions) -> tuple[Runner, LaneSpec]:
    configure_waiting()
    from pagoda.executor.runner import load_runner

    try:
        runner = load_runner(options)
    except ValueError as error:
        raise FailedPreconditionError(str(error)) from error
    runner.warm_up()
    registration = Description(options, runner).registration().SerializeToString()
    return runner, codec.decode_lane(scheduler_pb2.ExecutorRegistration.FromString(registration))
