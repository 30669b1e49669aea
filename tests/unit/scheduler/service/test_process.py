"""The scheduler as a process of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from pagoda.rpc.channel import open_blocking_channel
from pagoda.v1 import scheduler_pb2, scheduler_pb2_grpc

PROGRAM = """
import sys
from pagoda.scheduler.config import SchedulerOptions
from pagoda.scheduler.server import main
listen, executors, tokenizers = sys.argv[1:]
sys.exit(main(SchedulerOptions(listen=listen, executor_endpoint=executors, tokenizer_endpoint=tokenizers)))
"""


def start(listen: str, executors: str, tokenizers: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, listen, executors, tokenizers], stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    with start(f"unix:{tmp_path}/grpc", f"ipc://{tmp_path}/executors", f"ipc://{tmp_path}/tokenizers") as process:
        with open_blocking_channel(f"unix:{tmp_path}/grpc") as channel:
            stub = scheduler_pb2_grpc.SchedulerStub(channel)  # type: ignore[no-untyped-call]
            state = stub.GetState(scheduler_pb2.GetStateRequest(), wait_for_ready=True, timeout=20).state
            assert state.max_num_waiting == 1024
            request = scheduler_pb2.SchedulerGenerateRequest(prompt_token_ids=[1])
            waiting = stub.Generate(request)
            while not stub.GetState(scheduler_pb2.GetStateRequest()).state.num_waiting:
                pass
            process.send_signal(number)
            with pytest.raises(grpc.RpcError) as raised:
                next(waiting)
            assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        _, log = process.communicate(timeout=10)
        assert process.returncode == 0, log
        assert "Traceback" not in log


@pytest.mark.parametrize("position", [0, 1, 2])
def test_an_address_that_cannot_be_bound_ends_it_with_a_message(tmp_path: Path, position: int) -> None:
    addresses = [f"unix:{tmp_path}/grpc", "tcp://127.0.0.1:*", "tcp://127.0.0.1:*"]
    addresses[position] = "unix:/nonexistent/x" if position == 0 else "ipc:///nonexistent/x"
    with start(*addresses) as process:
        _, log = process.communicate(timeout=20)
    assert process.returncode == 1
    assert addresses[position] in log
    assert "Traceback" not in log
