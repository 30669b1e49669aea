"""Caches for both ends, and ends that are closed whatever happens."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

# The helpers of these tests stand beside them.
sys.path.insert(0, str(Path(__file__).parent))

from transfer_ends import LAYOUT, NIXL, empty_cache, full_cache, shared_sender

from pagoda.executor.transfer.receiver import Receiver
from pagoda.executor.transfer.sender import Sender


@pytest.fixture
def ends() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def make_receiver(ends: ExitStack) -> Callable[..., Receiver]:
    def make(cache: Any = None, **options: Any) -> Receiver:
        return ends.enter_context(
            closing(Receiver(empty_cache() if cache is None else cache, 2, LAYOUT, nixl=NIXL, **options))
        )

    return make


@pytest.fixture
def make_sender(ends: ExitStack) -> Callable[..., Sender]:
    def make(cache: Any = None, layout: Any = LAYOUT, **options: Any) -> Sender:
        return ends.enter_context(closing(shared_sender(full_cache() if cache is None else cache, layout, **options)))

    return make
