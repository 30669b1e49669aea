"""What a request gets does not depend on who else is served."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import openai

STREAMS = 64


def requests(model: str) -> list[dict[str, Any]]:
    """64 greedy completions of mixed lengths: prompts of a few to several hundred tokens, 1 to 96 new ones."""
    rng = random.Random(64)
    words = "river lamp stone cloud paper green seven window letter bread".split()
    return [
        {
            "model": model,
            "prompt": " ".join(rng.choices(words, k=rng.choice([1, 5, 20, 80, 200]))),
            "max_tokens": rng.randint(1, 96),
            "temperature": 0,
            "extra_body": {"ignore_eos": rng.random() < 0.7},
        }
        for _ in range(STREAMS)
    ]


async def stream_text(client: openai.AsyncOpenAI, ask: dict[str, Any]) -> tuple[str, str | None]:
    text, reason = "", None
    async for chunk in await client.completions.create(stream=True, **ask):
        text += chunk.choices[0].text
        reason = chunk.choices[0].finish_reason or reason
    return text, reason


async def test_64_streams_get_exactly_what_each_gets_alone(server: Any) -> None:
    async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:
        asks = requests(server.model)
        together = await asyncio.gather(*(stream_text(client, ask) for ask in asks))
        alone = [await stream_text(client, ask) for ask in asks]
    assert together == alone
    assert {reason for _, reason in together} <= {"length", "stop"}
