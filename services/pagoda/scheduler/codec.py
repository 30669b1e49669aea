"""Protobuf messages <-> the core's own objects. Nothing here decides anything."""

from __future__ import annotations

import re
import secrets
from array import array
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from google.protobuf.message import DecodeError

from pagoda.errors import InvalidArgumentError
from pagoda.rpc.arrays import pack_u32, pack_u64, unpack_u32, unpack_u64
from pagoda.rpc.status import to_message
from pagoda.scheduler.core.hashes import MediaItem
from pagoda.scheduler.core.plan import StepPlan, StepResult
from pagoda.scheduler.core.request import FinishReason, Request, RequestKey, Sampling
from pagoda.scheduler.core.scheduler import Outputs
from pagoda.scheduler.core.spec import ExecutorRole, LaneSpec, ModelSpec
from pagoda.v1 import common_pb2, scheduler_pb2, step_pb2


class MalformedMessageError(InvalidArgumentError):
    """A peer sent bytes that are not the message they should be."""

    reason = "MALFORMED_MESSAGE"


class ExecutorNews(NamedTuple):
    """What an executor says at once."""

    result: StepResult | None = None
    arrived: tuple[tuple[int, int], ...] = ()
    """(number of a grant, how many of its blocks have come)."""
    failed: tuple[tuple[int, str], ...] = ()
    """(number of the grant that pushes named, why they do not arrive)."""


NO_NEWS = ExecutorNews()
"""The first message of a session."""

_WORD = re.compile("[a-z_]{1,24}")


def encode_plan(
    plan: StepPlan, endpoints: Mapping[str, Sequence[str]] | None = None, grant_timeout_s: float = 0.0
) -> bytes:
    """endpoints, grant_timeout_s: where each lane is pushed to, and how long; for cells with several lanes"""
    message = step_pb2.StepPlan(step=plan.step)
    # Most plans have nothing to say.
    for name in ("ended_rows", "block_rows", "block_positions", "block_ids", "chunk_rows", "chunk_num_tokens"):
        if values := getattr(plan, name):
            setattr(message, name, pack_u32(values))
    for name in ("offloads", "copies", "loads"):
        copies = getattr(plan, name)
        if copies.sources:
            field = getattr(message, name)
            field.sources, field.targets = pack_u32(copies.sources), pack_u32(copies.targets)
    if plan.withdrawn:
        message.withdrawn_grants = pack_u64(plan.withdrawn)
    for grant in plan.grants:
        message.grants.add(number=grant.number, block_ids=pack_u32(grant.block_ids), timeout_s=grant_timeout_s)
    for push in plan.pushes:
        message.pushes.add(
            number=push.number,
            # None where the executor has just left: then the push fails, as it should.
            endpoints=endpoints.get(push.target, ()) if endpoints else (),
            first_position=push.first_position,
            block_ids=pack_u32(push.block_ids),
        )
    for start in plan.started_rows:
        message.started_rows.add(
            row=start.row,
            token_ids=pack_u32(start.token_ids),
            num_computed_tokens=start.num_computed_tokens,
            block_ids=pack_u32(start.block_ids),
            sampling=_encode_row_sampling(start.sampling),
        )
    return message.SerializeToString()


def decode_executor_message(data: bytes) -> ExecutorNews:
    """Raises MalformedMessageError."""
    try:
        message = step_pb2.ExecutorMessage.FromString(data)
        result = None
        if message.HasField("result"):
            rows, token_ids = unpack_u32(message.result.rows), unpack_u32(message.result.token_ids)
            result = StepResult(message.result.step, rows, token_ids, message.result.forward_ns)
        if not (message.arrived_grants or message.failed_pushes):
            return ExecutorNews(result)
        arrived = zip(
            unpack_u64(message.arrived_grants).tolist(), unpack_u32(message.arrived_counts).tolist(), strict=True
        )
        failed = ((each.number, failure_word(each.reason)) for each in message.failed_pushes)
        return ExecutorNews(result, tuple(arrived), tuple(failed))
    except (DecodeError, ValueError) as error:
        raise MalformedMessageError(f"not an ExecutorMessage: {error}") from error


def failure_word(reason: str) -> str:
    """An executor's reason for a failure, as it may stand in metrics."""
    return reason if _WORD.fullmatch(reason) else "other"


def decode_tokenizer_message(data: bytes, origin: str) -> tuple[list[Request], list[RequestKey]]:
    """(new requests, keys of aborted ones) of the tokenizer `origin`. Raises MalformedMessageError."""
    try:
        message = step_pb2.TokenizerMessage.FromString(data)
        requests = [_decode_request(each, origin) for each in message.requests]
        aborts = [RequestKey(origin, key) for key in unpack_u64(message.aborts).tolist()]
    except (DecodeError, ValueError) as error:
        raise MalformedMessageError(f"not a TokenizerMessage: {error}") from error
    return requests, aborts


