"""Client channels to other Pagoda services."""

from __future__ import annotations

import grpc

# Largest message in either direction: prompts of millions of tokens pass, floods do not.
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

CHANNEL_OPTIONS = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
]

# A peer that restarts is found again within a second instead of gRPC's default of up to two minutes.
_RECONNECT_OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Channels to one address do not share a connection, and with it its back-off state.
    ("grpc.use_local_subchannel_pool", 1),
]


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to "host:port" or "unix:/path"."""
    return grpc.aio.insecure_channel(address, options=[*CHANNEL_OPTIONS, *_RECONNECT_OPTIONS])


def open_blocking_channel(address: str) -> grpc.Channel:
    """The same for threads without an event loop."""
    return grpc.insecure_channel(address, options=[*CHANNEL_OPTIONS, *_RECONNECT_OPTIONS])
