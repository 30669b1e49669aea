"""Fixtures of the end-to-end tests: real processes, real sockets."""

from __future__ import annotations

import sys
from pathlib import Path

# The helpers of these tests (fake_tokenizer, processes ...) stand beside them.
sys.path.insert(0, str(Path(__file__).parent))

from gateway_fixtures import fake, gateway, socket_folder, start_fake, start_gateway
from stack_fixtures import serve, server, shared_server

__all__ = ["fake", "gateway", "serve", "server", "shared_server", "socket_folder", "start_fake", "start_gateway"]