def encode_token_batch(outputs: Outputs) -> bytes:
    """outputs: those of one tokenizer's requests."""
    message = step_pb2.TokenBatch()
    if outputs.tokens:
        # Nearly always one lane and step: joining is then a copy.
        message.keys = b"".join([pack_u64(run.keys) for run in outputs.tokens])
        message.token_ids = b"".join([pack_u32(run.token_ids) for run in outputs.tokens])
        message.num_tokens = pack_u32(np.ones(len(message.token_ids) // 4, np.uint32))
    for request in outputs.admitted:
        message.admitted.add(key=request.key.number, num_cached_tokens=request.num_cached_tokens)
    for request in outputs.ended:
        end = request.end
        assert end is not None
        message.finished.add(
            key=request.key.number,
            reason=encode_finish_reason(end.reason),
            stop_token_id=end.stop_token_id,
            error=to_message(end.error) if end.error else None,
        )
    return message.SerializeToString()


def encode_finish_reason(reason: FinishReason) -> common_pb2.FinishReason:
    return cast(common_pb2.FinishReason, int(reason))


def decode_generate(message: scheduler_pb2.SchedulerGenerateRequest, key: RequestKey) -> Request:
    return Request(
        key,
        message.prompt_token_ids,
        _decode_sampling(message.sampling),
        request_id=message.request_id or f"scheduler-{key.number}",
        priority=message.priority,
        cache_salt=message.cache_salt,
        client_id=message.client_id,
        timeout_s=message.timeout_s if message.HasField("timeout_s") else None,
        traceparent=message.traceparent,
    )


def encode_usage(request: Request) -> common_pb2.Usage:
    return common_pb2.Usage(
        prompt_tokens=request.num_prompt_tokens,
        completion_tokens=request.num_output_tokens,
        cached_tokens=request.num_cached_tokens or 0,
    )


def decode_lane(message: scheduler_pb2.ExecutorRegistration) -> LaneSpec:
    """Raises InvalidArgumentError for a role that this scheduler does not know."""
    return LaneSpec(
        name=message.name,
        role=decode_role(message.role),
        model=ModelSpec(
            fingerprint=message.model.fingerprint,
            model_type=message.model.model_type,
            max_model_len=message.model.max_model_len,
            vocab_size=message.model.vocab_size,
            eos_token_ids=frozenset(message.model.eos_token_ids),
            dtype=message.model.dtype,
            kv_dtype=message.kv_layout.dtype,
        ),
        block_size=message.kv_layout.block_size,
        num_blocks=message.kv_layout.num_blocks,
        max_num_seqs=message.max_num_seqs,
        max_num_batched_tokens=message.max_num_batched_tokens,
        receives=bool(message.transfer_endpoints),
        num_host_blocks=message.host_memory.num_blocks,
        swap_only=message.host_memory.swap_only,
    )


def decode_role(role: int) -> ExecutorRole:
    """Raises InvalidArgumentError for one that this scheduler does not know."""
    try:
        return ExecutorRole(role)
    except ValueError:
        raise InvalidArgumentError(f"unknown executor role {role}", param="role") from None


def encode_role(role: ExecutorRole) -> common_pb2.ExecutorRole:
    return cast(common_pb2.ExecutorRole, int(role))


def encode_model(model: ModelSpec) -> common_pb2.ModelInfo:
    return common_pb2.ModelInfo(
        fingerprint=model.fingerprint,
        model_type=model.model_type,
        max_model_len=model.max_model_len,
        vocab_size=model.vocab_size,
        eos_token_ids=sorted(model.eos_token_ids),
        dtype=model.dtype,
    )


def _decode_request(message: step_pb2.NewRequest, origin: str) -> Request:
    return Request(
        RequestKey(origin, message.key),
        array("I", message.token_ids),
        _decode_sampling(message.sampling),
        num_prompt_tokens=message.num_prompt_tokens,
        request_id=message.request_id,
        priority=message.priority,
        cache_salt=message.cache_salt,
        client_id=message.client_id,
        adapter=message.adapter,
        media=tuple(MediaItem(item.offset, item.length, item.content_hash) for item in message.media),
        forked_from=RequestKey(origin, message.forked_from) if message.HasField("forked_from") else None,
        timeout_s=message.timeout_s if message.HasField("timeout_s") else None,
        traceparent=message.traceparent,
    )


def _decode_sampling(message: common_pb2.SamplingParams) -> Sampling:
    """Absent fields become their defaults; an absent seed is chosen at random."""
    return Sampling(
        seed=message.seed if message.HasField("seed") else secrets.randbits(64),
        max_tokens=message.max_tokens if message.HasField("max_tokens") else None,
        temperature=message.temperature if message.HasField("temperature") else 1.0,
        top_p=message.top_p if message.HasField("top_p") else 1.0,
        top_k=message.top_k,
        min_p=message.min_p,
        stop_token_ids=frozenset(message.stop_token_ids),
        ignore_eos=message.ignore_eos,
        min_tokens=message.min_tokens,
    )


def _encode_row_sampling(sampling: Sampling) -> step_pb2.RowSampling:
    return step_pb2.RowSampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=max(sampling.top_k, 0),
        min_p=sampling.min_p,
        seed=sampling.seed,
    )
