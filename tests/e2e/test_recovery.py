"""An executor or the scheduler dies under running streams, and the clients get the text that they would have got."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import openai
import pytest
from stack_fixtures import Serve

PROMPTS = ["Hello", "Copy these words: river lamp stone", "The code of Anna is 123.", "What is 47 + 85?"]
NUM_TOKENS = 120
# Tokens that each stream has before the kill: well into the decoding, and far from its end.
BEFORE_KILL = 20


def ask(model: str, prompt: str, temperature: float) -> dict[str, Any]:
    options = {"max_tokens": NUM_TOKENS, "temperature": temperature, "seed": 7, "extra_body": {"ignore_eos": True}}
    return {"model": model, "prompt": prompt, "stream": True} | options


class Streams:
    """The texts of all prompts, streamed at the same time; `underway` is set when each has BEFORE_KILL chunks."""

    def __init__(self, client: openai.AsyncOpenAI, model: str, temperature: float) -> None:
        self.underway = asyncio.Event()
        self._num_underway = 0
        self._asks = [ask(model, prompt, temperature) for prompt in PROMPTS]
        self._client = client

    async def run(self) -> list[str]:
        return await asyncio.gather(*(self._read(each) for each in self._asks))

    async def _read(self, request: dict[str, Any]) -> str:
        pieces: list[str] = []
        async for chunk in await self._client.completions.create(**request):
            pieces.append(chunk.choices[0].text)
            if len(pieces) == BEFORE_KILL:
                self._num_underway += 1
                if self._num_underway == len(self._asks):
                    self.underway.set()
        return "".join(pieces)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("victim", ["executor", "scheduler"])
async def test_streams_go_on_with_the_same_tokens(serve: Serve, victim: str, temperature: float) -> None:
    # Computed again in larger matrices, a key or value may differ in its last bits; in float32 that is far from
    # changing a token.
    server = await asyncio.to_thread(lambda: serve("--dtype", "float32").wait_until_ready())
    async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:
        undisturbed = await Streams(client, server.model, temperature).run()
        streams = Streams(client, server.model, temperature)
        disturbed = asyncio.create_task(streams.run())
        await streams.underway.wait()
        os.kill(server.services()[victim]["pid"], signal.SIGKILL)
        assert await disturbed == undisturbed
    assert server.services()[victim]["restarts"] == 1
    await asyncio.to_thread(server.assert_idle)
