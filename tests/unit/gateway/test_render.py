"""The configuration that the gateway renders: its structure, and that Envoy takes it."""

from __future__ import annotations

import base64
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool

from pagoda.gateway.address import Address
from pagoda.gateway.config import GatewayOptions
from pagoda.gateway.process import find_envoy
from pagoda.gateway.render import OPEN_PATHS, client_id, render
from pagoda.gateway.transcoding import descriptor_set, http_paths

NASTY = """x"'{}[]%&*!|>\\:#,@`$(id)"""

OPTIONS = {
    "defaults": GatewayOptions(),
    "names": GatewayOptions(tokenizers=("tokenizer.svc:50051", "10.0.0.1:1"), host="0.0.0.0", log_level="debug"),
    "sockets": GatewayOptions(tokenizers=("unix:/run/a b.sock", "127.0.0.1:1"), access_log="/dev/stdout"),
    "localhost": GatewayOptions(host="localhost"),
    "ipv6": GatewayOptions(tokenizers=("[::1]:50051",), host="::"),
    "keys": GatewayOptions(api_key=(NASTY.replace(",", ""), "second", "second")),
    "nasty": GatewayOptions(access_log=f"/tmp/{NASTY}", allowed_origins=(NASTY, "http://app.test", "*")),
    "no origins, no limits": GatewayOptions(allowed_origins=("",), stream_idle_timeout_s=0, drain_s=0),
}


def rendered(options: GatewayOptions) -> Any:
    return yaml.safe_load(render(options, Address(path="/run/admin.sock")))


def connection_manager(config: Any) -> Any:
    (listener,) = config["static_resources"]["listeners"]
    return listener["filter_chains"][0]["filters"][0]["typed_config"]


def http_filters(config: Any) -> dict[str, Any]:
    return {each["name"]: each["typed_config"] for each in connection_manager(config)["http_filters"]}


@pytest.mark.parametrize("name", OPTIONS)
def test_envoy_takes_it(name: str, tmp_path: Path) -> None:
    config = tmp_path / "envoy.yaml"
    config.write_text(render(OPTIONS[name], Address(path="/run/admin.sock")))
    command = [str(find_envoy()), "--mode", "validate", "--config-path", str(config), "--log-level", "error"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_values_cannot_leave_their_place() -> None:
    options = GatewayOptions(
        api_key=(NASTY.replace(",", ""),), access_log=f"/tmp/{NASTY}", allowed_origins=(NASTY,), port=8123
    )
    config = rendered(options)
    plain = rendered(GatewayOptions(api_key=("k",), access_log="l", allowed_origins=("o",), port=8123))
    (credential,) = http_filters(config)["api_keys"]["credentials"]
    assert credential == {"key": options.api_key[0], "client": client_id(options.api_key[0])}
    assert connection_manager(config)["access_log"][0]["typed_config"]["path"] == options.access_log
    # With the values put back, nothing else differs.
    credential.update(http_filters(plain)["api_keys"]["credentials"][0])
    connection_manager(config)["access_log"][0]["typed_config"]["path"] = "l"
    (host,) = connection_manager(config)["route_config"]["virtual_hosts"]
    host["typed_per_filter_config"]["envoy.filters.http.cors"]["allow_origin_string_match"] = [{"exact": "o"}]
    assert config == plain


def test_addresses_of_tokenizers() -> None:
    def cluster(*tokenizers: str) -> tuple[str, list[Any]]:
        (each,) = rendered(GatewayOptions(tokenizers=tokenizers))["static_resources"]["clusters"]
        endpoints = each["load_assignment"]["endpoints"][0]["lb_endpoints"]
        return each["type"], [endpoint["endpoint"]["address"] for endpoint in endpoints]

    tcp = {"socket_address": {"address": "10.0.0.1", "port_value": 5}}
    assert cluster("10.0.0.1:5", "unix:/a") == ("STATIC", [tcp, {"pipe": {"path": "/a"}}])
    assert cluster("10.0.0.1:5", "tokenizer:5")[0] == "STRICT_DNS"


def test_only_open_paths_need_no_key() -> None:
    config = rendered(GatewayOptions(api_key=("k",)))
    (host,) = connection_manager(config)["route_config"]["virtual_hosts"]
    *open_routes, rest = host["routes"]
    # Exact paths: a prefix or an expression might match what a later filter rewrites.
    assert [each["match"] for each in open_routes] == [{"path": path} for path in OPEN_PATHS]
    assert all(each["typed_per_filter_config"]["api_keys"]["disabled"] is True for each in open_routes)
    assert rest["match"] == {"prefix": "/"}
    assert "typed_per_filter_config" not in rest
    names = list(http_filters(config))
    assert names.index("api_keys") < names.index("envoy.filters.http.grpc_json_transcoder")


def test_no_key_filter_without_keys() -> None:
    assert "api_keys" not in http_filters(rendered(GatewayOptions()))


def test_client_ids_are_stable_and_do_not_hold_the_key() -> None:
    assert client_id("secret") == client_id("secret") != client_id("secret2")
    assert "secret" not in client_id("secret")


def test_descriptor_set_is_complete() -> None:
    transcoder = http_filters(rendered(GatewayOptions()))["envoy.filters.http.grpc_json_transcoder"]
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(base64.b64decode(transcoder["proto_descriptor_bin"]))
    pool = descriptor_pool.DescriptorPool()
    for file in descriptors.file:
        pool.Add(file)
    assert pool.FindServiceByName("pagoda.v1.OpenAI").methods_by_name["CreateChatCompletion"]
    assert pool.FindMessageTypeByName("google.rpc.ErrorInfo")


def test_http_paths_come_from_the_contract() -> None:
    paths = http_paths(descriptor_set())
    assert set(paths) == {"GET", "POST"}
    for path in ("/health", "/ping", "/metrics", "/v1/models", "/v1/models/a/b"):
        assert re.fullmatch(paths["GET"], path), path
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/v1/tokenize"):
        assert re.fullmatch(paths["POST"], path), path
        assert not re.fullmatch(paths["GET"], path), path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"port": 0}, "port"),
        ({"port": 70000}, "65535"),
        ({"host": "example.org"}, "must be an IP address"),
        ({"tokenizers": ()}, "at least one"),
        ({"tokenizers": ("nowhere",)}, "not an address"),
        ({"tokenizers": ("name:1", "unix:/a")}, "mixes"),
        ({"api_key": ("with space",)}, "API key"),
        ({"api_key": ("",)}, "API key"),
        ({"admin": "0.0.0.0:9901"}, "loopback"),
        ({"max_body_bytes": 0}, "at least 1"),
        ({"drain_s": -1}, "at least 0"),
    ],
)
def test_wrong_options(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GatewayOptions(**fields)
