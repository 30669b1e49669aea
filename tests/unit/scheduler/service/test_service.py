"""Whole round trips through gRPC and ZeroMQ: requests, aborts, lost peers, bad messages, shutdown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from pagoda.errors import Code
from pagoda.rpc.channel import open_channel
from pagoda.rpc.status import from_rpc_error
from pagoda.scheduler.core.scheduler import MAX_LANES_LOST
from pagoda.scheduler.core.simulated import expected_tokens
from pagoda.v1 import common_pb2, scheduler_pb2

LENGTH = common_pb2.FINISH_REASON_LENGTH
PROMPT = [5, 6, 7, 8, 9, 10]


def lane_of(service: Any, executor: Any) -> Any:
    return service.engine.core.lanes[executor.session.session_id]


def generate_request(**sampling: Any) -> scheduler_pb2.SchedulerGenerateRequest:
    params = common_pb2.SamplingParams(**({"seed": 0} | sampling))
    return scheduler_pb2.SchedulerGenerateRequest(prompt_token_ids=PROMPT, sampling=params)


async def test_a_request_goes_round(service: Any, request_of: Any) -> None:
    await service.executor()
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(7, PROMPT, max_tokens=10, seed=3, ignore_eos=True))
    await tokenizer.until(lambda: tokenizer.finished)
    assert tokenizer.tokens[7] == expected_tokens(PROMPT, 3, 1000, 10)
    assert tokenizer.finished[7].reason == LENGTH
    assert not tokenizer.finished[7].HasField("stop_token_id")
    state = await service.state()
    assert state.lanes[0].num_referenced_blocks == 0
    assert state.requests_finished == 1
    assert state.generation_tokens == 10


async def test_a_stop_token_is_the_last_token(service: Any, request_of: Any) -> None:
    await service.executor()
    tokenizer = await service.tokenizer()
    tokens = expected_tokens(PROMPT, 0, 1000, 5)
    await tokenizer.send(request_of(1, PROMPT, max_tokens=10, stop_token_ids=[tokens[3]]))
    await tokenizer.until(lambda: tokenizer.finished)
    assert tokenizer.tokens[1] == tokens[:4]
    assert tokenizer.finished[1].reason == common_pb2.FINISH_REASON_STOP
    assert tokenizer.finished[1].stop_token_id == tokens[3]


async def test_requests_before_the_first_executor_wait_for_it(service: Any, request_of: Any) -> None:
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, PROMPT, max_tokens=3))
    await service.until(lambda: len(service.engine.core.waiting) == 1)
    await service.executor()
    await tokenizer.until(lambda: tokenizer.finished)
    assert tokenizer.tokens[1] == expected_tokens(PROMPT, 0, 1000, 3)


async def test_the_cells_status_follows_its_executors(service: Any) -> None:
    tokenizer = await service.tokenizer()
    await tokenizer.until(lambda: tokenizer.statuses)
    assert not tokenizer.statuses[0].ready
    assert not tokenizer.statuses[0].HasField("model")
    executor = await service.executor()
    await tokenizer.until(lambda: tokenizer.statuses[-1].ready)
    assert tokenizer.statuses[-1].model.max_model_len == 64
    await executor.stop()
    await tokenizer.until(lambda: not tokenizer.statuses[-1].ready)
    assert tokenizer.statuses[-1].HasField("model")


async def test_generate_streams_tokens_and_usage(service: Any) -> None:
    await service.executor()
    responses = [each async for each in service.stub.Generate(generate_request(max_tokens=4))]
    assert [token for each in responses for token in each.token_ids] == expected_tokens(PROMPT, 0, 1000, 4)
    assert responses[-1].finish_reason == LENGTH
    assert all(not each.finish_reason for each in responses[:-1])
    usage = responses[-1].usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (6, 4, 0)
    again = [each async for each in service.stub.Generate(generate_request(max_tokens=4))]
    assert again[-1].usage.cached_tokens == 5


async def test_generate_without_a_seed_draws_one(service: Any) -> None:
    await service.executor()
    request = generate_request(max_tokens=8)
    request.sampling.ClearField("seed")
    answers = [[token async for each in service.stub.Generate(request) for token in each.token_ids] for _ in range(2)]
    assert answers[0] != answers[1]


async def test_generate_ends_when_its_time_is_up(service: Any) -> None:
    executor = await service.executor()
    executor.may_answer.clear()
    request = generate_request(max_tokens=50)
    request.client_id, request.timeout_s = "alice", 0.05
    call = service.stub.Generate(request)
    await service.until(lambda: service.engine.core.requests)
    assert [each.client_id for each in service.engine.core.requests.values()] == ["alice"]
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert from_rpc_error(raised.value).code == Code.DEADLINE_EXCEEDED
    executor.may_answer.set()
    await service.until(lambda: not lane_of(service, executor).pool.num_referenced)
    assert (await service.state()).requests_expired == 1


async def test_cancelling_generate_frees_its_blocks(service: Any) -> None:
    executor = await service.executor(pause_at=3)
    call = service.stub.Generate(generate_request(max_tokens=50, ignore_eos=True))
    await call.read()
    call.cancel()
    await service.until(lambda: not service.engine.core.requests)
    # The step in flight may still write to the blocks.
    assert lane_of(service, executor).pool.num_referenced
    executor.may_answer.set()
    await service.until(lambda: not lane_of(service, executor).pool.num_referenced)
    assert (await service.state()).requests_aborted == 1


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"max_tokens": 0}, "max_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"max_tokens": 59}, "max_tokens"),
        ({"stop_token_ids": [1000]}, "stop_token_ids"),
    ],
)
async def test_generate_refuses_bad_parameters_by_name(service: Any, change: dict[str, Any], param: str) -> None:
    await service.executor()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.stub.Generate(generate_request(**change)).read()
    error = from_rpc_error(raised.value)
    assert (error.code, error.param) == (Code.INVALID_ARGUMENT, param)
    assert (await service.state()).requests_rejected == 1


async def test_a_tokenizer_hears_of_bad_requests(service: Any, request_of: Any) -> None:
    await service.executor()
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, [], max_tokens=3), request_of(2, PROMPT, max_tokens=1))
    await tokenizer.until(lambda: len(tokenizer.finished) == 2)
    assert tokenizer.finished[1].reason == common_pb2.FINISH_REASON_ERROR
    assert tokenizer.finished[1].error.param == "prompt"
    assert tokenizer.finished[2].reason == LENGTH


async def test_an_abort_ends_the_request(service: Any, request_of: Any) -> None:
    executor = await service.executor()
    tokenizer = await service.tokenizer()
    executor.may_answer.clear()
    await tokenizer.send(request_of(1, PROMPT, max_tokens=50), request_of(2, PROMPT, max_tokens=2))
    await service.until(lambda: executor.plans)
    await tokenizer.send(aborts=[1, 99])
    await tokenizer.until(lambda: 1 in tokenizer.finished)
    assert tokenizer.finished[1].reason == common_pb2.FINISH_REASON_ABORT
    executor.may_answer.set()
    await tokenizer.until(lambda: 2 in tokenizer.finished)
    assert (await service.state()).lanes[0].num_referenced_blocks == 0


async def test_a_lost_executors_requests_go_on_elsewhere(service: Any, request_of: Any) -> None:
    first = await service.executor("first")
    tokenizer = await service.tokenizer()
    first.may_answer.clear()
    await tokenizer.send(*[request_of(key, [*PROMPT, key], max_tokens=40, ignore_eos=True) for key in range(6)])
    await service.until(lambda: first.plans)
    second = await service.executor("second")
    await first.stop()
    await tokenizer.until(lambda: len(tokenizer.finished) == 6)
    for key in range(6):
        assert tokenizer.tokens[key] == expected_tokens([*PROMPT, key], 0, 1000, 40)
    state = await service.state()
    assert [lane.name for lane in state.lanes] == ["second"]
    assert sum(state.recovery_times["executor"].counts) == state.recoveries > 0
    assert state.recovery_times["executor"].longest_s > 0
    assert second.plans


async def test_requests_wait_out_the_loss_of_the_only_executor(service: Any, request_of: Any) -> None:
    first = await service.executor("first")
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, PROMPT, max_tokens=50, ignore_eos=True))
    await tokenizer.until(lambda: len(tokenizer.tokens[1]) > 3)
    await first.stop()
    await service.until(lambda: not service.engine.core.lanes)
    await service.executor("second")
    await tokenizer.until(lambda: tokenizer.finished)
    assert tokenizer.tokens[1] == expected_tokens(PROMPT, 0, 1000, 50)


async def test_without_executors_requests_end_in_time(start: Callable[..., Any], request_of: Any) -> None:
    service = await start(no_executor_timeout_s=0.1, heartbeat_interval_s=0.05)
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, PROMPT))
    await tokenizer.until(lambda: tokenizer.finished)
    assert tokenizer.finished[1].error.reason == "NO_EXECUTOR"
    assert tokenizer.finished[1].error.code == Code.UNAVAILABLE


async def test_a_silent_executor_is_dropped(start: Callable[..., Any]) -> None:
    service = await start(heartbeat_interval_s=0.05, heartbeat_timeout_s=0.2)
    executor = await service.executor()
    await asyncio.sleep(0.4)
    assert service.engine.core.lanes
    executor.heartbeats.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await executor.call.read()
    assert from_rpc_error(raised.value).reason == "HEARTBEAT_LOST"
    assert not service.engine.core.lanes


async def test_an_executor_that_hangs_is_dropped(start: Callable[..., Any], request_of: Any) -> None:
    service = await start(heartbeat_interval_s=0.05, step_timeout_s=0.2)
    stuck = await service.executor("stuck")
    stuck.may_answer.clear()
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, PROMPT, max_tokens=3))
    await service.until(lambda: stuck.plans)
    await service.executor("other")
    await tokenizer.until(lambda: tokenizer.finished)
    assert tokenizer.tokens[1] == expected_tokens(PROMPT, 0, 1000, 3)


async def test_an_executor_that_says_goodbye_is_nobodys_fault(service: Any, request_of: Any) -> None:
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, PROMPT, max_tokens=58, ignore_eos=True))
    for number in range(4):
        executor = await service.executor(f"executor-{number}", pause_at=3)
        await tokenizer.until(lambda: tokenizer.tokens[1])
        await executor.call.done_writing()
        assert await executor.call.read() is grpc.aio.EOF  # type: ignore[attr-defined]
    await service.executor("last")
    await tokenizer.until(lambda: tokenizer.finished)
    assert tokenizer.tokens[1] == expected_tokens(PROMPT, 0, 1000, 58)


async def test_a_request_that_kills_executors_is_given_up(service: Any, request_of: Any) -> None:
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, PROMPT, max_tokens=50))
    for number in range(MAX_LANES_LOST):
        executor = await service.executor(f"executor-{number}", pause_at=1)
        await service.until(lambda: executor.plans)  # noqa: B023
        await executor.stop()
    await tokenizer.until(lambda: tokenizer.finished)
    assert tokenizer.finished[1].error.reason == "EXECUTOR_LOST"


@pytest.mark.parametrize(
    ("frames", "reason"),
    [
        ([b"\xff\xff"], "MALFORMED_MESSAGE"),
        ([b"", b"two frames"], "MALFORMED_MESSAGE"),
        ([b"\n\x04\x12\x02\x01\x02"], "MALFORMED_MESSAGE"),
        ([b""], "MALFORMED_MESSAGE"),
        ([b"\n\x02\x08\x05"], "BAD_RESULT"),
    ],
    ids=["junk", "frames", "odd array", "second hello", "unplanned"],
)
async def test_an_executor_that_sends_nonsense_is_dropped(service: Any, frames: list[bytes], reason: str) -> None:
    executor = await service.executor()
    await executor.socket.send_multipart(frames)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await executor.call.read()
    assert from_rpc_error(raised.value).reason == reason
    await service.executor("another")
    assert len([each async for each in service.stub.Generate(generate_request(max_tokens=2))]) > 0


async def test_a_tokenizer_that_sends_nonsense_loses_its_requests_only(service: Any, request_of: Any) -> None:
    await service.executor()
    good, bad = await service.tokenizer(), await service.tokenizer()
    await bad.send(request_of(1, PROMPT, max_tokens=50))
    await bad.socket.send(b"\xff")
    await service.until(lambda: len(service.engine.tokenizers) == 1)
    assert not any(key.origin == bad.session.session_id for key in service.engine.core.requests)
    await good.send(request_of(1, PROMPT, max_tokens=2))
    await good.until(lambda: good.finished)


async def test_a_key_in_use_ends_the_session(service: Any, request_of: Any) -> None:
    tokenizer = await service.tokenizer()
    await tokenizer.send(request_of(1, PROMPT), request_of(1, PROMPT))
    await service.until(lambda: not service.engine.tokenizers)
    assert not service.engine.core.requests


async def test_messages_of_strangers_are_ignored(service: Any, request_of: Any) -> None:
    tokenizer, executor = await service.tokenizer(), await service.executor()
    tokenizer.socket.connect(executor.session.endpoint)
    for _ in range(4):
        await tokenizer.send()
    await executor.stop()
    await service.until(lambda: not service.engine.executors)
    await service.state()


async def test_a_lost_tokenizers_requests_are_aborted(service: Any, request_of: Any) -> None:
    executor = await service.executor()
    tokenizer = await service.tokenizer()
    executor.may_answer.clear()
    await tokenizer.send(*[request_of(key, PROMPT, max_tokens=50) for key in range(3)])
    await service.until(lambda: executor.plans)
    await tokenizer.stop()
    await service.until(lambda: not service.engine.core.requests)
    executor.may_answer.set()
    await service.until(lambda: not lane_of(service, executor).pool.num_referenced)
    assert (await service.state()).requests_aborted == 3


async def test_a_full_queue_refuses(start: Callable[..., Any], request_of: Any) -> None:
    service = await start(max_num_waiting=2)
    tokenizer = await service.tokenizer()
    await tokenizer.send(*[request_of(key, PROMPT) for key in range(2)])
    await service.until(lambda: len(service.engine.core.waiting) == 2)
    # One that was accepted before the scheduler restarted is taken back.
    await tokenizer.send(request_of(2, PROMPT), request_of(3, [*PROMPT, 1], num_prompt_tokens=len(PROMPT)))
    await tokenizer.until(lambda: tokenizer.finished)
    assert list(tokenizer.finished) == [2]
    assert tokenizer.finished[2].error.code == Code.RESOURCE_EXHAUSTED
    assert tokenizer.finished[2].error.retry_after_s > 0
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.stub.Generate(generate_request()).read()
    assert from_rpc_error(raised.value).code is Code.RESOURCE_EXHAUSTED


async def test_a_request_is_taken_up_where_another_scheduler_left_it(service: Any, request_of: Any) -> None:
    await service.executor()
    tokenizer = await service.tokenizer()
    tokens = expected_tokens(PROMPT, 0, 1000, 10)
    await tokenizer.send(
        request_of(1, [*PROMPT, *tokens[:4]], num_prompt_tokens=len(PROMPT), max_tokens=10, ignore_eos=True),
        request_of(2, [*PROMPT, *tokens], num_prompt_tokens=len(PROMPT), max_tokens=10, ignore_eos=True),
    )
    await tokenizer.until(lambda: len(tokenizer.finished) == 2)
    assert tokenizer.tokens[1] == tokens[4:]
    assert tokenizer.tokens[2] == []
    assert tokenizer.finished[1].reason == tokenizer.finished[2].reason == LENGTH


@pytest.mark.parametrize(
    ("change", "code", "reason"),
    [
        ({"fingerprint": "other"}, Code.FAILED_PRECONDITION, "EXECUTOR_MISMATCH"),
        ({"max_model_len": 32}, Code.FAILED_PRECONDITION, "EXECUTOR_MISMATCH"),
        ({"vocab_size": 99}, Code.FAILED_PRECONDITION, "EXECUTOR_MISMATCH"),
        ({"max_model_len": 257}, Code.INVALID_ARGUMENT, "KV_CACHE_TOO_SMALL"),
        ({"max_num_batched_tokens": 3}, Code.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
    ],
)
async def test_executors_that_do_not_fit_are_refused(
    service: Any, registration_of: Any, change: dict[str, Any], code: Code, reason: str
) -> None:
    await service.executor("first")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.register(registration_of("second", **change))
    error = from_rpc_error(raised.value)
    assert (error.code, error.reason) == (code, reason)
    assert len((await service.state()).lanes) == 1


async def test_the_first_message_must_be_a_registration(service: Any) -> None:
    call = service.stub.RegisterExecutor()
    await call.write(scheduler_pb2.RegisterExecutorRequest())
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert from_rpc_error(raised.value).param == "registration"


async def test_drain_lets_requests_end_and_refuses_new_ones(service: Any, request_of: Any) -> None:
    executor = await service.executor()
    tokenizer = await service.tokenizer()
    executor.may_answer.clear()
    await tokenizer.send(request_of(1, PROMPT, max_tokens=5))
    await service.until(lambda: executor.plans)
    drained = service.stub.Drain(scheduler_pb2.DrainRequest())
    await service.until(lambda: service.engine.core.is_draining)
    await tokenizer.send(request_of(2, PROMPT))
    await tokenizer.until(lambda: 2 in tokenizer.finished)
    assert tokenizer.finished[2].error.reason == "DRAINING"
    await tokenizer.until(lambda: not tokenizer.statuses[-1].ready)
    assert not drained.done()
    executor.may_answer.set()
    await drained
    await tokenizer.until(lambda: 1 in tokenizer.finished)
    assert tokenizer.finished[1].reason == LENGTH
    assert (await service.state()).draining


async def test_shutting_down_ends_every_request(start: Callable[..., Any], request_of: Any) -> None:
    service = await start()
    executor = await service.executor()
    tokenizer = await service.tokenizer()
    executor.may_answer.clear()
    await tokenizer.send(request_of(1, PROMPT, max_tokens=50))
    call = service.stub.Generate(generate_request(max_tokens=50))
    await service.until(lambda: len(service.engine.core.requests) == 2)
    await service.shut_down()
    await tokenizer.until(lambda: tokenizer.finished)
    assert tokenizer.finished[1].error.reason == "SHUTTING_DOWN"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    assert from_rpc_error(raised.value).code is Code.UNAVAILABLE


async def test_a_failure_of_the_loop_is_reported_and_nobody_is_told_a_lie(
    service: Any, request_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    await service.executor()
    tokenizer = await service.tokenizer()
    monkeypatch.setattr(service.engine.core, "step", lambda now: 1 / 0)
    await tokenizer.send(request_of(1, PROMPT))
    with pytest.raises(ZeroDivisionError):
        await service.engine.failed
    await service.shut_down()
    assert not tokenizer.finished


async def test_watch_state_repeats(service: Any) -> None:
    request = scheduler_pb2.WatchStateRequest()
    request.interval.FromMilliseconds(50)
    call = service.stub.WatchState(request)
    assert (await call.read()).state.max_num_waiting == 1024
    assert (await call.read()).state.num_tokenizers == 0
    call.cancel()
    request.interval.FromMilliseconds(1)
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await service.stub.WatchState(request).read()
    assert from_rpc_error(raised.value).param == "interval"


async def test_adapters_are_not_there_yet(service: Any) -> None:
    assert not (await service.stub.ListAdapters(scheduler_pb2.ListAdaptersRequest())).names
    for call, request in [
        (service.stub.LoadAdapter, scheduler_pb2.LoadAdapterRequest()),
        (service.stub.UnloadAdapter, scheduler_pb2.UnloadAdapterRequest()),
    ]:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(request)
        assert from_rpc_error(raised.value).code is Code.UNIMPLEMENTED


async def test_health_serves_before_any_executor(service: Any, tmp_path: Any) -> None:
    async with open_channel(f"unix:{tmp_path}/scheduler.sock") as channel:
        answer = await health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(service="pagoda.v1.Scheduler")
        )
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
