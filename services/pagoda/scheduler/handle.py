"""A request of a caller in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType

from pagoda.scheduler.core.request import End, Request


class Handle:
    """Leaving its block aborts the request, if it has not ended."""

    def __init__(self, request: Request, abort: Callable[[Request], None]) -> None:
        self.request = request
        self._abort = abort
        self._token_ids: list[int] = []
        self._news = asyncio.Event()

    async def __aenter__(self) -> Handle:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abort(self.request)

    def push(self, token_id: int) -> None:
        self._token_ids.append(token_id)
        self._news.set()

    def wake(self) -> None:
        """The request has ended."""
        self._news.set()

    async def next(self) -> tuple[list[int], End | None]:
        """Waits for news: (the tokens since the last call, how the request ended or None)."""
        await self._news.wait()
        self._news.clear()
        token_ids, self._token_ids = self._token_ids, []
        return token_ids, self.request.end
