"""Wiring of the tokenizer service: options in, a running process out."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from pagoda.errors import UnavailableError
from pagoda.logs import configure_logging
from pagoda.rpc.curve import KeyPair, read_cell_key
from pagoda.rpc.server import ServiceServer
from pagoda.signals import stop_event
from pagoda.text import TextTokenizer
from pagoda.tokenizer.cell import Cell
from pagoda.tokenizer.config import TokenizerOptions
from pagoda.tokenizer.generation import Engine
from pagoda.tokenizer.inference import InferenceServicer
from pagoda.tokenizer.metrics import Metrics
from pagoda.tokenizer.models import ServedModel
from pagoda.tokenizer.openai.servicer import OpenAIServicer
from pagoda.tokenizer.prompts import PromptEncoder
from pagoda.tokenizer.scheduler_state import StateReader
from pagoda.tokenizer.servicer import TokenizerServicer
from pagoda.tracing import tracing
from pagoda.v1.inference_pb2_grpc import add_InferenceServicer_to_server
from pagoda.v1.openai_pb2_grpc import add_OpenAIServicer_to_server
from pagoda.v1.tokenizer_pb2_grpc import add_TokenizerServicer_to_server

if TYPE_CHECKING:  # an optional package
    from opentelemetry.trace import Tracer

logger = logging.getLogger(__name__)

# Time for calls to write the error that ends them, in seconds.
_LAST_WORDS_S = 1.0

SERVICES = ("pagoda.v1.Tokenizer", "pagoda.v1.Inference", "pagoda.v1.OpenAI")


def main(options: TokenizerOptions) -> int:
    """Runs the service until SIGINT or SIGTERM; the process's exit status."""
    configure_logging(options.name, options.log_level)
    try:
        encoder = load_encoder(options)
        key = read_cell_key(options.cell_key_file) if options.cell_key_file else None
    except (OSError, ValueError) as error:
        logger.error("%s", error)
        return 2
    try:
        with tracing(options.name, options.otlp_traces_endpoint) as tracer:
            return uvloop.run(_serve(options, encoder, key, tracer))
    except (OSError, ValueError) as error:
        logger.error("%s", error)
        return 1


def load_encoder(options: TokenizerOptions) -> PromptEncoder:
    """Reads the checkpoint's tokenizer and chat template. Raises OSError or ValueError, naming what is wrong."""
    if options.model is None:
        raise ValueError("no model given: name a checkpoint folder with a tokenizer.json")
    return PromptEncoder(TextTokenizer.load(options.model), _chat_template(options.chat_template))


def _chat_template(given: str | None) -> str | None:
    """The template's source: a text with Jinja in it is one itself, any other names a file."""
    if given is None or "{" in given:
        return given
    return Path(given).read_text(encoding="utf-8")


async def _serve(options: TokenizerOptions, encoder: PromptEncoder, key: KeyPair | None, tracer: Tracer | None) -> int:
    service = TokenizerService(options, encoder, key, tracer)
    await service.start()
    stopped = asyncio.create_task(stop_event().wait())
    ended, _ = await asyncio.wait([stopped, *service.tasks], return_when=asyncio.FIRST_COMPLETED)
    for task in ended - {stopped}:
        logger.critical("the service cannot go on", exc_info=task.exception())
    await service.stop()
    return 0 if stopped in ended else 1


class TokenizerService:
    """The service within a running event loop.

    tasks: what it does in the background; none of them ends before `stop` unless something is broken
    """

    def __init__(
        self,
        options: TokenizerOptions,
        encoder: PromptEncoder,
        key: KeyPair | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        assert options.model is not None
        root = options.model.resolve().name
        model = ServedModel(options.served_model_name or (root,), root)
        self._drain_s = options.drain_s
        self._cell = Cell(options.scheduler, options.name, recovery_s=options.recovery_s, key=key)
        self._scheduler = StateReader(options.scheduler)
        self._engine = Engine(encoder, self._cell, Metrics(model.names[0]), options.max_num_requests, tracer)
        self._server = ServiceServer(options.listen, SERVICES)
        add_TokenizerServicer_to_server(TokenizerServicer(encoder, self._cell), self._server.grpc)  # type: ignore[no-untyped-call]
        add_InferenceServicer_to_server(InferenceServicer(self._engine, model), self._server.grpc)  # type: ignore[no-untyped-call]
        openai = OpenAIServicer(self._engine, model, self._scheduler, options.response_role)
        add_OpenAIServicer_to_server(openai, self._server.grpc)  # type: ignore[no-untyped-call]
        self._ready = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def address(self) -> str:
        """Where it listens, once started."""
        return self._server.address

    async def start(self) -> None:
        """Opens the port and joins the cell; health follows the cell's. Raises OSError for an address in use."""
        await self._server.start()
        self.tasks = [asyncio.create_task(self._cell.run()), asyncio.create_task(self._follow_health())]

    async def until_ready(self) -> None:
        """Waits for an executor in the cell."""
        await self._ready.wait()

    async def stop(self) -> None:
        """Refuses new calls, gives running ones `drain_s` to end and then ends them with an error, leaves the cell."""
        cell, health = self.tasks
        health.cancel()
        stopping = asyncio.create_task(self._server.stop(self._drain_s + _LAST_WORDS_S))
        await asyncio.wait([stopping], timeout=self._drain_s)
        # A call that gRPC cuts off would look like the normal end of an event stream.
        self._cell.end_all(UnavailableError("the service is shutting down; send the request again"))
        await stopping
        cell.cancel()
        await asyncio.gather(cell, health, return_exceptions=True)
        await self._scheduler.close()

    async def _follow_health(self) -> None:
        async for status in self._cell.statuses():
            await self._server.set_serving(status.ready)
            if status.ready:
                self._ready.set()
            else:
                self._ready.clear()
