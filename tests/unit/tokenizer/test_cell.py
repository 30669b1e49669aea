"""Requests outlive schedulers, and end when their clients go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from http_client import DONE, HttpClient, parse_events, read_rest
from scripted_scheduler import ScriptedScheduler

from pagoda.errors import DeadlineExceededError, PagodaError, ResourceExhaustedError, UnavailableError
from pagoda.rpc.arrays import pack_u32, unpack_u64
from pagoda.text import TextTokenizer
from pagoda.tokenizer.cell import Cell
from pagoda.tokenizer.server import TokenizerService
from pagoda.tokenizer.token_stream import Arrival, TokenRequest
from pagoda.v1.common_pb2 import FinishReason, ModelInfo, SamplingParams

StartService = Callable[..., Awaitable[TokenizerService]]

PROMPT = {"prompt": "the stone", "stream": True, "max_tokens": 64}


def request(*token_ids: int) -> TokenRequest:
    return TokenRequest("test", pack_u32(token_ids), SamplingParams(max_tokens=100, seed=1))


@pytest.fixture
async def cell(scheduler: ScriptedScheduler) -> AsyncIterator[Cell]:
    cell = Cell(scheduler.address, "test", recovery_s=1.0)
    task = asyncio.create_task(cell.run())
    await until_ready(cell)
    yield cell
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def until_ready(cell: Cell, ready: bool = True) -> None:
    async with asyncio.timeout(5):
        async for status in cell.statuses():
            if status.ready is ready:
                return


async def restart(scheduler: ScriptedScheduler) -> None:
    await scheduler.stop()
    await scheduler.start(scheduler.address)


def tokens(arrivals: list[Arrival]) -> list[int]:
    return [token_id for arrival in arrivals for token_id in arrival.token_ids]


async def test_the_requests_and_aborts_of_one_iteration_are_one_message(
    cell: Cell, scheduler: ScriptedScheduler
) -> None:
    scheduler.paused = True
    async with cell.submit([request(1), request(2)]):
        await scheduler.until(lambda: len(scheduler.requests) == 2)
        async with cell.submit([request(3)]):
            pass  # never sent: it was aborted in the iteration in which it began
        second = cell.submit([request(4)])
        await second.__aenter__()
    await scheduler.until(lambda: len(scheduler.messages) == 2)
    last = scheduler.messages[1]
    assert [each.token_ids for each in last.requests] == [pack_u32([4])]
    assert unpack_u64(last.aborts).tolist() == [each.key for each in scheduler.requests[:2]]
    await second.__aexit__(None, None, None)


async def test_every_request_of_a_stream_ends_once(cell: Cell, scheduler: ScriptedScheduler) -> None:
    async with cell.submit([request(7), request(8, 9)]) as stream:
        arrivals = [arrival async for batch in stream for arrival in batch]
    ends = sorted(arrival.index for arrival in arrivals if arrival.finished is not None)
    assert ends == [0, 1]
    for index, prompt in ((0, [7]), (1, [8, 9])):
        whole = tokens([arrival for arrival in arrivals if arrival.index == index])
        assert whole[-len(prompt) - 1 : -1] == prompt
    assert (cell.num_requests, scheduler.aborted) == (0, [])


async def test_a_slow_reader_gets_everything_in_fewer_pieces(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.reply = lambda _: list(range(50))
    scheduler.paused = True
    async with cell.submit([request(1)]) as slow, cell.submit([request(2)]) as quick:
        await scheduler.until(lambda: len(scheduler.requests) == 2)
        for _ in range(50):
            scheduler.step()
        assert [batch async for batch in quick]
        (batch,) = [batch async for batch in slow]
    assert tokens(batch) == list(range(50))


async def test_a_scheduler_that_returns_is_handed_what_is_unfinished(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.reply = lambda _: list(range(100, 110))
    scheduler.paused = True
    async with cell.submit([request(1, 2, 3)]) as stream:
        await scheduler.until(lambda: len(scheduler.requests) == 1)
        scheduler.step(num_tokens=4)
        first = await anext(stream)
        await restart(scheduler)
        await scheduler.until(lambda: len(scheduler.requests) == 2)
        scheduler.paused = False
        rest = [arrival async for batch in stream for arrival in batch]
    assert tokens(first) + tokens(rest) == list(range(100, 110))
    handed_over = scheduler.requests[1]
    assert handed_over.token_ids == pack_u32([1, 2, 3, 100, 101, 102, 103])
    assert handed_over.num_prompt_tokens == 3
    assert handed_over.sampling == scheduler.requests[0].sampling


async def test_a_scheduler_that_leaves_in_good_order_ends_nothing(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.reply = lambda _: list(range(100, 110))
    scheduler.paused = True
    async with cell.submit([request(1)]) as stream:
        await scheduler.until(lambda: len(scheduler.requests) == 1)
        scheduler.step(num_tokens=4)
        first = await anext(stream)
        scheduler.refuse = lambda _: UnavailableError("try again", reason="SHUTTING_DOWN")
        scheduler.step()
        scheduler.refuse = lambda _: None
        await restart(scheduler)
        scheduler.paused = False
        rest = [arrival async for batch in stream for arrival in batch]
    assert tokens(first) + tokens(rest) == list(range(100, 110))


async def test_a_lost_connection_for_tokens_is_a_lost_session(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.reply = lambda _: list(range(100, 110))
    scheduler.paused = True
    async with cell.submit([request(1)]) as stream:
        await scheduler.until(lambda: len(scheduler.requests) == 1)
        scheduler.step(num_tokens=4)
        first = await anext(stream)
        await scheduler.drop_connections()
        scheduler.paused = False
        rest = [arrival async for batch in stream for arrival in batch]
    assert tokens(first) + tokens(rest) == list(range(100, 110))
    assert len(scheduler.registrations) == 2


async def test_what_was_aborted_meanwhile_is_not_handed_over(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.paused = True
    async with cell.submit([request(1)]):
        async with cell.submit([request(2)]):
            await scheduler.until(lambda: len(scheduler.requests) == 2)
            await scheduler.stop()
            await until_ready(cell, ready=False)
        await scheduler.start(scheduler.address)
        await scheduler.until(lambda: len(scheduler.requests) == 3)
    assert scheduler.requests[2].token_ids == pack_u32([1])


async def test_requests_wait_until_the_returned_scheduler_is_ready(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.paused = True
    async with cell.submit([request(1)]) as stream:
        await scheduler.until(lambda: len(scheduler.requests) == 1)
        scheduler.ready = scheduler.paused = False
        await restart(scheduler)
        await scheduler.until(lambda: len(scheduler.registrations) == 2)
        with pytest.raises(UnavailableError):
            cell.check_ready()
        await scheduler.set_ready(True)
        assert [arrival async for batch in stream for arrival in batch][-1].finished is not None


async def test_a_returned_scheduler_may_refuse_for_a_while(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.paused = True
    async with cell.submit([request(1)]) as stream:
        await scheduler.until(lambda: len(scheduler.requests) == 1)
        refusals = [ResourceExhaustedError("full", retry_after_s=0.01), None]
        scheduler.refuse = lambda _: refusals.pop(0) if len(refusals) > 1 else None
        await restart(scheduler)
        scheduler.paused = False
        assert [arrival async for batch in stream for arrival in batch][-1].finished is not None
    assert len(scheduler.requests) == 3


async def test_a_refusal_of_a_new_request_is_its_end(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.refuse = lambda _: ResourceExhaustedError("full", reason="QUEUE_FULL", retry_after_s=3)
    async with cell.submit([request(1)]) as stream:
        with pytest.raises(PagodaError) as raised:
            await anext(stream)
    assert (raised.value.reason, len(scheduler.requests)) == ("QUEUE_FULL", 1)


async def test_another_model_does_not_go_on_with_the_tokens_of_the_last(
    cell: Cell, scheduler: ScriptedScheduler
) -> None:
    scheduler.paused = True
    async with cell.submit([request(1)]) as stream:
        await scheduler.until(lambda: len(scheduler.requests) == 1)
        scheduler.model = ModelInfo(fingerprint="another", max_model_len=64)
        await restart(scheduler)
        with pytest.raises(UnavailableError) as raised:
            await anext(stream)
    assert (raised.value.reason, len(scheduler.requests)) == ("MODEL_CHANGED", 1)
    assert cell.status.model.max_model_len == 64


async def test_requests_end_when_no_scheduler_returns(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.paused = True
    async with cell.submit([request(1)]) as stream:
        await scheduler.until(lambda: len(scheduler.requests) == 1)
        await scheduler.stop()
        started = time.monotonic()
        with pytest.raises(UnavailableError, match="within 1 s"):
            await anext(stream)
        assert 0.9 < time.monotonic() - started < 5
    await scheduler.start(scheduler.address)


async def test_a_scheduler_is_told_what_is_left_of_the_time(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.paused = True
    async with cell.submit([request(1), request(2)], time.perf_counter() + 60):
        await scheduler.until(lambda: len(scheduler.requests) == 2)
        await restart(scheduler)
        await scheduler.until(lambda: len(scheduler.requests) == 4)
    first, _, *handed_over = scheduler.requests
    assert 50 < first.timeout_s <= 60
    assert all(50 < each.timeout_s < first.timeout_s for each in handed_over)


async def test_time_does_not_stand_still_without_a_scheduler(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.paused = True
    async with cell.submit([request(1)], time.perf_counter() + 0.05) as stream:
        await scheduler.until(lambda: len(scheduler.requests) == 1)
        await scheduler.stop()
        with pytest.raises(DeadlineExceededError):
            await anext(stream)
    assert cell.num_requests == 0
    await scheduler.start(scheduler.address)


async def test_what_has_ended_in_time_may_be_read_later(cell: Cell, scheduler: ScriptedScheduler) -> None:
    async with cell.submit([request(1)], time.perf_counter() - 10) as stream:
        assert stream.seconds_left() == 0
        async with asyncio.timeout(5):
            while cell.num_requests:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
        # Until the stream would have given up on the scheduler.
        await asyncio.sleep(0.6)
        ((arrival,),) = [batch async for batch in stream]
    assert arrival.finished is not None


async def test_an_end_without_tokens_is_an_end(cell: Cell, scheduler: ScriptedScheduler) -> None:
    scheduler.reply = lambda _: []
    async with cell.submit([request(1)]) as stream:
        ((arrival,),) = [batch async for batch in stream]
    assert arrival.finished is not None
    assert (arrival.token_ids, arrival.finished.reason) == ([], FinishReason.FINISH_REASON_LENGTH)


# The same, as clients see it.


async def test_a_clients_stream_outlives_the_scheduler(
    client: HttpClient, scheduler: ScriptedScheduler, tokenizer: TextTokenizer
) -> None:
    scheduler.paused = True
    call = client.start_completion(PROMPT)
    await scheduler.until(lambda: len(scheduler.requests) == 1)
    scheduler.step(num_tokens=3)
    pieces = [(await call.read()).data]
    await restart(scheduler)
    scheduler.paused = False
    pieces += await read_rest(call)
    events = [event for piece in pieces for event in parse_events(piece)]
    assert events.pop() == DONE
    assert "".join(event["choices"][0]["text"] for event in events) == "Echo: the stone"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("num_steps", [0, 2])
async def test_a_client_that_goes_away_aborts_at_once(
    client: HttpClient, scheduler: ScriptedScheduler, stream: bool, num_steps: int
) -> None:
    scheduler.paused = True
    call = client.start_completion({**PROMPT, "stream": stream, "n": 2})
    await scheduler.until(lambda: len(scheduler.requests) == 2)
    for _ in range(num_steps):
        scheduler.step()
        if stream:
            await call.read()
    await aborts_both(scheduler, call)


async def test_a_client_that_does_not_read_aborts_at_once_too(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    """The handler then waits inside a write, not for tokens."""
    (stop_id,) = {scheduler.eos_token_id}
    scheduler.reply = lambda _: [next(each for each in range(3, 99) if each != stop_id)] * 200
    call = client.start_completion({**PROMPT, "n": 128, "max_tokens": 200, "return_token_ids": True})
    await scheduler.until(lambda: len(scheduler.requests) == 128)
    scheduler.paused = True
    for _ in range(100):
        scheduler.step()
        await asyncio.sleep(0.002)
    started = time.monotonic()
    call.cancel()
    await scheduler.until(lambda: len(scheduler.aborted) == 128)
    assert time.monotonic() - started < 0.1


async def aborts_both(scheduler: ScriptedScheduler, call: Any) -> None:
    started = time.monotonic()
    call.cancel()
    await scheduler.until(lambda: len(scheduler.aborted) == 2)
    assert time.monotonic() - started < 0.1
    assert sorted(scheduler.aborted) == sorted(each.key for each in scheduler.requests)


async def test_a_stream_that_a_shutdown_cuts_off_says_so(
    start_service: StartService, scheduler: ScriptedScheduler
) -> None:
    scheduler.paused = True
    service = await start_service()
    async with HttpClient(service.address) as client:
        call = client.start_completion(PROMPT)
        await scheduler.until(lambda: len(scheduler.requests) == 1)
        scheduler.step(num_tokens=3)
        await call.read()
        await service.stop()
        last, done = [event for piece in await read_rest(call) for event in parse_events(piece)]
    assert last["error"]["type"] == "service_unavailable"
    assert "shutting down" in last["error"]["message"]
    assert done == DONE
