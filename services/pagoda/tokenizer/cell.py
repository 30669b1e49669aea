"""The requests of this tokenizer at one cell: handed to its scheduler, followed, and never lost.

    cell = Cell("127.0.0.1:50052", "tokenizer-0")
    task = asyncio.create_task(cell.run())
    async with cell.submit([request, ...]) as stream:
        async for arrivals in stream:
            ...

Leaving the block aborts what has not ended. When the scheduler goes away, unfinished requests are handed to the
next one with the tokens they have, and their streams continue; when none comes back in time they end with
UNAVAILABLE. Everything here runs on one event loop. Knows token ids, and neither text nor sockets.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import random
from collections.abc import AsyncIterator, Sequence
from typing import NoReturn

from pagoda.errors import Code, PagodaError, ResourceExhaustedError, UnavailableError
from pagoda.rpc.arrays import pack_u64, unpack_u32, unpack_u64
from pagoda.rpc.curve import KeyPair
from pagoda.rpc.status import from_message
from pagoda.tokenizer.session import SendMessage, run_session
from pagoda.tokenizer.token_stream import CellRequest, TokenRequest, TokenStream
from pagoda.v1.common_pb2 import FinishReason
from pagoda.v1.scheduler_pb2 import CellStatus
from pagoda.v1.step_pb2 import FinishedRequest, TokenBatch, TokenizerMessage

logger = logging.getLogger(__name__)

# The reason of a scheduler that leaves, for the end of every request that it still has.
_SHUTTING_DOWN = "SHUTTING_DOWN"

_FIRST_BACKOFF_S = 0.05
_MAX_BACKOFF_S = 1.0


class Cell:
    """One scheduler, as the requests see it.

    scheduler: its gRPC address
    name: what it calls this tokenizer in its logs
    recovery_s: how long unfinished requests wait for a scheduler that went away, in seconds
    key: of the cell, where it has one
    """

    def __init__(self, scheduler: str, name: str, *, recovery_s: float = 30.0, key: KeyPair | None = None) -> None:
        self.scheduler = scheduler
        self._name = name
        self._key = key
        self._recovery_s = recovery_s
        self._keys = itertools.count(1)
        # Unfinished requests by key; those the scheduler of this session has not been told of, likewise.
        self._requests: dict[int, CellRequest] = {}
        self._unsent: dict[int, CellRequest] = {}
        self._aborts: list[int] = []
        self._send: SendMessage | None = None
        self._flush_is_due = False
        self._give_up_timer: asyncio.TimerHandle | None = None
        self._status = CellStatus()
        self._status_changed = asyncio.Event()

    @property
    def status(self) -> CellStatus:
        """What the scheduler said last; not ready while there is no session. The model stays known."""
        return self._status

    @property
    def num_requests(self) -> int:
        """Requests that have not ended."""
        return len(self._requests)

    async def statuses(self) -> AsyncIterator[CellStatus]:
        """The status, now and whenever it has changed. For one reader."""
        while True:
            self._status_changed.clear()
            yield self._status
            await self._status_changed.wait()

    async def run(self) -> NoReturn:
        """Keeps a session at the scheduler, reconnecting for ever; cancel to leave the cell."""
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                await run_session(self.scheduler, self._name, self, self._key)
            except UnavailableError as error:
                if self._send is not None:
                    backoff_s = _FIRST_BACKOFF_S
                    logger.warning("%s; %d requests wait for it to return", error, len(self._requests))
                elif backoff_s == _FIRST_BACKOFF_S:
                    # Expected where all services start at the same time.
                    logger.info("%s; trying again", error)
            finally:
                self._on_lost()
            await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(2 * backoff_s, _MAX_BACKOFF_S)

    def submit(self, requests: Sequence[TokenRequest], deadline: float | None = None) -> TokenStream:
        """The requests as one stream of arrivals; they start when its block is entered.

        deadline: on the clock of `time.perf_counter`; those that have not ended by then fail
        """
        return TokenStream(requests, self, deadline)

    def check_ready(self) -> None:
        """Raises UnavailableError while the cell cannot take requests."""
        if not self._status.ready:
            message = "no executor of the model is ready to take requests; try again shortly"
            raise UnavailableError(message, reason="NOT_READY")

    def end_all(self, error: PagodaError) -> None:
        """Ends every request with `error`."""
        for entry in list(self._requests.values()):
            self.abort(entry)
            entry.stream.fail(error)

    # What streams do.

    def start(self, request: TokenRequest, stream: TokenStream) -> CellRequest:
        """Takes in a request; it is sent with all others of this loop iteration."""
        entry = CellRequest(next(self._keys), request, stream)
        self._requests[entry.key] = self._unsent[entry.key] = entry
        self._schedule_flush()
        return entry

    def abort(self, entry: CellRequest) -> None:
        """Forgets a request; what still arrives for it is ignored. No-op for one that has ended."""
        if self._requests.pop(entry.key, None) is None:
            return
        if self._unsent.pop(entry.key, None) is None:
            self._aborts.append(entry.key)
            self._schedule_flush()

    # What the session reports.

    def on_open(self, send: SendMessage) -> None:
        self._send = send

    def on_status(self, status: CellStatus) -> None:
        logger.info("the cell is %s", "ready" if status.ready else "not ready")
        known = self._status.model
        if not status.HasField("model"):
            status.model.CopyFrom(known)
        elif known.fingerprint not in ("", status.model.fingerprint):
            # No other model can go on with this one's tokens.
            self._fail_all(UnavailableError("the model was replaced; send the request again", reason="MODEL_CHANGED"))
        self._set_status(status)
        self._flush()

    def on_tokens(self, batch: TokenBatch) -> None:
        """Deals a step's tokens to their streams; each stream wakes once."""
        token_ids: list[int] = unpack_u32(batch.token_ids).tolist()
        for admitted in batch.admitted:
            if entry := self._requests.get(admitted.key):
                entry.admitted(admitted.num_cached_tokens)
        start = 0
        for key, count in zip(unpack_u64(batch.keys).tolist(), unpack_u32(batch.num_tokens).tolist(), strict=True):
            end = start + count
            entry = self._requests.get(key)
            if entry is not None:
                entry.push(token_ids[start:end])
            start = end
        for finished in batch.finished:
            self._finish(finished)

    def _on_lost(self) -> None:
        """Without a session, every unfinished request is unsent again."""
        self._send = None
        self._aborts.clear()
        if self._status.ready:
            self._set_status(CellStatus(ready=False, model=self._status.model))
        deadline = asyncio.get_running_loop().time() + self._recovery_s
        for key, entry in self._requests.items():
            if key not in self._unsent:
                entry.retry_until = deadline
        self._unsent = dict(self._requests)
        self._schedule_flush()

    def _set_status(self, status: CellStatus) -> None:
        self._status = status
        self._status_changed.set()

    # Towards the scheduler.

    def _schedule_flush(self) -> None:
        if not self._flush_is_due:
            self._flush_is_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Sends aborts, and requests if the cell is ready; requests that have to wait get a deadline."""
        self._flush_is_due = False
        message = TokenizerMessage()
        if self._send is not None and self._aborts:
            message.aborts = pack_u64(self._aborts)
            self._aborts.clear()
        if self._send is not None and self._status.ready:
            message.requests.extend(entry.to_message() for entry in self._unsent.values())
            self._unsent.clear()
        if self._send is not None and (message.requests or message.aborts):
            self._send(message)
        self._set_give_up_timer()

    def _set_give_up_timer(self) -> None:
        if not self._unsent and self._give_up_timer is not None:
            self._give_up_timer.cancel()
            self._give_up_timer = None
        elif self._unsent and self._give_up_timer is None:
            loop = asyncio.get_running_loop()
            self._give_up_timer = loop.call_later(self._recovery_s, self._give_up)

    def _give_up(self) -> None:
        self._give_up_timer = None
        self._fail_all(UnavailableError(f"the scheduler did not come back within {self._recovery_s:g} s"))

    # Ends.

    def _finish(self, finished: FinishedRequest) -> None:
        entry = self._requests.get(finished.key)
        if entry is None:
            return
        if finished.reason != FinishReason.FINISH_REASON_ERROR:
            del self._requests[entry.key]
            entry.finish(finished)
            return
        error = from_message(finished.error)
        if error.reason == _SHUTTING_DOWN:
            return  # the session ends with it, and the next one is handed the request
        if not self._retry(entry, error):
            self._fail(entry, error)

    def _retry(self, entry: CellRequest, error: PagodaError) -> bool:
        """Sends a request again that a new scheduler refuses for now though the last one had accepted it."""
        loop = asyncio.get_running_loop()
        if error.code not in (Code.RESOURCE_EXHAUSTED, Code.UNAVAILABLE) or loop.time() >= entry.retry_until:
            return False
        delay_s = error.retry_after_s if isinstance(error, ResourceExhaustedError) else _MAX_BACKOFF_S
        loop.call_later(max(delay_s, _FIRST_BACKOFF_S), self._send_again, entry, self._send)
        return True

    def _send_again(self, entry: CellRequest, session: SendMessage | None) -> None:
        # A session that has begun since has been sent every request already.
        if entry.key in self._requests and self._send is session:
            self._unsent[entry.key] = entry
            self._schedule_flush()

    def _fail_all(self, error: PagodaError) -> None:
        """Ends the requests that the scheduler has not been told of."""
        for entry in list(self._unsent.values()):
            self._fail(entry, error)

    def _fail(self, entry: CellRequest, error: PagodaError) -> None:
        self._requests.pop(entry.key, None)
        self._unsent.pop(entry.key, None)
        entry.stream.fail(error)
