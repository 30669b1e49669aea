"""The typed API."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from http_client import HttpClient
from scripted_scheduler import ScriptedScheduler, prompt_of

from pagoda.errors import Code, DeadlineExceededError
from pagoda.rpc.status import from_rpc_error
from pagoda.text import TextTokenizer
from pagoda.v1 import inference_pb2 as pb
from pagoda.v1 import tokenizer_pb2
from pagoda.v1.common_pb2 import FinishReason, SamplingParams, Usage
from pagoda.v1.inference_pb2_grpc import InferenceStub


@pytest.fixture
def stub(client: HttpClient) -> Any:
    return InferenceStub(client.channel)  # type: ignore[no-untyped-call]


async def test_a_stream_of_text_and_tokens(stub: Any, tokenizer: TextTokenizer) -> None:
    responses = [each async for each in stub.Generate(pb.GenerateRequest(text="the stone"))]
    assert "".join(each.text for each in responses) == "Echo: the stone"
    token_ids = [token_id for each in responses for token_id in each.token_ids]
    assert token_ids[-1] in tokenizer.eos_token_ids
    last = responses[-1]
    assert last.finish_reason == FinishReason.FINISH_REASON_STOP
    assert last.usage == Usage(
        prompt_tokens=len(tokenizer.encode("the stone")), completion_tokens=len(token_ids), cached_tokens=2
    )
    assert all(not each.finish_reason and not each.HasField("usage") for each in responses[:-1])


async def test_one_message_per_completion_on_request(stub: Any, scheduler: ScriptedScheduler) -> None:
    request = pb.GenerateRequest(text="a", n=3, no_stream=True, stop=["ho:"], sampling=SamplingParams(seed=9))
    responses = [each async for each in stub.Generate(request)]
    assert [(each.index, each.text, each.matched_stop) for each in responses] == [(i, "Ec", "ho:") for i in range(3)]
    assert all(each.usage.completion_tokens == len(each.token_ids) for each in responses)
    assert [each.sampling.seed for each in scheduler.requests] == [9, 10, 11]


async def test_token_ids_and_chats_are_prompts_too(
    stub: Any, scheduler: ScriptedScheduler, tokenizer: TextTokenizer
) -> None:
    chat = tokenizer_pb2.Chat(messages=[tokenizer_pb2.ChatMessage(role="user", content="Hi")])
    for request in (
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=[5, 6, 7])),
        pb.GenerateRequest(chat=chat, stop=["\n"], include_stop=True),
    ):
        responses = [each async for each in stub.Generate(request)]
    assert prompt_of(scheduler.requests[0]) == [5, 6, 7]
    rendered = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert prompt_of(scheduler.requests[1]) == tokenizer.encode(rendered)
    assert "".join(each.text for each in responses) == "Echo: user\n"


@pytest.mark.parametrize(
    ("request_fields", "param"),
    [
        ({}, "prompt"),
        ({"text": ""}, "text"),
        ({"text": "a", "n": 0}, "n"),
        ({"text": "a", "stop": [""]}, "stop"),
        ({"text": "a", "sampling": SamplingParams(temperature=float("nan"))}, "temperature"),
        ({"text": "a", "sampling": SamplingParams(top_p=0)}, "top_p"),
        ({"text": "a", "sampling": SamplingParams(max_tokens=0)}, "max_tokens"),
        ({"text": "a", "sampling": SamplingParams(max_tokens=5000)}, "max_tokens"),
        ({"token_ids": pb.TokenIds(ids=[10**6])}, "token_ids"),
        ({"token_ids": pb.TokenIds()}, "token_ids"),
        ({"chat": tokenizer_pb2.Chat()}, "chat.messages"),
    ],
)
async def test_bad_requests(stub: Any, request_fields: dict[str, Any], param: str) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Generate(pb.GenerateRequest(**request_fields)).read()
    error = from_rpc_error(raised.value)
    assert (error.code, error.param) == (Code.INVALID_ARGUMENT, param)


async def test_an_unknown_model(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Generate(pb.GenerateRequest(model="other", text="a")).read()
    assert raised.value.code() is grpc.StatusCode.NOT_FOUND


async def test_client_priority_and_time_travel_with_the_request(stub: Any, scheduler: ScriptedScheduler) -> None:
    identity = ("x-client-id", "key-1")
    for timeout, metadata in (
        (None, [identity]),
        (60, [identity]),
        (None, [("x-request-timeout-ms", "40000")]),
        (20, [("x-request-timeout-ms", "40000")]),
    ):
        await stub.Generate(pb.GenerateRequest(text="a", priority=-2), timeout=timeout, metadata=metadata).read()
    free, *timed = scheduler.requests
    assert {request.priority for request in scheduler.requests} == {-2}
    assert [request.client_id for request in scheduler.requests] == ["key-1", "key-1", "", ""]
    assert not free.HasField("timeout_s")
    assert [round(request.timeout_s, -1) for request in timed] == [60, 40, 20]


async def test_a_request_whose_time_is_up(stub: Any, scheduler: ScriptedScheduler) -> None:
    scheduler.refuse = lambda request: DeadlineExceededError("too late")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Generate(pb.GenerateRequest(text="a"), timeout=60).read()
    error = from_rpc_error(raised.value)
    assert (error.code, error.reason, error.message) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "too late")


async def test_a_timeout_that_is_none(stub: Any) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Generate(pb.GenerateRequest(text="a"), metadata=[("x-request-timeout-ms", "soon")]).read()
    error = from_rpc_error(raised.value)
    assert (error.code, error.param) == (Code.INVALID_ARGUMENT, "x-request-timeout-ms")


@pytest.mark.parametrize("ended_by", ["cancel", "deadline"])
async def test_cancel_and_deadline_abort(stub: Any, scheduler: ScriptedScheduler, ended_by: str) -> None:
    scheduler.paused = True
    call = stub.Generate(pb.GenerateRequest(text="a"), timeout=0.3 if ended_by == "deadline" else None)
    await scheduler.until(lambda: len(scheduler.requests) == 1)
    scheduler.step()
    await call.read()
    started = time.monotonic()
    if ended_by == "cancel":
        call.cancel()
    await scheduler.until(lambda: scheduler.aborted == [scheduler.requests[0].key])
    assert time.monotonic() - started < (0.1 if ended_by == "cancel" else 0.4)


async def test_models_and_what_this_model_cannot(stub: Any) -> None:
    models = (await stub.ListModels(pb.ListModelsRequest())).models
    assert [(model.id, model.max_model_len) for model in models] == [("tiny", 256), ("tiny/alias", 256)]
    for call in (stub.Embed(pb.EmbedRequest()), stub.Rerank(pb.RerankRequest())):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
