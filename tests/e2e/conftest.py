"""Fixtures of the end-to-end tests: real processes, real sockets."""

from __future__ import annotations

import sys
from pathlib import Path

# The helpers of these tests (fake_tokenizer, processes ...) stand beside them.
sys.path.insert(0, str(Path(__file__).parent))

pytest_plugins = ["gateway_fixtures", "stack_fixtures"]
