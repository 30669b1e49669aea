"""Names of addresses that mean the same everywhere."""

from __future__ import annotations

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Nobody on another host reaches them."""

WILDCARDS = ("*", "0.0.0.0", "::")
"""Every address of this host: to listen on, and not to connect to."""
