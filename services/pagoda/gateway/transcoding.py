"""What the gateway transcodes: the descriptor set of `pagoda.v1`, and the HTTP paths that it binds."""

from __future__ import annotations

import re
from collections import defaultdict
from importlib.resources import files

from google.api import annotations_pb2, http_pb2
from google.protobuf import any_pb2, descriptor_pb2, duration_pb2
from google.protobuf.descriptor import FileDescriptor
from google.rpc import error_details_pb2

SERVICE = "pagoda.v1.OpenAI"

# Details of a gRPC error (`google.rpc.ErrorInfo`) become JSON only if the descriptor set knows their types.
_ERROR_DETAILS: tuple[FileDescriptor, ...] = (
    any_pb2.DESCRIPTOR,
    duration_pb2.DESCRIPTOR,
    error_details_pb2.DESCRIPTOR,
)


def descriptor_set() -> descriptor_pb2.FileDescriptorSet:
    """Every message and service of `pagoda.v1`, and the details that its errors carry."""
    generated = files("pagoda.v1").joinpath("descriptors.binpb").read_bytes()
    descriptors = descriptor_pb2.FileDescriptorSet.FromString(generated)
    known = {file.name for file in descriptors.file}
    for extra in _ERROR_DETAILS:
        if extra.name not in known:
            extra.CopyToProto(descriptors.file.add())
    return descriptors


def http_paths(descriptors: descriptor_pb2.FileDescriptorSet) -> dict[str, str]:
    """HTTP method -> regular expression of the paths that the service binds for it (without a query)."""
    patterns: defaultdict[str, list[str]] = defaultdict(list)
    for rule in _http_rules(descriptors):
        for binding in (rule, *rule.additional_bindings):
            method = binding.WhichOneof("pattern")
            if method in ("get", "put", "post", "delete", "patch"):
                patterns[method.upper()].append(_path_regex(getattr(binding, method)))
    return {method: "|".join(sorted(paths)) for method, paths in sorted(patterns.items())}


def _http_rules(descriptors: descriptor_pb2.FileDescriptorSet) -> list[http_pb2.HttpRule]:
    return [
        method.options.Extensions[annotations_pb2.http]
        for file in descriptors.file
        for service in file.service
        if f"{file.package}.{service.name}" == SERVICE
        for method in service.method
    ]


def _path_regex(template: str) -> str:
    """A path template of google.api.http ("/v1/models/{model=**}") as a regular expression."""
    return "".join(
        (".+" if part.endswith("=**}") else "[^/]+") if part.startswith("{") else re.escape(part)
        for part in re.split(r"(\{[^}]*\})", template)
    )
