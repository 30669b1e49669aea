"""The loop around the core: what arrived goes in, one step is taken, plans and tokens go out.

A turn runs to its end without waiting, on the event loop, whenever a socket has something to read or a call has
changed something. So a plan leaves in the same turn in which the result or the request came in that made it possible.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import zmq

from pagoda.errors import FailedPreconditionError, NotFoundError, PagodaError, UnavailableError
from pagoda.rpc.curve import read_cell_key
from pagoda.scheduler import codec
from pagoda.scheduler.config import SchedulerOptions
from pagoda.scheduler.core.request import End, FinishReason, Request, RequestKey
from pagoda.scheduler.core.scheduler import CoreOptions, Outputs, Scheduler
from pagoda.scheduler.core.spec import ExecutorRole, ModelSpec
from pagoda.scheduler.handle import Handle
from pagoda.scheduler.kv_event_publisher import KvEventPublisher
from pagoda.scheduler.sessions import ExecutorSession, Session, TokenizerSession
from pagoda.scheduler.traces import RequestTraces
from pagoda.scheduler.transfers import TransferTotals
from pagoda.scheduler.transport import PeerGoneError, Router
from pagoda.v1 import kv_events_pb2, scheduler_pb2

if TYPE_CHECKING:  # an optional package
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

# Origin of requests that did not come from a tokenizer; no session id looks like it.
LOCAL = "local"


class Engine:
    """The core, its sockets and its sessions."""

    def __init__(
        self, options: SchedulerOptions, context: zmq.Context[zmq.Socket[bytes]], tracer: Tracer | None = None
    ) -> None:
        """tracer: makes spans; None: nobody wants them

        Raises OSError when an endpoint cannot be bound, and ValueError for a bad key.
        """
        key = read_cell_key(options.cell_key_file) if options.cell_key_file else None
        endpoint = options.kv_events_endpoint
        self.kv_publisher = KvEventPublisher(context, endpoint, key) if endpoint else None
        self.core = Scheduler(
            CoreOptions(
                max_num_waiting=options.max_num_waiting,
                enable_prefix_caching=options.enable_prefix_caching,
                no_executor_timeout_s=options.no_executor_timeout_s,
                max_plans_in_flight=options.max_plans_in_flight,
                policy=options.scheduling_policy,
                client_weights=options.client_weights,
                tie_window_s=options.tie_window_s,
                inter_token_target_s=options.inter_token_target_ms / 1000,
                max_local_prefill_tokens=options.max_local_prefill_tokens,
                transfer_timeout_s=options.transfer_timeout_s,
                # Executors outlive schedulers, and pushes on their way may, too.
                first_move=secrets.randbits(63),
            ),
            self.kv_publisher.events if self.kv_publisher else None,
        )
        self.executors: dict[str, ExecutorSession] = {}
        self.tokenizers: dict[str, TokenizerSession] = {}
        self.transfers = TransferTotals()
        self.executor_router = Router(context, options.executor_endpoint, key)
        self.tokenizer_router = Router(context, options.tokenizer_endpoint, key)
        self._options = options
        self._loop = asyncio.get_running_loop()
        self._traces = RequestTraces(tracer, self._loop.time) if tracer else None
        self._transfer_endpoints: dict[str, list[str]] = {}
        self._handles: dict[RequestKey, Handle] = {}
        # Requests of tokenizers that were never accepted, until the tokenizers have been told.
        self._refused: list[Request] = []
        self._local_numbers = itertools.count(1)
        self._status = scheduler_pb2.CellStatus()
        self._published: tuple[bool, ModelSpec | None] = (False, None)
        self._is_turn_scheduled = False
        self._is_closed = False
        self._idle = asyncio.Event()
        self.failed: asyncio.Future[None] = self._loop.create_future()
        """Gets an exception when a turn fails, after which the state is not to be trusted."""

    def start(self) -> None:
        self.executor_router.on_readable(self._turn)
        self.tokenizer_router.on_readable(self._turn)
        self._tick()

    def close(self, linger_s: float = 1.0) -> None:
        """Ends every request with an error, tells the tokenizers, and leaves.

        After a failure it says nothing: the tokenizers find the scheduler gone and hand their requests to the next.
        """
        self._is_closed = True
        self._timer.cancel()
        error = UnavailableError("the scheduler is shutting down; try again", reason="SHUTTING_DOWN")
        self.core.refuse_new(error)
        if not self.failed.done():
            self.core.end_all(error)
            self._send_outputs()
        for session in [*self.executors.values(), *self.tokenizers.values()]:
            session.close(error)
        self.executor_router.close(linger_s)
        self.tokenizer_router.close(linger_s)
        if self.kv_publisher:
            self.kv_publisher.close()

    # Peers

    @contextmanager
    def executor(self, registration: scheduler_pb2.ExecutorRegistration) -> Iterator[ExecutorSession]:
        """An executor's session; its lane is there from its first ZeroMQ message to the end of the block.

        Raises PagodaError for one that does not fit the executors there are.
        """
        spec = codec.decode_lane(registration)
        spec.check()
        for other in self.executors.values():
            spec.check_joins(other.spec)
        session = ExecutorSession(spec, registration)
        self.executors[session.id] = session
        self._transfer_endpoints[session.id] = list(registration.transfer_endpoints)
        logger.info("executor %s has registered", session)
        try:
            yield session
        finally:
            self._forget(session)

    @contextmanager
    def tokenizer(self, name: str) -> Iterator[TokenizerSession]:
        """A tokenizer's session; at the end of the block its requests are aborted."""
        session = TokenizerSession(name)
        self.tokenizers[session.id] = session
        session.publish(self._status)
        logger.info("tokenizer %s has registered", session)
        try:
            yield session
        finally:
            self._forget(session)

    def begin_leaving(self, session: ExecutorSession) -> None:
        """The executor's requests move or end; then the session is closed."""
        if session.id in self.core.lanes:
            logger.info("executor %s wants to leave", session)
            self.core.begin_leaving(session.id)
            self._wake()
        else:
            session.close()

    def note_transfers(self, session: ExecutorSession, stats: scheduler_pb2.TransferStats) -> None:
        """What an executor has sent and received since its process started."""
        self.transfers.add(session.name, session.transfers, stats)
        session.transfers = stats

    def set_role(self, name: str, role: ExecutorRole) -> None:
        """name: of an executor, or its session's id. Raises NotFoundError, and FailedPreconditionError if several have
        that name."""
        sessions = [
            each for each in self.executors.values() if name in (each.name, each.id) and each.id in self.core.lanes
        ]
        if not sessions:
            raise NotFoundError(f"there is no executor {name!r}", reason="NO_SUCH_EXECUTOR")
        if len(sessions) > 1:
            raise FailedPreconditionError(
                f"{len(sessions)} executors are called {name!r}; give the session_id of one", reason="AMBIGUOUS_NAME"
            )
        self.core.set_role(sessions[0].id, role)
        logger.info("executor %s is now %s", sessions[0], role.name)
        self._wake()

    # Calls

    def new_local_key(self) -> RequestKey:
        return RequestKey(LOCAL, next(self._local_numbers))

    def generate(self, request: Request) -> Handle:
        """Submits a request of this process. Raises PagodaError when it is refused."""
        self._accept(request)
        handle = self._handles[request.key] = Handle(request, self._abort_local)
        self._wake()
        return handle

    def list_kv_blocks(self) -> Iterator[kv_events_pb2.ListKvBlocksResponse]:
        """The blocks that can be found on each executor now. Raises FailedPreconditionError when nobody keeps count."""
        if self.kv_publisher is None:
            message = "KV events are not published; start the scheduler with kv_events_endpoint"
            raise FailedPreconditionError(message, reason="KV_EVENTS_OFF")
        return self.kv_publisher.snapshot()

    async def drain(self) -> None:
        """Refuses new requests and returns when the accepted ones have ended."""
        message = "the scheduler is draining; send the request elsewhere"
        self.core.refuse_new(UnavailableError(message, reason="DRAINING"))
        if self.core.requests:
            self._idle.clear()
        self._wake()
        await self._idle.wait()

    # The loop

    def _turn(self) -> None:
        self._is_turn_scheduled = False
        if self._is_closed or self.failed.done():
            return
        try:
            self._read_tokenizers()
            self._read_executors()
            self._send_plans()
            self._send_outputs()
            self._let_go()
            self.core.settle()
            if self.kv_publisher:
                self.kv_publisher.publish()
            self._publish_status()
        except Exception as error:
            logger.critical("the scheduler's loop has failed", exc_info=True)
            self.failed.set_exception(error)
            return
        if self.core.requests:
            self._idle.clear()
        else:
            self._idle.set()
        if self.executor_router.has_messages or self.tokenizer_router.has_messages:
            self._wake()

    def _wake(self) -> None:
        """A turn, as soon as the event loop has run what is ready."""
        if not self._is_turn_scheduled:
            self._is_turn_scheduled = True
            self._loop.call_soon(self._turn)

    def _tick(self) -> None:
        """Time has passed, and with it perhaps a deadline."""
        overdue = self._loop.time() - self._options.step_timeout_s
        for lane in list(self.core.lanes.values()):
            if lane.flights and lane.flights[0].sent_at < overdue:
                message = f"no result of a step for {self._options.step_timeout_s:g} s"
                self._drop(self.executors[lane.id], UnavailableError(message, reason="STEP_TIMEOUT"))
        self._turn()
        if self.kv_publisher:
            self.kv_publisher.beat()
        self._timer = self._loop.call_later(self._options.heartbeat_interval_s, self._tick)

    def _read_tokenizers(self) -> None:
        for session_id, frames in self.tokenizer_router.receive():
            session = self.tokenizers.get(session_id)
            if session is None:
                logger.info("a message of the unknown tokenizer %r is ignored", session_id)
                continue
            try:
                requests, aborts = codec.decode_tokenizer_message(_only(frames), session_id)
                for request in requests:
                    self._submit(request)
                for key in aborts:
                    self.core.abort(key)
            except codec.MalformedMessageError as error:
                self._drop(session, error)

    def _submit(self, request: Request) -> None:
        if request.key in self.core.requests:
            raise codec.MalformedMessageError(f"key {request.key.number} belongs to an unfinished request")
        try:
            self._accept(request)
        except PagodaError:
            self._refused.append(request)

    def _accept(self, request: Request) -> None:
        """Raises PagodaError, with which the request has ended, when it is refused."""
        now = self._loop.time()
        if self._traces:
            self._traces.begin(request, now)
        try:
            self.core.submit(request, now)
        except PagodaError as error:
            request.end = End(FinishReason.ERROR, error=error)
            if self._traces:
                self._traces.end(request, now)
            raise

    def _read_executors(self) -> None:
        for session_id, frames in self.executor_router.receive():
            session = self.executors.get(session_id)
            if session is None:
                logger.info("a message of the unknown executor %r is ignored", session_id)
                continue
            try:
                news = codec.decode_executor_message(_only(frames))
                if (news == codec.NO_NEWS) == (session_id in self.core.lanes):
                    raise codec.MalformedMessageError("a session begins with one empty message")
                if news == codec.NO_NEWS:
                    self.core.add_lane(session_id, session.spec)
                else:
                    self._apply(session, news)
            except PagodaError as error:
                self._drop(session, error)

    def _apply(self, session: ExecutorSession, news: codec.ExecutorNews) -> None:
        now = self._loop.time()
        for number, reason in news.failed:
            logger.warning("executor %s could not push KV blocks: %s", session, reason)
            self.core.note_failed(session.id, number, reason, now)
        for number, count in news.arrived:
            self.core.note_arrived(session.id, number, count, now)
        if news.result is not None:
            self.core.commit(session.id, news.result, now)

    def _let_go(self) -> None:
        """Executors that wanted to leave, and that nobody needs any more."""
        for session in self.executors.values():
            lane = self.core.lanes.get(session.id)
            if lane and lane.is_leaving and self.core.may_leave(session.id):
                session.said_goodbye = True
                session.close()

    def _send_plans(self) -> None:
        """Until every lane has as many steps in flight as it may have."""
        while plans := self.core.step(self._loop.time()):
            for lane_id, plan in plans:
                try:
                    message = codec.encode_plan(plan, self._transfer_endpoints, self._options.step_timeout_s)
                    self.executor_router.send(lane_id, message)
                except PeerGoneError as error:
                    self._drop(self.executors[lane_id], error)

    def _send_outputs(self) -> None:
        """One message per tokenizer; local requests have handles."""
        outputs = self.core.take_outputs()
        outputs.ended += self._refused
        self._refused = []
        batches: defaultdict[str, Outputs] = defaultdict(Outputs)
        for request in outputs.admitted:
            if request.key.origin != LOCAL:
                batches[request.key.origin].admitted.append(request)
        for run in outputs.tokens:
            if run.origin == LOCAL:
                for number, token_id in zip(run.keys.tolist(), run.token_ids.tolist(), strict=True):
                    self._handles[RequestKey(LOCAL, number)].push(token_id)
            else:
                batches[run.origin].tokens.append(run)
        for request in outputs.ended:
            if request.key.origin == LOCAL:
                self._handles.pop(request.key).wake()
            else:
                batches[request.key.origin].ended.append(request)
        now = self._loop.time()
        for session_id, batch in batches.items():
            if session := self.tokenizers.get(session_id):
                try:
                    self.tokenizer_router.send(session_id, codec.encode_token_batch(batch))
                except PeerGoneError as error:
                    self._drop(session, error)
        if self._traces:
            # They have ended before anybody was told.
            for request in outputs.ended:
                self._traces.end(request, now)

    def _publish_status(self) -> None:
        is_ready, model = published = self.core.is_ready, self.core.model
        if published == self._published:
            return
        self._published = published
        self._status = scheduler_pb2.CellStatus(ready=is_ready, model=codec.encode_model(model) if model else None)
        for session in self.tokenizers.values():
            session.publish(self._status)

    # Ends

    def _abort_local(self, request: Request) -> None:
        self.core.abort(request.key)
        self._wake()

    def _drop(self, session: Session, error: PagodaError) -> None:
        logger.warning("%s is dropped: %s", session, error)
        session.close(error)
        self._forget(session)

    def _forget(self, session: Session) -> None:
        """The session is over; every other sign of its end finds nothing left to do."""
        if self.executors.pop(session.id, None):
            del self._transfer_endpoints[session.id]
            if lane := self.core.lanes.get(session.id):
                logger.info("%d requests go back to the queue", lane.num_running)
                self.core.remove_lane(session.id, self._loop.time(), died=not session.said_goodbye)
            logger.info("executor %s has left", session)
        elif self.tokenizers.pop(session.id, None):
            self.core.abort_all_of(session.id)
            logger.info("tokenizer %s has left", session)
        self._wake()


def _only(frames: list[bytes]) -> bytes:
    if len(frames) != 1:
        raise codec.MalformedMessageError(f"{len(frames)} frames instead of 1")
    return frames[0]
