"""The service in this process, a scripted scheduler, and a client of both APIs."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.trace import Tracer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pagoda.text import TextTokenizer
from pagoda.tokenizer.config import TokenizerOptions
from pagoda.tokenizer.server import TokenizerService, load_encoder

# The helpers of these tests stand beside them.
sys.path.insert(0, str(Path(__file__).parent))

from http_client import HttpClient
from scripted_scheduler import ScriptedScheduler, prompt_of

StartService = Callable[..., Awaitable[TokenizerService]]
StartClient = Callable[..., Awaitable[HttpClient]]

TEMPLATE = (
    "{% for tool in tools or [] %}<tool>{{ tool.function.name }}</tool>{% endfor %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer with few merges, so that most words are several tokens."""
    folder = tmp_path_factory.mktemp("models") / "tiny-chat"
    folder.mkdir()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["the river and the stone and the lamp"] * 20, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE, "model_max_length": 256}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def tokenizer(checkpoint: Path) -> TextTokenizer:
    return TextTokenizer.load(checkpoint)


@pytest.fixture
async def scheduler(tokenizer: TextTokenizer) -> AsyncIterator[ScriptedScheduler]:
    """Answers every prompt with "Echo: " and the prompt, then its end-of-sequence token."""
    (eos,) = tokenizer.eos_token_ids
    head = tokenizer.encode("Echo: ")
    scheduler = ScriptedScheduler(lambda request: [*head, *prompt_of(request), eos], eos)
    await scheduler.start()
    yield scheduler
    await scheduler.stop()


@pytest.fixture
async def start_service(checkpoint: Path, scheduler: ScriptedScheduler) -> AsyncIterator[StartService]:
    """Starts a service with the given options, and waits until it is ready."""
    async with AsyncExitStack() as stack:

        async def start(tracer: Tracer | None = None, **changes: Any) -> TokenizerService:
            options = TokenizerOptions(
                model=checkpoint,
                listen="127.0.0.1:0",
                scheduler=scheduler.address,
                served_model_name=("tiny", "tiny/alias"),
                drain_s=0.0,
            )
            options = dataclasses.replace(options, **changes)
            service = TokenizerService(options, load_encoder(options), tracer=tracer)
            await service.start()
            stack.push_async_callback(service.stop)
            await service.until_ready()
            return service

        yield start


@pytest.fixture
async def start_client(start_service: StartService) -> AsyncIterator[StartClient]:
    """The same, and a client of it."""
    async with AsyncExitStack() as stack:

        async def start(**changes: Any) -> HttpClient:
            service = await start_service(**changes)
            return await stack.enter_async_context(HttpClient(service.address))

        yield start


@pytest.fixture
async def client(start_client: StartClient) -> HttpClient:
    return await start_client()
