"""A step that a device is computing."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from pagoda.executor.plan_arrays import Int64
from pagoda.rpc.arrays import pack_u32
from pagoda.v1 import step_pb2


class Clock:
    """When the last step of a runner ended: the next one cannot have begun before."""

    def __init__(self) -> None:
        self.ended_ns = 0


class Launched:
    """See `pending.Pending`."""

    is_done = False

    def __init__(
        self, step: int, rows: Int64, tokens: Tensor | None, device: torch.device, started_ns: int, clock: Clock
    ) -> None:
        """rows: that sample, [m]; tokens: on the device, [m] int64, or None for none"""
        self._step = step
        self._rows = rows
        self._started_ns = started_ns
        self._clock = clock
        on_gpu = device.type == "cuda"
        self._tokens = torch.empty(len(rows), dtype=torch.int64, pin_memory=on_gpu)
        if tokens is not None:
            self._tokens.copy_(tokens, non_blocking=True)
        # Without tokens, too: a step without rows may copy blocks, and ends when they are copied.
        self._event = torch.cuda.Event(blocking=True) if on_gpu else None  # type: ignore[no-untyped-call]
        if self._event:
            self._event.record()

    def wait(self) -> None:
        if self._event:
            self._event.synchronize()

    def finish(self) -> step_pb2.StepResult:
        self.wait()
        now = time.perf_counter_ns()
        forward_ns = now - max(self._started_ns, self._clock.ended_ns)
        self._clock.ended_ns = now
        return step_pb2.StepResult(
            step=self._step, rows=pack_u32(self._rows), token_ids=pack_u32(self._tokens.numpy()), forward_ns=forward_ns
        )
