"""The tokenizer is trained once for all tests of the bundled model (a third of a second)."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer

from pagoda.bundled.tokenizer import train_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(seed=0)
