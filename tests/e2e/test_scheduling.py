"""What users of `pagoda serve` see of the scheduler: full queues, order, fair shares, time limits, swapped blocks."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import grpc
import httpx
import openai
import pytest
import zmq
from processes import free_port, poll
from stack_fixtures import Server, short_folder

from pagoda.errors import Code
from pagoda.rpc.arrays import pack_u32
from pagoda.rpc.channel import open_blocking_channel
from pagoda.rpc.status import from_rpc_error
from pagoda.v1 import common_pb2, inference_pb2, inference_pb2_grpc, kv_events_pb2, scheduler_pb2_grpc
from pagoda.v1.scheduler_pb2 import SchedulerState

BLOCK_SIZE = 16
KV_TOPIC = b"pagoda.kv.v1"
IGNORE_EOS = {"ignore_eos": True}


@contextmanager
def running(*flags: str) -> Iterator[Server]:
    folder = short_folder()
    server = Server(folder, *flags)
    try:
        yield server.wait_until_ready()
    finally:
        server.process.close()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def narrow_server() -> Iterator[Server]:
    with running("--max-num-seqs", "1", "--max-num-waiting", "2") as server:
        yield server


@pytest.fixture
def narrow(narrow_server: Server) -> Iterator[Server]:
    """One request at a time, and room for two that wait."""
    yield narrow_server
    narrow_server.assert_idle()


@pytest.fixture(scope="module")
def kv_endpoint() -> str:
    return f"tcp://127.0.0.1:{free_port()}"


@pytest.fixture(scope="module")
def fair_server(kv_endpoint: str) -> Iterator[Server]:
    with running("--scheduling-policy", "fair", "--max-num-seqs", "4", "--kv-events-endpoint", kv_endpoint) as server:
        yield server


@pytest.fixture
def fair(fair_server: Server) -> Iterator[Server]:
    """Four requests at a time, shared fairly, and KV events at `kv_endpoint`."""
    yield fair_server
    fair_server.assert_idle()


def client_of(server: Server) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0, timeout=60)


def ask(server: Server, prompt: str, num_tokens: int, **extra: Any) -> dict[str, Any]:
    """A greedy completion of exactly so many tokens."""
    options = {"max_tokens": num_tokens, "temperature": 0, "extra_body": IGNORE_EOS | extra}
    return {"model": server.model, "prompt": prompt, **options}


async def read(client: openai.AsyncOpenAI, begun: list[str], name: str, **request: Any) -> str:
    """The text of a stream. begun: gets `name` when the first of it is there."""
    text = ""
    async for chunk in await client.completions.create(stream=True, **request):
        if name not in begun:
            begun.append(name)
        text += chunk.choices[0].text
    return text


@asynccontextmanager
async def busy(server: Server, client: openai.AsyncOpenAI) -> AsyncIterator[None]:
    """Inside the block a request runs that takes seconds; its client then goes away."""
    stream = await client.completions.create(stream=True, **ask(server, "Hello", 2000))
    await anext(aiter(stream))
    try:
        yield
    finally:
        await stream.close()


async def until(server: Server, condition: Callable[[SchedulerState], bool], what: str) -> None:
    await asyncio.to_thread(poll, lambda: condition(server.state()), 20, what)


async def test_a_full_queue_refuses_at_once_and_serves_the_rest(narrow: Server) -> None:
    ended: list[int | str] = []

    async def attempt(client: openai.AsyncOpenAI, number: int) -> None:
        try:
            text = await read(client, [], "", **ask(narrow, f"Count from {number}:", 150))
        except openai.RateLimitError as error:
            refusals.append(error)
            ended.append(error.status_code)
        else:
            texts[number] = text
            ended.append("text")

    texts: dict[int, str] = {}
    refusals: list[openai.RateLimitError] = []
    rejected = narrow.state().requests_rejected
    async with client_of(narrow) as client:
        async with asyncio.timeout(60):
            await asyncio.gather(*(attempt(client, number) for number in range(12)))
        assert len(ended) == 12
        # One that runs and two that wait were there at some time.
        assert len(texts) >= 3
        assert 429 in ended
        assert {error.code for error in refusals} == {"queue_full"}
        assert all(int(error.response.headers["retry-after"]) >= 1 for error in refusals)
        # Who is refused is not kept waiting for the others.
        assert ended[-1] == "text"
        for number, text in texts.items():
            assert text == await read(client, [], "", **ask(narrow, f"Count from {number}:", 150)), number
    assert narrow.state(check_integrity=True).requests_rejected - rejected == ended.count(429)


async def test_the_lower_priority_value_goes_first(narrow: Server) -> None:
    begun: list[str] = []
    async with client_of(narrow) as client:
        async with busy(narrow, client):
            later = asyncio.create_task(read(client, begun, "later", **ask(narrow, "One", 20, priority=5)))
            await until(narrow, lambda state: state.num_waiting == 1, "one waits")
            urgent = asyncio.create_task(read(client, begun, "urgent", **ask(narrow, "Two", 20, priority=-5)))
            await until(narrow, lambda state: state.num_waiting == 2, "both wait")
        await asyncio.gather(later, urgent)
    assert begun == ["urgent", "later"]


async def test_one_request_is_not_kept_waiting_by_anothers_twenty(fair: Server) -> None:
    begun: list[str] = []
    async with client_of(fair) as client:
        flood = [
            asyncio.create_task(read(client, begun, f"alice {i}", **ask(fair, f"Say {i}", 100, user="alice")))
            for i in range(24)
        ]
        await until(fair, lambda state: state.lanes[0].num_running == 4 and state.num_waiting >= 16, "alice's wait")
        (clients,) = fair.state().waiting_clients
        assert clients.client_id == "alice"
        num_ahead = len(begun)
        await read(client, begun, "bob", **ask(fair, "Say bob", 10, user="bob"))
        await asyncio.gather(*flood)
    # At most the four that ran when it came, and those that started in the same step.
    assert begun.index("bob") < num_ahead + 4 + 4 < 20


async def test_time_limits_end_requests_that_wait_and_that_run(narrow: Server) -> None:
    limited = {"extra_headers": {"x-request-timeout-ms": "200"}}
    before = narrow.state()
    async with client_of(narrow) as client:
        async with busy(narrow, client):
            for stream in (False, True):
                await assert_too_late(client, stream=stream, **ask(narrow, "Hi", 8), **limited)
            await assert_too_late_over_grpc(narrow, metadata=[("x-request-timeout-ms", "200")])
            assert narrow.state().num_waiting == 0
        await assert_too_late(client, **ask(narrow, "Hi", 2000), **limited)
    await until(narrow, lambda state: state.lanes[0].num_referenced_blocks == 0, "every block is free")
    assert narrow.state(check_integrity=True).requests_expired - before.requests_expired == 4


async def assert_too_late(client: openai.AsyncOpenAI, **request: Any) -> None:
    with pytest.raises(openai.APIStatusError) as raised:
        await client.completions.create(**request)
    assert raised.value.status_code == 504
    error = raised.value.response.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("timeout_error", None, "deadline_exceeded")


async def assert_too_late_over_grpc(server: Server, **call: Any) -> None:
    async with grpc.aio.insecure_channel(server.address) as channel:
        request = inference_pb2.GenerateRequest(text="Hi", sampling=common_pb2.SamplingParams(max_tokens=8))
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await inference_pb2_grpc.InferenceStub(channel).Generate(request, **call).read()
    error = from_rpc_error(raised.value)
    assert (error.code, error.reason) == (Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


async def test_a_grpc_deadline_frees_what_waits_for_it(narrow: Server) -> None:
    async with client_of(narrow) as client, busy(narrow, client):
        async with grpc.aio.insecure_channel(narrow.address) as channel:
            stub = inference_pb2_grpc.InferenceStub(channel)
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await stub.Generate(inference_pb2.GenerateRequest(text="Hi"), timeout=0.3).read()
        assert raised.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await until(narrow, lambda state: state.num_waiting == 0, "nothing waits")
        assert narrow.state().lanes[0].num_running == 1


def test_n_completions_compute_their_prompt_once(fair: Server) -> None:
    prompt = "Tell of the lamp, the stone and the river behind the house, and of seven letters: "
    num_prompt = len(fair.post("/tokenize", {"prompt": prompt})["tokens"])
    assert num_prompt > BLOCK_SIZE
    assert num_prompt % BLOCK_SIZE > 1, "the prompt is to end inside a block"
    body = {"model": fair.model, "prompt": prompt, "temperature": 0.9, "max_tokens": 30, "ignore_eos": True}
    before = fair.state()
    choices = fair.post("/v1/completions", body | {"n": 4, "seed": 7})["choices"]
    after = fair.state()
    num_computed = after.prompt_tokens - before.prompt_tokens - (after.prefix_cache_hits - before.prefix_cache_hits)
    # The last token is computed by each of them, since it is what they draw their first one from.
    assert num_computed <= num_prompt + 3
    assert after.copied_blocks - before.copied_blocks >= 3
    texts = [choice["text"] for choice in choices]
    assert len(set(texts)) > 1
    assert texts == [fair.post("/v1/completions", body | {"seed": 7 + i})["choices"][0]["text"] for i in range(4)]


@pytest.mark.parametrize("option", ["--swap-space", "--kv-offloading-size"])
async def test_texts_survive_preemption(option: str) -> None:
    # Computed again in larger matrices, a key or value may differ in its last bits; in float32 that is far from
    # changing a token.
    flags = ["--num-gpu-blocks-override", "32", "--max-model-len", "512", "--dtype", "float32", option, "0.01"]
    with running(*flags) as server:
        requests = [ask(server, f"Tell number {i} of the river and the lamp", 200) for i in range(6)]
        async with client_of(server) as client:
            alone = [await read(client, [], "", **request) for request in requests]
            assert server.state().preemptions == 0
            together = await asyncio.gather(*(read(client, [], "", **request) for request in requests))
        assert together == alone
        server.assert_idle()
        state = server.state(check_integrity=True)
        assert state.preemptions > 0
        assert state.offloaded_blocks > 0
        assert state.loaded_blocks > 0
        assert state.lanes[0].num_host_blocks > 0
        metrics = (await asyncio.to_thread(httpx.get, f"{server.base_url}/metrics")).text.splitlines()
        for name, value in (
            ("vllm:num_preemptions_total", state.preemptions),
            ("pagoda:offloaded_blocks_total", state.offloaded_blocks),
            ("pagoda:loaded_blocks_total", state.loaded_blocks),
        ):
            assert f'{name}{{model_name="pagoda"}} {float(value)}' in metrics


class KvCopy:
    """The blocks of the only executor, kept as kv_events.proto tells."""

    def __init__(self, channel: grpc.Channel, socket: zmq.Socket[bytes]) -> None:
        self._channel = channel
        self._socket = socket
        self.blocks: set[bytes] = set()
        # What an empty cache has seen: the root of requests without a salt.
        self.roots = {hashlib.sha256(b"pagoda kv blocks 0 0 ").digest()}
        self.epoch, self.sequence, self.blocks = self.snapshot()

    def snapshot(self) -> tuple[int, int, set[bytes]]:
        """(epoch, sequence, blocks) as the scheduler lists them now."""
        stub = scheduler_pb2_grpc.SchedulerStub(self._channel)
        first, *parts = stub.ListKvBlocks(kv_events_pb2.ListKvBlocksRequest(), timeout=10)
        device = [part.blocks for part in parts if part.blocks.medium == kv_events_pb2.KV_MEDIUM_DEVICE]
        return first.start.epoch, first.start.sequence, {each for part in device for each in hashes(part.hashes)}

    def follow(self) -> None:
        """Applies the next batch."""
        batch = receive(self._socket)
        if batch.sequence <= self.sequence:
            return
        assert (batch.epoch, batch.sequence) == (self.epoch, self.sequence + 1), "a batch was lost"
        self.sequence = batch.sequence
        for executor in batch.executors:
            for event in executor.events:
                if event.HasField("stored"):
                    assert event.stored.parent in self.blocks | self.roots
                    assert len(event.stored.token_ids) // 4 == BLOCK_SIZE * len(hashes(event.stored.hashes))
                    self.blocks.update(hashes(event.stored.hashes))
                else:
                    self.blocks.difference_update(hashes(event.removed.hashes))


def receive(socket: zmq.Socket[bytes]) -> kv_events_pb2.KvEventBatch:
    topic, sequence, data = socket.recv_multipart()
    batch = kv_events_pb2.KvEventBatch.FromString(data)
    assert (topic, int.from_bytes(sequence, "big")) == (KV_TOPIC, batch.sequence)
    return batch


def hashes(joined: bytes) -> list[bytes]:
    return [joined[start : start + 32] for start in range(0, len(joined), 32)]


def chain(token_ids: list[int]) -> list[bytes]:
    """The hashes of the full blocks of a request without salt and adapter."""
    digest = hashlib.sha256(b"pagoda kv blocks 0 0 ")
    chain = []
    for start in range(0, len(token_ids) // BLOCK_SIZE * BLOCK_SIZE, BLOCK_SIZE):
        digest.update(pack_u32(token_ids[start : start + BLOCK_SIZE]))
        chain.append(digest.digest())
    return chain


def test_kv_events_tell_of_a_requests_blocks(fair: Server, kv_endpoint: str) -> None:
    with (
        zmq.Context() as context,
        context.socket(zmq.SUB) as socket,
        open_blocking_channel(fair.services()["scheduler"]["address"]) as channel,
    ):
        socket.setsockopt(zmq.RCVTIMEO, 10_000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.subscribe(KV_TOPIC)
        socket.connect(kv_endpoint)
        # What is published from now on comes.
        receive(socket)
        copy = KvCopy(channel, socket)
        body = {"model": fair.model, "prompt": "Whose blocks are these?", "max_tokens": 60, "temperature": 0}
        (choice,) = fair.post("/v1/completions", body | {"ignore_eos": True, "return_token_ids": True})["choices"]
        # The last token is drawn, and nothing is computed from it.
        expected = chain([*choice["prompt_token_ids"], *choice["token_ids"]][:-1])
        assert len(expected) >= 3
        assert not copy.blocks.issuperset(expected)
        while not copy.blocks.issuperset(expected):
            copy.follow()
        epoch, sequence, blocks = copy.snapshot()
        while copy.sequence < sequence:
            copy.follow()
        assert (copy.epoch, copy.sequence, copy.blocks) == (epoch, sequence, blocks)


def test_top_shows_the_stack(fair: Server) -> None:
    command = [sys.executable, "-m", "pagoda.cli.main", "top", "--once", "--interval", "0.2"]
    done = subprocess.run(
        [*command, "--run-dir", str(fair.run_dir)], capture_output=True, text=True, check=True, timeout=30
    )
    first, *_ = lines = done.stdout.splitlines()
    assert first.startswith("pagoda top  llama bfloat16  fair  serving")
    assert any("0 of 1,024 waiting · 1 tokenizer" in line for line in lines)
    (executor,) = [line for line in lines if line.startswith("executor ")]
    assert "0+0/4" in executor
    assert "free of 2,048" in done.stdout
