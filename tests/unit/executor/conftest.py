"""A scheduler that a test plays by hand: the registration service and the ZeroMQ socket of a real one."""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
import zmq
import zmq.asyncio

from pagoda.v1 import scheduler_pb2, scheduler_pb2_grpc, step_pb2

# The helpers of these tests (step_plans) stand beside them.
sys.path.insert(0, str(Path(__file__).parent))

torch.set_num_threads(1)

TINY_CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 1,
    "dtype": "float32",
}


class FakeScheduler(scheduler_pb2_grpc.SchedulerServicer):
    """One life of a scheduler. `messages` gets what executors send, as (session id, message)."""

    def __init__(self, folder: Path, life: int) -> None:
        self.address = f"unix:{folder}/scheduler.sock"
        self.endpoint = f"ipc://{folder}/steps-{life}.zmq"
        self.heartbeat_s = 0.05
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self.registrations: asyncio.Queue[scheduler_pb2.ExecutorRegistration] = asyncio.Queue()
        self.heartbeats: asyncio.Queue[str] = asyncio.Queue()
        self.transfers = scheduler_pb2.TransferStats()
        """As the last heartbeat counted them."""
        self.leaves: asyncio.Queue[str] = asyncio.Queue()
        self.let_go = asyncio.Event()
        self.attempts = 0
        self._life = life

    async def RegisterExecutor(self, requests: Any, context: Any) -> AsyncIterator[Any]:
        self.attempts += 1
        if self.refusal:
            await context.abort(*self.refusal)
        registration = (await anext(requests)).registration
        session_id = f"session-{self._life}-{self.attempts}"
        response = scheduler_pb2.RegisterExecutorResponse()
        response.session.session_id = session_id
        response.session.endpoint = self.endpoint
        response.session.heartbeat_interval.FromMilliseconds(int(self.heartbeat_s * 1000))
        yield response
        self.registrations.put_nowait(registration)
        async for request in requests:
            if request.HasField("leave"):
                self.leaves.put_nowait(session_id)
                await self.let_go.wait()
                return
            assert request.HasField("heartbeat")
            self.transfers = request.heartbeat.transfers
            self.heartbeats.put_nowait(session_id)

    async def receive(self) -> tuple[str, step_pb2.ExecutorMessage]:
        identity, data = await asyncio.wait_for(self._router.recv_multipart(), 10)
        return identity.decode(), step_pb2.ExecutorMessage.FromString(data)

    async def send(self, session_id: str, plan: step_pb2.StepPlan) -> None:
        await self._router.send_multipart([session_id.encode(), plan.SerializeToString()])

    @asynccontextmanager
    async def running(self) -> AsyncIterator[FakeScheduler]:
        server = grpc.aio.server()
        scheduler_pb2_grpc.add_SchedulerServicer_to_server(self, server)
        server.add_insecure_port(self.address)
        context = zmq.asyncio.Context()
        self._router = context.socket(zmq.ROUTER)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._router.bind(self.endpoint)
        await server.start()
        try:
            yield self
        finally:
            await server.stop(None)
            self._router.close(linger=0)
            context.term()


@pytest.fixture
def make_scheduler(tmp_path: Path) -> Callable[[], FakeScheduler]:
    """Schedulers at one address; each is a new life."""
    lives = itertools.count(1)
    return lambda: FakeScheduler(tmp_path, next(lives))


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    """A folder with a config.json, for dummy weights."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY_CONFIG))
    return folder
