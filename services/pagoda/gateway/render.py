"""Options to Envoy's configuration. Reads the package's own data; opens no other file and no socket."""

from __future__ import annotations

import base64
import hashlib
import json
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from pagoda.gateway.address import Address
from pagoda.gateway.config import GatewayOptions
from pagoda.gateway.local_replies import local_replies
from pagoda.gateway.transcoding import SERVICE, descriptor_set, http_paths

# Largest answer of a transcoded method that is not streamed, in bytes; the services' own limit on messages.
MAX_RESPONSE_BYTES = 64 * 1024 * 1024

# What anybody may ask, with API keys on as well: what load balancers, probes and Prometheus ask.
OPEN_PATHS = (
    "/health",
    "/ping",
    "/version",
    "/metrics",
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
)


def render(options: GatewayOptions, admin: Address) -> str:
    """The whole configuration as YAML: no other file is needed to run Envoy on it.

    admin: where Envoy's admin interface listens; `options.admin` is not read
    """
    descriptors = descriptor_set()
    tokenizers = [Address.parse(each) for each in options.tokenizers]
    # Every expression of the template passes through _yaml, so no value can break out of its place.
    environment = Environment(
        undefined=StrictUndefined, finalize=_yaml, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(_read("envoy.yaml.j2")).render(
        options=options,
        listen=options.listen,
        admin=admin,
        tokenizers=tokenizers,
        discovery="STRICT_DNS" if any(each.is_name for each in tokenizers) else "STATIC",
        clients={key: client_id(key) for key in options.api_key},
        origins=[each for each in options.allowed_origins if each],
        open_paths=OPEN_PATHS,
        local_replies=local_replies(http_paths(descriptors), options.max_body_bytes),
        service=SERVICE,
        descriptors=base64.b64encode(descriptors.SerializeToString(deterministic=True)).decode(),
        max_response_bytes=MAX_RESPONSE_BYTES,
        response_lua=_read("response.lua"),
        endpoint=_endpoint,
        seconds=_seconds,
    )


def client_id(api_key: str) -> str:
    """What the services call the bearer of `api_key`: the same for the same key, and no help in finding it."""
    return f"key-{hashlib.sha256(api_key.encode()).hexdigest()[:16]}"


def _read(name: str) -> str:
    return files("pagoda.gateway").joinpath(name).read_text()


def _yaml(value: Any) -> str:
    """A value as JSON, which is YAML as well."""
    return json.dumps(value, ensure_ascii=False)


def _endpoint(address: Address) -> dict[str, Any]:
    """An `envoy.config.core.v3.Address`."""
    if address.is_unix:
        return {"pipe": {"path": address.path}}
    return {"socket_address": {"address": address.host, "port_value": address.port}}


def _seconds(value: float) -> str:
    """A `google.protobuf.Duration` as JSON spells it."""
    return f"{value:.3f}".rstrip("0").rstrip(".") + "s"
