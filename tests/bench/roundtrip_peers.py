"""The peers of scheduler_roundtrip.py, each a process of its own: an executor that computes nothing, and a tokenizer.

    python tests/bench/roundtrip_peers.py executor SCHEDULER ROWS FORWARD_US
    python tests/bench/roundtrip_peers.py tokenizer SCHEDULER ROWS STEPS
    python tests/bench/roundtrip_peers.py bounce ENDPOINT

They speak to the scheduler as the real ones do. What they saw is printed as JSON when they end; times are of the
monotonic clock that all processes of a machine share. The token of every row is the number of its step, which is how
the tokenizer's times are matched with the executor's.
"""

from __future__ import annotations

import argparse
import json
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic_ns
from typing import Any

import grpc
import numpy as np
import zmq
from echo_batch import EchoBatch

from pagoda.rpc.arrays import pack_u32, unpack_u32
from pagoda.rpc.channel import open_blocking_channel
from pagoda.v1 import common_pb2, scheduler_pb2, scheduler_pb2_grpc, step_pb2

BLOCK_SIZE = 16
NUM_BLOCKS = 1 << 18
PROMPT_TOKENS = 128
# More steps than there will be.
VOCAB_SIZE = 1 << 20
MAX_MODEL_LEN = 1 << 17
MAX_NUM_BATCHED_TOKENS = 8192
# Steps in which all rows run, before the tokenizer says that the measurement begins.
WARM_UP_STEPS = 100
CONNECT_TIMEOUT_S = 60

Stub = Any
Socket = zmq.Socket[bytes]


def run_executor(scheduler: str, num_rows: int, forward_us: int) -> None:
    """Answers every plan after so long a forward pass, until SIGTERM; prints [step, received, sent, rows that sampled]
    per step."""
    registration = scheduler_pb2.ExecutorRegistration(
        name="echo",
        role=common_pb2.EXECUTOR_ROLE_MIXED,
        model=common_pb2.ModelInfo(
            fingerprint="f", model_type="llama", max_model_len=MAX_MODEL_LEN, vocab_size=VOCAB_SIZE, dtype="bfloat16"
        ),
        kv_layout=common_pb2.KvLayout(block_size=BLOCK_SIZE, num_blocks=NUM_BLOCKS),
        max_num_seqs=num_rows,
        max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
    )
    batch = EchoBatch(num_rows)
    steps: list[tuple[int, int, int, int]] = []
    request = scheduler_pb2.RegisterExecutorRequest
    with _session(scheduler, "RegisterExecutor", request, request(registration=registration)) as (socket, _):
        socket.send(step_pb2.ExecutorMessage().SerializeToString())
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with suppress(KeyboardInterrupt):
            while True:
                data = socket.recv()
                received_at = monotonic_ns()
                plan = step_pb2.StepPlan.FromString(data)
                rows = batch.run(plan)
                # As busy as a real one.
                while monotonic_ns() < received_at + 1000 * forward_us:
                    pass
                result = step_pb2.StepResult(
                    step=plan.step,
                    rows=pack_u32(rows),
                    token_ids=pack_u32(np.full(len(rows), plan.step, np.uint32)),
                    forward_ns=max(1, 1000 * forward_us),
                )
                socket.send(step_pb2.ExecutorMessage(result=result).SerializeToString())
                steps.append((plan.step, received_at, monotonic_ns(), len(rows)))
    print(json.dumps(steps), flush=True)


def run_tokenizer(scheduler: str, num_rows: int, num_steps: int) -> None:
    """Submits a request per row; prints "begin" when all have run for a while, "end" num_steps steps later, and then
    [step, received] of the steps in between."""
    request = scheduler_pb2.RegisterTokenizerRequest
    hello = request(registration=scheduler_pb2.TokenizerRegistration(name="bench"))
    arrivals: list[tuple[int, int]] = []
    with _session(scheduler, "RegisterTokenizer", request, hello) as (socket, responses):
        next(response for response in responses if response.status.ready)
        requests = [_new_request(number) for number in range(num_rows)]
        socket.send(step_pb2.TokenizerMessage(requests=requests).SerializeToString())
        num_full = 0
        while num_full < WARM_UP_STEPS + num_steps:
            data = socket.recv()
            received_at = monotonic_ns()
            batch = step_pb2.TokenBatch.FromString(data)
            assert not batch.finished, batch.finished[0]
            # Each token is the number of its step; now and then a message brings two steps.
            for step, count in zip(*np.unique(unpack_u32(batch.token_ids), return_counts=True), strict=True):
                if count < num_rows:
                    assert num_full == 0, "a row did not run"
                    continue
                num_full += 1
                if num_full == WARM_UP_STEPS:
                    print("begin", flush=True)
                elif num_full > WARM_UP_STEPS:
                    arrivals.append((int(step), received_at))
        print("end", flush=True)
        print(json.dumps(arrivals), flush=True)


def run_bounce(endpoint: str) -> None:
    """Sends every message back, until SIGTERM."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(endpoint)
        print(socket.getsockopt_string(zmq.LAST_ENDPOINT), flush=True)
        while True:
            socket.send_multipart(socket.recv_multipart())


def _new_request(number: int) -> step_pb2.NewRequest:
    # Lengths differ, so that in every step as many rows need a block as in every other.
    length = PROMPT_TOKENS + number % BLOCK_SIZE
    token_ids = np.random.default_rng(number).integers(100, 32_000, length)
    sampling = common_pb2.SamplingParams(seed=number, ignore_eos=True)
    return step_pb2.NewRequest(
        key=number, token_ids=pack_u32(token_ids), num_prompt_tokens=length, sampling=sampling, client_id="bench"
    )


@contextmanager
def _session(
    scheduler: str, method: str, request: Callable[..., Any], hello: Any
) -> Iterator[tuple[Socket, Iterator[Any]]]:
    """Registers at `scheduler`, with heartbeats; the socket for the hot path, and what else the stream brings."""
    is_over = threading.Event()
    heartbeat_s = 1.0

    def requests() -> Iterator[Any]:
        yield hello
        while not is_over.wait(heartbeat_s):
            yield request(heartbeat=scheduler_pb2.Heartbeat())

    with open_blocking_channel(scheduler) as channel, zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        stub: Stub = scheduler_pb2_grpc.SchedulerStub(channel)  # type: ignore[no-untyped-call]
        grpc.channel_ready_future(channel).result(CONNECT_TIMEOUT_S)
        responses = getattr(stub, method)(requests())
        session = next(responses).session
        socket.setsockopt_string(zmq.ROUTING_ID, session.session_id)
        socket.setsockopt(zmq.LINGER, 0)
        socket.connect(session.endpoint)
        try:
            yield socket, responses
        finally:
            is_over.set()
            responses.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    roles = parser.add_subparsers(dest="role", required=True)
    executor = roles.add_parser("executor")
    tokenizer = roles.add_parser("tokenizer")
    for role in (executor, tokenizer):
        role.add_argument("scheduler", help="its gRPC address")
        role.add_argument("rows", type=int)
    tokenizer.add_argument("steps", type=int)
    executor.add_argument("forward_us", type=int)
    roles.add_parser("bounce").add_argument("endpoint")
    args = parser.parse_args()
    if args.role == "executor":
        run_executor(args.scheduler, args.rows, args.forward_us)
    elif args.role == "tokenizer":
        run_tokenizer(args.scheduler, args.rows, args.steps)
    else:
        run_bounce(args.endpoint)


if __name__ == "__main__":
    main()
