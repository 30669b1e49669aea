from pagoda.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TokenizerMessage(_message.Message):
    __slots__ = ("requests", "aborts")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    ABORTS_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[NewRequest]
    aborts: bytes
    def __init__(self, requests: _Optional[_Iterable[_Union[NewRequest, _Mapping]]] = ..., aborts: _Optional[bytes] = ...) -> None: ...

class NewRequest(_message.Message):
    __slots__ = ("key", "request_id", "token_ids", "num_prompt_tokens", "sampling", "priority", "cache_salt", "client_id", "adapter", "media", "forked_from", "timeout_s", "traceparent")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    FORKED_FROM_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    key: int
    request_id: str
    token_ids: bytes
    num_prompt_tokens: int
    sampling: _common_pb2.SamplingParams
    priority: int
    cache_salt: bytes
    client_id: str
    adapter: str
    media: _containers.RepeatedCompositeFieldContainer[MediaItem]
    forked_from: int
    timeout_s: float
    traceparent: str
    def __init__(self, key: _Optional[int] = ..., request_id: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., num_prompt_tokens: _Optional[int] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., priority: _Optional[int] = ..., cache_salt: _Optional[bytes] = ..., client_id: _Optional[str] = ..., adapter: _Optional[str] = ..., media: _Optional[_Iterable[_Union[MediaItem, _Mapping]]] = ..., forked_from: _Optional[int] = ..., timeout_s: _Optional[float] = ..., traceparent: _Optional[str] = ...) -> None: ...

class MediaItem(_message.Message):
    __slots__ = ("offset", "length", "content_hash")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    CONTENT_HASH_FIELD_NUMBER: _ClassVar[int]
    offset: int
    length: int
    content_hash: bytes
    def __init__(self, offset: _Optional[int] = ..., length: _Optional[int] = ..., content_hash: _Optional[bytes] = ...) -> None: ...

class TokenBatch(_message.Message):
    __slots__ = ("keys", "num_tokens", "token_ids", "finished", "admitted")
    KEYS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    ADMITTED_FIELD_NUMBER: _ClassVar[int]
    keys: bytes
    num_tokens: bytes
    token_ids: bytes
    finished: _containers.RepeatedCompositeFieldContainer[FinishedRequest]
    admitted: _containers.RepeatedCompositeFieldContainer[AdmittedRequest]
    def __init__(self, keys: _Optional[bytes] = ..., num_tokens: _Optional[bytes] = ..., token_ids: _Optional[bytes] = ..., finished: _Optional[_Iterable[_Union[FinishedRequest, _Mapping]]] = ..., admitted: _Optional[_Iterable[_Union[AdmittedRequest, _Mapping]]] = ...) -> None: ...

class AdmittedRequest(_message.Message):
    __slots__ = ("key", "num_cached_tokens")
    KEY_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    key: int
    num_cached_tokens: int
    def __init__(self, key: _Optional[int] = ..., num_cached_tokens: _Optional[int] = ...) -> None: ...

class FinishedRequest(_message.Message):
    __slots__ = ("key", "reason", "stop_token_id", "error")
    KEY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_ID_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    key: int
    reason: _common_pb2.FinishReason
    stop_token_id: int
    error: _common_pb2.Error
    def __init__(self, key: _Optional[int] = ..., reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., stop_token_id: _Optional[int] = ..., error: _Optional[_Union[_common_pb2.Error, _Mapping]] = ...) -> None: ...

class ExecutorMessage(_message.Message):
    __slots__ = ("result", "arrived_grants", "arrived_counts", "failed_pushes")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_GRANTS_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_COUNTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_PUSHES_FIELD_NUMBER: _ClassVar[int]
    result: StepResult
    arrived_grants: bytes
    arrived_counts: bytes
    failed_pushes: _containers.RepeatedCompositeFieldContainer[FailedPush]
    def __init__(self, result: _Optional[_Union[StepResult, _Mapping]] = ..., arrived_grants: _Optional[bytes] = ..., arrived_counts: _Optional[bytes] = ..., failed_pushes: _Optional[_Iterable[_Union[FailedPush, _Mapping]]] = ...) -> None: ...

