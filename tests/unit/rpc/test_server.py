"""Error mapping, health and reflection over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from pagoda.errors import Code, InvalidArgumentError, PagodaError, ResourceExhaustedError
from pagoda.rpc.channel import open_channel
from pagoda.rpc.server import ServiceServer
from pagoda.rpc.status import from_message, from_rpc_error, to_message
from pagoda.v1 import tokenizer_pb2 as pb
from pagoda.v1 import tokenizer_pb2_grpc

SERVICE = "pagoda.v1.Tokenizer"


class FailingTokenizer(tokenizer_pb2_grpc.TokenizerServicer):
    async def Tokenize(self, request: pb.TokenizeRequest, context: Any) -> pb.TokenizeResponse:
        raise InvalidArgumentError("text is empty; send at least one character", reason="EMPTY_TEXT", param="text")

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Any) -> pb.DetokenizeResponse:
        raise KeyError("secret detail")

    async def DetokenizeStream(
        self, requests: AsyncIterator[pb.DetokenizeStreamRequest], context: Any
    ) -> AsyncIterator[pb.DetokenizeStreamResponse]:
        yield pb.DetokenizeStreamResponse(text="one")
        raise ResourceExhaustedError("queue is full", retry_after_s=2.5)


@pytest.fixture
async def channel(tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:
    server = ServiceServer(f"unix:{tmp_path}/server.sock", [SERVICE])
    tokenizer_pb2_grpc.add_TokenizerServicer_to_server(FailingTokenizer(), server.grpc)
    await server.start()
    await server.set_serving(True)
    async with open_channel(server.address) as client:
        yield client
    await server.stop(grace_s=0)


async def test_a_domain_error_arrives_with_code_reason_and_param(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await tokenizer_pb2_grpc.TokenizerStub(channel).Tokenize(pb.TokenizeRequest())
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    error = from_rpc_error(raised.value)
    assert (error.code, error.reason, error.param) == (Code.INVALID_ARGUMENT, "EMPTY_TEXT", "text")
    assert error.message == "text is empty; send at least one character"


async def test_a_defect_becomes_internal_and_keeps_its_details_to_itself(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await tokenizer_pb2_grpc.TokenizerStub(channel).Detokenize(pb.DetokenizeRequest())
    assert raised.value.code() is grpc.StatusCode.INTERNAL
    assert "secret" not in (raised.value.details() or "")


async def test_an_error_in_mid_stream_follows_the_messages_before_it(channel: grpc.aio.Channel) -> None:
    call = tokenizer_pb2_grpc.TokenizerStub(channel).DetokenizeStream()
    # The sending side stays open: grpc.aio forgets the status when it closes that side while the call ends.
    await call.write(pb.DetokenizeStreamRequest())
    assert (await call.read()).text == "one"
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call.read()
    error = from_rpc_error(raised.value)
    assert isinstance(error, ResourceExhaustedError)
    assert error.retry_after_s == 2.5


async def test_an_unreachable_server_is_unavailable(tmp_path: Path) -> None:
    async with open_channel(f"unix:{tmp_path}/nobody.sock") as client:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await tokenizer_pb2_grpc.TokenizerStub(client).Tokenize(pb.TokenizeRequest())
    assert from_rpc_error(raised.value).code is Code.UNAVAILABLE


@pytest.mark.parametrize("service", ["", SERVICE])
async def test_health_serves(channel: grpc.aio.Channel, service: str) -> None:
    answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=service))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_process_that_is_not_ready_is_live(tmp_path: Path) -> None:
    server = ServiceServer(f"unix:{tmp_path}/server.sock", [SERVICE])
    await server.start()
    async with open_channel(server.address) as client:
        check = health_pb2_grpc.HealthStub(client).Check
        answers = {name: await check(health_pb2.HealthCheckRequest(service=name)) for name in ("", "live")}
    await server.stop(grace_s=0)
    status = health_pb2.HealthCheckResponse
    assert {name: each.status for name, each in answers.items()} == {"": status.NOT_SERVING, "live": status.SERVING}


async def test_reflection_lists_the_services(channel: grpc.aio.Channel) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {service.name for service in (await call.read()).list_services_response.service}
    assert {SERVICE, "grpc.health.v1.Health"} <= names


@pytest.mark.parametrize(
    "error",
    [
        InvalidArgumentError("bad", reason="BAD", param="n"),
        ResourceExhaustedError("full", retry_after_s=0.25),
        PagodaError("broken"),
    ],
)
def test_errors_inside_messages_round_trip(error: PagodaError) -> None:
    back = from_message(to_message(error))
    assert (back.code, back.reason, back.message, back.param) == (error.code, error.reason, error.message, error.param)
    assert getattr(back, "retry_after_s", None) == getattr(error, "retry_after_s", None)


async def test_an_address_that_cannot_be_bound_is_an_os_error() -> None:
    with pytest.raises(OSError, match="cannot listen on"):
        await ServiceServer("unix:/nonexistent/folder/server.sock", [SERVICE]).start()
