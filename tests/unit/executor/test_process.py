"""The whole process, from its options to its exit code, against a scheduler played by the test."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from step_plans import make_plan

from pagoda.rpc.arrays import unpack_u32
from pagoda.v1 import common_pb2, executor_pb2, executor_pb2_grpc

RUN = "import json, sys; from pagoda.executor.config import ExecutorOptions as O; \
from pagoda.executor.server import main; sys.exit(main(O(**json.loads(sys.argv[1]))))"


@asynccontextmanager
async def executor(**options: Any) -> AsyncIterator[Process]:
    options = {"load_format": "dummy", "device": "cpu", "threads": 1, "max_num_seqs": 4, "block_size": 4} | options
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", RUN, json.dumps(options), stderr=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def finished(process: Process) -> tuple[int, str]:
    _, err = await asyncio.wait_for(process.communicate(), 30)
    assert process.returncode is not None
    return process.returncode, err.decode()


async def test_serves_until_sigterm(make_scheduler: Callable[..., Any], tiny_model: Path, tmp_path: Path) -> None:
    listen = f"unix:{tmp_path}/executor.sock"
    async with (
        make_scheduler().running() as scheduler,
        executor(
            model=str(tiny_model), scheduler=scheduler.address, listen=listen, name="e7", swap_space=2**-16
        ) as process,
    ):
        registration = await asyncio.wait_for(scheduler.registrations.get(), 30)
        session, _ = await scheduler.receive()
        assert registration.name == "e7"
        assert registration.role == common_pb2.EXECUTOR_ROLE_MIXED
        assert registration.model.max_model_len == 64
        assert registration.model.eos_token_ids == [1]
        assert registration.kv_layout.num_blocks == 4 * 64 // 4
        assert (registration.host_memory.num_blocks, registration.host_memory.swap_only) == (16, True)
        start = {"row": 2, "tokens": [5, 6, 7], "blocks": [9]}
        await scheduler.send(session, make_plan({2: 3}, starts=[start]))
        _, message = await scheduler.receive()
        assert unpack_u32(message.result.rows).tolist() == [2]
        assert unpack_u32(message.result.token_ids)[0] < 96
        async with grpc.aio.insecure_channel(listen) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            answer = await health.Check(health_pb2.HealthCheckRequest(service="pagoda.v1.Executor"))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
            stub = executor_pb2_grpc.ExecutorStub(channel)
            info = await stub.GetInfo(executor_pb2.GetInfoRequest())
            assert (info.steps, info.attention_backend, info.device) == (1, "reference", "cpu")
            assert info.model == registration.model
            assert info.kv_cache_bytes == 64 * 2 * 2 * 4 * 2 * 8 * 4
            await stub.StartProfile(executor_pb2.StartProfileRequest())
            await scheduler.send(session, make_plan(step=2))
            await scheduler.receive()
            path = (await stub.StopProfile(executor_pb2.StopProfileRequest())).path
            assert "traceEvents" in (Path(path) / "trace.json").read_text()
            with pytest.raises(grpc.aio.AioRpcError, match="LoRA"):
                await stub.LoadAdapter(executor_pb2.ExecutorLoadAdapterRequest())
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(scheduler.leaves.get(), 10) == session
        scheduler.let_go.set()
        code, err = await finished(process)
        assert code == 0, err
        assert "Traceback" not in err


async def test_a_scheduler_that_does_not_let_go_is_left_in_the_end(
    make_scheduler: Callable[..., Any], tiny_model: Path, tmp_path: Path
) -> None:
    listen = f"unix:{tmp_path}/executor.sock"
    async with (
        make_scheduler().running() as scheduler,
        executor(model=str(tiny_model), scheduler=scheduler.address, listen=listen, drain_s=0.2) as process,
    ):
        await scheduler.receive()
        process.send_signal(signal.SIGTERM)
        code, err = await finished(process)
        assert code == 0, err
        assert "Traceback" not in err


async def test_sigterm_while_loading(tiny_model: Path) -> None:
    async with executor(model=str(tiny_model), listen="127.0.0.1:0", scheduler="127.0.0.1:1") as process:
        assert process.stderr is not None
        await asyncio.wait_for(process.stderr.readline(), 30)  # it listens
        process.send_signal(signal.SIGTERM)
        code, err = await finished(process)
        assert code == 0, err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "/nowhere"}, "cannot read /nowhere/config.json"),
        ({"max_model_len": 65}, "--max-model-len is 65"),
        ({"num_gpu_blocks_override": 15}, "raise --num-gpu-blocks-override or lower --max-model-len"),
        ({"swap_space": 1e-9}, "--swap-space is 1e-09 GiB, less than one KV block, which takes 1,024 bytes"),
    ],
)
async def test_says_what_to_change(tiny_model: Path, options: dict[str, Any], message: str) -> None:
    async with executor(**{"model": str(tiny_model), "listen": "127.0.0.1:0"} | options) as process:
        code, err = await finished(process)
        assert code == 1
        assert message in err
        assert "Traceback" not in err


async def test_a_plan_that_makes_no_sense_ends_the_process(
    make_scheduler: Callable[..., Any], tiny_model: Path
) -> None:
    async with (
        make_scheduler().running() as scheduler,
        executor(model=str(tiny_model), scheduler=scheduler.address, listen="127.0.0.1:0") as process,
    ):
        await asyncio.wait_for(scheduler.registrations.get(), 30)
        session, _ = await scheduler.receive()
        await scheduler.send(session, make_plan(ended=[0]))
        code, err = await finished(process)
        assert code == 1
        assert "PlanError: row 0 ends, but is not active" in err