class FailedPush(_message.Message):
    __slots__ = ("number", "reason")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    number: int
    reason: str
    def __init__(self, number: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class StepPlan(_message.Message):
    __slots__ = ("step", "ended_rows", "offloads", "copies", "loads", "started_rows", "block_rows", "block_positions", "block_ids", "chunk_rows", "chunk_num_tokens", "withdrawn_grants", "grants", "pushes")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ENDED_ROWS_FIELD_NUMBER: _ClassVar[int]
    OFFLOADS_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    STARTED_ROWS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_ROWS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_ROWS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    WITHDRAWN_GRANTS_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    PUSHES_FIELD_NUMBER: _ClassVar[int]
    step: int
    ended_rows: bytes
    offloads: BlockCopies
    copies: BlockCopies
    loads: BlockCopies
    started_rows: _containers.RepeatedCompositeFieldContainer[RowStart]
    block_rows: bytes
    block_positions: bytes
    block_ids: bytes
    chunk_rows: bytes
    chunk_num_tokens: bytes
    withdrawn_grants: bytes
    grants: _containers.RepeatedCompositeFieldContainer[Grant]
    pushes: _containers.RepeatedCompositeFieldContainer[Push]
    def __init__(self, step: _Optional[int] = ..., ended_rows: _Optional[bytes] = ..., offloads: _Optional[_Union[BlockCopies, _Mapping]] = ..., copies: _Optional[_Union[BlockCopies, _Mapping]] = ..., loads: _Optional[_Union[BlockCopies, _Mapping]] = ..., started_rows: _Optional[_Iterable[_Union[RowStart, _Mapping]]] = ..., block_rows: _Optional[bytes] = ..., block_positions: _Optional[bytes] = ..., block_ids: _Optional[bytes] = ..., chunk_rows: _Optional[bytes] = ..., chunk_num_tokens: _Optional[bytes] = ..., withdrawn_grants: _Optional[bytes] = ..., grants: _Optional[_Iterable[_Union[Grant, _Mapping]]] = ..., pushes: _Optional[_Iterable[_Union[Push, _Mapping]]] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("number", "block_ids", "timeout_s")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    number: int
    block_ids: bytes
    timeout_s: float
    def __init__(self, number: _Optional[int] = ..., block_ids: _Optional[bytes] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class Push(_message.Message):
    __slots__ = ("number", "endpoints", "first_position", "block_ids")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    number: int
    endpoints: _containers.RepeatedScalarFieldContainer[str]
    first_position: int
    block_ids: bytes
    def __init__(self, number: _Optional[int] = ..., endpoints: _Optional[_Iterable[str]] = ..., first_position: _Optional[int] = ..., block_ids: _Optional[bytes] = ...) -> None: ...

class BlockCopies(_message.Message):
    __slots__ = ("sources", "targets")
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    sources: bytes
    targets: bytes
    def __init__(self, sources: _Optional[bytes] = ..., targets: _Optional[bytes] = ...) -> None: ...

class RowStart(_message.Message):
    __slots__ = ("row", "token_ids", "num_computed_tokens", "block_ids", "sampling")
    ROW_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    NUM_COMPUTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    row: int
    token_ids: bytes
    num_computed_tokens: int
    block_ids: bytes
    sampling: RowSampling
    def __init__(self, row: _Optional[int] = ..., token_ids: _Optional[bytes] = ..., num_computed_tokens: _Optional[int] = ..., block_ids: _Optional[bytes] = ..., sampling: _Optional[_Union[RowSampling, _Mapping]] = ...) -> None: ...

class RowSampling(_message.Message):
    __slots__ = ("temperature", "top_p", "top_k", "min_p", "seed")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    seed: int
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., top_k: _Optional[int] = ..., min_p: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class StepResult(_message.Message):
    __slots__ = ("step", "rows", "token_ids", "forward_ns")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_NS_FIELD_NUMBER: _ClassVar[int]
    step: int
    rows: bytes
    token_ids: bytes
    forward_ns: int
    def __init__(self, step: _Optional[int] = ..., rows: _Optional[bytes] = ..., token_ids: _Optional[bytes] = ..., forward_ns: _Optional[int] = ...) -> None: ...
