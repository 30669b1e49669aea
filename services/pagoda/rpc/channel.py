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
    # Not a pause, whatever it is called: what one attempt may take at least, over slow networks, too.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Channels to one address do not share a connection, and with it its back-off state.
    ("grpc.use_local_subchannel_pool", 1),
]

# A peer that is frozen, or behind a broken network, is noticed within 15 seconds while a call is open.
_KEEPALIVE_OPTIONS = [
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),  # what gRPC core since 1.60 goes by; its default is a minute
    ("grpc.http2.max_pings_without_data", 0),
]
# What a server must allow for that; by default it takes such pings for an attack.
SERVER_KEEPALIVE_OPTIONS = [("grpc.http2.min_ping_interval_without_data_ms", 5_000)]


def open_channel(address: str) -> grpc.aio.Channel:
    """A channel to "host:port" or "unix:/path"."""
    return grpc.aio.insecure_channel(address, options=[*CHANNEL_OPTIONS, *_RECONNECT_OPTIONS, *_KEEPALIVE_OPTIONS])


def open_blocking_channel(address: str) -> grpc.Channel:
    """The same for threads without an event loop."""
    return grpc.insecure_channel(address, options=[*CHANNEL_OPTIONS, *_RECONNECT_OPTIONS, *_KEEPALIVE_OPTIONS])
