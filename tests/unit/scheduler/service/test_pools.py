"""Executors with roles, on the wire: requests that move from one to another, new roles, and leaving."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from pagoda.errors import Code
from pagoda.rpc.status import from_rpc_error
from pagoda.scheduler.core.simulated import expected_tokens
from pagoda.v1 import common_pb2, scheduler_pb2

PREFILL, DECODE = common_pb2.EXECUTOR_ROLE_PREFILL, common_pb2.EXECUTOR_ROLE_DECODE
PROMPT = list(range(100, 130))
MAX_TOKENS = 25


@pytest.fixture
async def service(start: Any) -> Any:
    return await start(max_local_prefill_tokens=4)


async def set_role(service: Any, executor: str, role: int) -> None:
    await service.stub.SetRole(scheduler_pb2.SetRoleRequest(executor=executor, role=role))


async def leave(executor: Any) -> None:
    await executor.call.write(scheduler_pb2.RegisterExecutorRequest(leave=scheduler_pb2.Leave()))


def check(tokenizer: Any, key: int, count: int = MAX_TOKENS) -> None:
    assert tokenizer.tokens[key] == expected_tokens([key, *PROMPT], 0, 1000, count)


async def test_a_prompt_is_computed_by_one_executor_and_continued_by_another(service: Any, request_of: Any) -> None:
    await service.executor("p", role=PREFILL)
    await service.executor("d", role=DECODE)
    tokenizer = await service.tokenizer()
    await tokenizer.send(*[request_of(key, [key, *PROMPT], max_tokens=MAX_TOKENS, ignore_eos=True) for key in range(6)])
    await tokenizer.until(lambda: len(tokenizer.finished) == 6)
    for key in range(6):
        check(tokenizer, key)
    state = await service.state()
    assert (state.remote_prefills, state.moves_done, state.moves_failed, state.recoveries) == (6, 6, 0, 0)
    assert state.moved_blocks
    assert [lane.role for lane in state.lanes] == [PREFILL, DECODE]


async def test_a_push_that_cannot_arrive_costs_nothing_but_time(service: Any, request_of: Any) -> None:
    await service.executor("p", role=PREFILL)
    decode = await service.executor("d", role=DECODE)
    # Nobody is at its endpoint.
    del service.executors["d"]
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, [1, *PROMPT], max_tokens=MAX_TOKENS, ignore_eos=True))
    await tokenizer.until(lambda: tokenizer.finished)
    check(tokenizer, 1)
    state = await service.state()
    assert (state.moves_done, state.moves_failed, state.move_failures) == (0, 1, {"push_unreachable": 1})
    assert decode.plans


async def test_a_lost_executor_is_why_a_move_fails(service: Any, request_of: Any) -> None:
    prefill = await service.executor("p", role=PREFILL, pause_at=1)
    decode = await service.executor("d", role=DECODE)
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, [1, *PROMPT], max_tokens=MAX_TOKENS, ignore_eos=True))
    await service.until(lambda: prefill.plans and decode.plans)
    await decode.stop()
    await service.until(lambda: len(service.engine.core.lanes) == 1)
    prefill.may_answer.set()
    await tokenizer.until(lambda: tokenizer.finished)
    check(tokenizer, 1)
    assert (await service.state()).move_failures == {"executor_lost": 1}


async def test_an_executor_gets_another_role_while_it_serves(service: Any, request_of: Any) -> None:
    await service.executor("a")
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, [1, *PROMPT], max_tokens=30, ignore_eos=True))
    await tokenizer.until(lambda: tokenizer.tokens[1])
    other = await service.executor("b")
    await set_role(service, "a", PREFILL)
    await tokenizer.until(lambda: tokenizer.finished)
    check(tokenizer, 1, count=30)
    assert {lane.name: lane.role for lane in (await service.state()).lanes} == {
        "a": PREFILL,
        "b": common_pb2.EXECUTOR_ROLE_MIXED,
    }
    await set_role(service, "b", DECODE)
    await tokenizer.send(request_of(2, [2, *PROMPT], max_tokens=MAX_TOKENS, ignore_eos=True))
    await tokenizer.until(lambda: 2 in tokenizer.finished)
    check(tokenizer, 2)
    assert (await service.state()).remote_prefills == 1
    assert other.plans


async def test_bad_roles_are_refused(service: Any) -> None:
    await service.executor("twin")
    await service.executor("twin")
    for executor, role, code in [
        ("nobody", PREFILL, Code.NOT_FOUND),
        ("twin", PREFILL, Code.FAILED_PRECONDITION),
        ("twin", common_pb2.EXECUTOR_ROLE_UNSPECIFIED, Code.INVALID_ARGUMENT),
        ("twin", 77, Code.INVALID_ARGUMENT),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await set_role(service, executor, role)
        assert from_rpc_error(raised.value).code == code
    lane = (await service.state()).lanes[0]
    await set_role(service, lane.session_id, DECODE)


async def test_an_executor_leaves_when_its_requests_have_moved(service: Any, request_of: Any) -> None:
    first = await service.executor("first")
    tokenizer = await service.tokenizer()
    await tokenizer.send(*[request_of(key, [key, *PROMPT], max_tokens=33, ignore_eos=True) for key in range(3)])
    await tokenizer.until(lambda: len(tokenizer.tokens) == 3)
    await service.executor("second")
    await leave(first)
    assert await first.call.read() is grpc.aio.EOF  # type: ignore[attr-defined]
    await tokenizer.until(lambda: len(tokenizer.finished) == 3)
    for key in range(3):
        check(tokenizer, key, count=33)
    state = await service.state()
    assert [lane.name for lane in state.lanes] == ["second"]
    assert state.recoveries == 0


async def test_an_executor_alone_leaves_when_its_requests_have_ended(service: Any, request_of: Any) -> None:
    executor = await service.executor(pause_at=3)
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, [1, *PROMPT], max_tokens=MAX_TOKENS, ignore_eos=True))
    await service.until(lambda: len(executor.plans) == 3)
    await leave(executor)
    await service.until(lambda: all(lane.is_leaving for lane in service.engine.core.lanes.values()))
    assert (await service.state()).lanes[0].leaving
    executor.may_answer.set()
    assert await executor.call.read() is grpc.aio.EOF  # type: ignore[attr-defined]
    check(tokenizer, 1)
