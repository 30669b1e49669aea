"""Models in memory, and for each of them the traffic with what its requests get alone."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pagoda.bundled import CHAT_MODEL

# The helpers of these tests (real_cell, traffic) stand beside them.
sys.path.insert(0, str(Path(__file__).parent))

from real_cell import Served
from traffic import MAX_MODEL_LEN, Traffic, notes_text, random_text


@pytest.fixture(scope="session")
def served(reference: Callable[[str], Any]) -> Callable[[str, str], Served]:
    """The model `name` in a dtype, and behind a slash its cache's if that is another: "chat" is the bundled one, the
    others are tiny random checkpoints."""
    loaded: dict[tuple[str, str], Served] = {}

    def get(name: str, dtype: str) -> Served:
        if (name, dtype) not in loaded:
            folder = CHAT_MODEL if name == "chat" else reference(name).folder
            loaded[name, dtype] = Served.load(folder, dtype, MAX_MODEL_LEN)
        return loaded[name, dtype]

    return get


@pytest.fixture(scope="session")
def traffic(served: Callable[[str, str], Served]) -> Callable[[str, str], Traffic]:
    """The requests for a model, and their outcomes."""
    made: dict[tuple[str, str], Traffic] = {}

    def get(name: str, dtype: str) -> Traffic:
        if (name, dtype) not in made:
            model = served(name, dtype)
            text = notes_text(CHAT_MODEL) if name == "chat" else random_text(model.vocab_size)
            made[name, dtype] = Traffic(model, text)
        return made[name, dtype]

    return get
