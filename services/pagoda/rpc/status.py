"""The one map between domain errors and `google.rpc.Status` with `ErrorInfo`."""

from __future__ import annotations

import math

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from pagoda.errors import Code, PagodaError, ResourceExhaustedError
from pagoda.v1 import common_pb2

DOMAIN = "pagoda"

# Longest message that fits the 8 KiB that gRPC peers accept as trailing metadata, details included.
_MAX_MESSAGE_CHARS = 2000


def to_status(error: PagodaError) -> status_pb2.Status:
    """`error` as a status whose details are an ErrorInfo (reason, domain, param) and, where known, a RetryInfo."""
    metadata = {"param": error.param} if error.param else {}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    details = [_pack(info)]
    if isinstance(error, ResourceExhaustedError):
        delay = Duration()
        delay.FromMilliseconds(math.ceil(error.retry_after_s * 1000))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    return status_pb2.Status(code=int(error.code), message=error.message[:_MAX_MESSAGE_CHARS], details=details)


def from_rpc_error(error: grpc.RpcError) -> PagodaError:
    """The domain error that a Pagoda server sent, or the nearest one for what gRPC itself reports."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    if status is None:
        # Blocking and aio calls raise errors of different types with the same methods.
        has_status = isinstance(error, grpc.Call | grpc.aio.AioRpcError)
        code_name = error.code().name if has_status else "UNAVAILABLE"
        code = Code.__members__.get(code_name, Code.INTERNAL)
        details = error.details() if has_status else str(error)
        return _error_of_code(code, code_name, details or code_name, param=None, retry_after_s=0.0)
    reason, param, retry_after_s = code_reason(status), None, 0.0
    for detail in status.details:
        info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
        if detail.Unpack(info):
            reason, param = info.reason, info.metadata.get("param")
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToMilliseconds() / 1000
    return _error_of_code(Code(status.code), reason, status.message, param, retry_after_s)


def code_reason(status: status_pb2.Status) -> str:
    """The reason of a status that carries no ErrorInfo: its code's name."""
    return Code(status.code).name


def to_message(error: PagodaError) -> common_pb2.Error:
    """`error` as the message that travels inside other messages."""
    retry_after_s = error.retry_after_s if isinstance(error, ResourceExhaustedError) else 0.0
    return common_pb2.Error(
        code=int(error.code),
        reason=error.reason,
        message=error.message,
        param=error.param or "",
        retry_after_s=retry_after_s,
    )


def from_message(message: common_pb2.Error) -> PagodaError:
    """The inverse of `to_message`."""
    return _error_of_code(
        Code(message.code), message.reason, message.message, message.param or None, message.retry_after_s
    )


def _error_of_code(code: Code, reason: str, message: str, param: str | None, retry_after_s: float) -> PagodaError:
    if code is Code.RESOURCE_EXHAUSTED:
        return ResourceExhaustedError(message, reason=reason, param=param, retry_after_s=retry_after_s)
    error = PagodaError(message, reason=reason, param=param)
    error.code = code
    return error


def _pack(message: error_details_pb2.ErrorInfo | error_details_pb2.RetryInfo) -> any_pb2.Any:
    detail = any_pb2.Any()
    detail.Pack(message)
    return detail
