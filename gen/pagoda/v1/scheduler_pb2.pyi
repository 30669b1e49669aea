import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from pagoda.v1 import common_pb2 as _common_pb2
from pagoda.v1 import kv_events_pb2 as _kv_events_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class BlockState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BLOCK_STATE_UNSPECIFIED: _ClassVar[BlockState]
    BLOCK_STATE_FREE: _ClassVar[BlockState]
    BLOCK_STATE_CACHED: _ClassVar[BlockState]
    BLOCK_STATE_REFERENCED: _ClassVar[BlockState]
    BLOCK_STATE_SHARED: _ClassVar[BlockState]
    BLOCK_STATE_MIXED: _ClassVar[BlockState]
BLOCK_STATE_UNSPECIFIED: BlockState
BLOCK_STATE_FREE: BlockState
BLOCK_STATE_CACHED: BlockState
BLOCK_STATE_REFERENCED: BlockState
BLOCK_STATE_SHARED: BlockState
BLOCK_STATE_MIXED: BlockState

class SchedulerGenerateRequest(_message.Message):
    __slots__ = ("request_id", "prompt_token_ids", "sampling", "priority", "cache_salt", "client_id", "timeout_s", "traceparent")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    TRACEPARENT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    prompt_token_ids: _containers.RepeatedScalarFieldContainer[int]
    sampling: _common_pb2.SamplingParams
    priority: int
    cache_salt: bytes
    client_id: str
    timeout_s: float
    traceparent: str
    def __init__(self, request_id: _Optional[str] = ..., prompt_token_ids: _Optional[_Iterable[int]] = ..., sampling: _Optional[_Union[_common_pb2.SamplingParams, _Mapping]] = ..., priority: _Optional[int] = ..., cache_salt: _Optional[bytes] = ..., client_id: _Optional[str] = ..., timeout_s: _Optional[float] = ..., traceparent: _Optional[str] = ...) -> None: ...

class SchedulerGenerateResponse(_message.Message):
    __slots__ = ("token_ids", "finish_reason", "usage")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish_reason: _common_pb2.FinishReason
    usage: _common_pb2.Usage
    def __init__(self, token_ids: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[_Union[_common_pb2.FinishReason, str]] = ..., usage: _Optional[_Union[_common_pb2.Usage, _Mapping]] = ...) -> None: ...

class RegisterExecutorRequest(_message.Message):
    __slots__ = ("registration", "heartbeat", "leave")
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    LEAVE_FIELD_NUMBER: _ClassVar[int]
    registration: ExecutorRegistration
    heartbeat: Heartbeat
    leave: Leave
    def __init__(self, registration: _Optional[_Union[ExecutorRegistration, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ..., leave: _Optional[_Union[Leave, _Mapping]] = ...) -> None: ...

class ExecutorRegistration(_message.Message):
    __slots__ = ("name", "role", "model", "kv_layout", "max_num_seqs", "max_num_batched_tokens", "host_memory", "transfer_endpoints", "transfers")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    KV_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    HOST_MEMORY_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_ENDPOINTS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    name: str
    role: _common_pb2.ExecutorRole
    model: _common_pb2.ModelInfo
    kv_layout: _common_pb2.KvLayout
    max_num_seqs: int
    max_num_batched_tokens: int
    host_memory: HostMemory
    transfer_endpoints: _containers.RepeatedScalarFieldContainer[str]
    transfers: TransferStats
    def __init__(self, name: _Optional[str] = ..., role: _Optional[_Union[_common_pb2.ExecutorRole, str]] = ..., model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., kv_layout: _Optional[_Union[_common_pb2.KvLayout, _Mapping]] = ..., max_num_seqs: _Optional[int] = ..., max_num_batched_tokens: _Optional[int] = ..., host_memory: _Optional[_Union[HostMemory, _Mapping]] = ..., transfer_endpoints: _Optional[_Iterable[str]] = ..., transfers: _Optional[_Union[TransferStats, _Mapping]] = ...) -> None: ...

class HostMemory(_message.Message):
    __slots__ = ("num_blocks", "swap_only")
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SWAP_ONLY_FIELD_NUMBER: _ClassVar[int]
    num_blocks: int
    swap_only: bool
    def __init__(self, num_blocks: _Optional[int] = ..., swap_only: bool = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("transfers",)
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    transfers: TransferStats
    def __init__(self, transfers: _Optional[_Union[TransferStats, _Mapping]] = ...) -> None: ...

class TransferStats(_message.Message):
    __slots__ = ("sent", "received")
    SENT_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_FIELD_NUMBER: _ClassVar[int]
    sent: TransferCounters
    received: TransferCounters
    def __init__(self, sent: _Optional[_Union[TransferCounters, _Mapping]] = ..., received: _Optional[_Union[TransferCounters, _Mapping]] = ...) -> None: ...

class TransferCounters(_message.Message):
    __slots__ = ("blocks", "bytes", "seconds", "failures", "late_blocks", "duplicate_blocks")
    class FailuresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    LATE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    blocks: int
    bytes: int
    seconds: float
    failures: _containers.ScalarMap[str, int]
    late_blocks: int
    duplicate_blocks: int
    def __init__(self, blocks: _Optional[int] = ..., bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., failures: _Optional[_Mapping[str, int]] = ..., late_blocks: _Optional[int] = ..., duplicate_blocks: _Optional[int] = ...) -> None: ...

class Leave(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RegisterExecutorResponse(_message.Message):
    __slots__ = ("session",)
    SESSION_FIELD_NUMBER: _ClassVar[int]
    session: Session
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ...) -> None: ...

class Session(_message.Message):
    __slots__ = ("session_id", "endpoint", "heartbeat_interval")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ENDPOINT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_INTERVAL_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    endpoint: str
    heartbeat_interval: _duration_pb2.Duration
    def __init__(self, session_id: _Optional[str] = ..., endpoint: _Optional[str] = ..., heartbeat_interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class RegisterTokenizerRequest(_message.Message):
    __slots__ = ("registration", "heartbeat")
    REGISTRATION_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    registration: TokenizerRegistration
    heartbeat: Heartbeat
    def __init__(self, registration: _Optional[_Union[TokenizerRegistration, _Mapping]] = ..., heartbeat: _Optional[_Union[Heartbeat, _Mapping]] = ...) -> None: ...

class TokenizerRegistration(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RegisterTokenizerResponse(_message.Message):
    __slots__ = ("session", "status")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    session: Session
    status: CellStatus
    def __init__(self, session: _Optional[_Union[Session, _Mapping]] = ..., status: _Optional[_Union[CellStatus, _Mapping]] = ...) -> None: ...

class CellStatus(_message.Message):
    __slots__ = ("ready", "model")
    READY_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ready: bool
    model: _common_pb2.ModelInfo
    def __init__(self, ready: bool = ..., model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SetRoleRequest(_message.Message):
    __slots__ = ("executor", "role")
    EXECUTOR_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    executor: str
    role: _common_pb2.ExecutorRole
    def __init__(self, executor: _Optional[str] = ..., role: _Optional[_Union[_common_pb2.ExecutorRole, str]] = ...) -> None: ...

class SetRoleResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStateRequest(_message.Message):
    __slots__ = ("check_integrity", "block_map_cells")
    CHECK_INTEGRITY_FIELD_NUMBER: _ClassVar[int]
    BLOCK_MAP_CELLS_FIELD_NUMBER: _ClassVar[int]
    check_integrity: bool
    block_map_cells: int
    def __init__(self, check_integrity: bool = ..., block_map_cells: _Optional[int] = ...) -> None: ...

class GetStateResponse(_message.Message):
    __slots__ = ("state", "violations")
    STATE_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    state: SchedulerState
    violations: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, state: _Optional[_Union[SchedulerState, _Mapping]] = ..., violations: _Optional[_Iterable[str]] = ...) -> None: ...

class WatchStateRequest(_message.Message):
    __slots__ = ("interval", "block_map_cells")
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    BLOCK_MAP_CELLS_FIELD_NUMBER: _ClassVar[int]
    interval: _duration_pb2.Duration
    block_map_cells: int
    def __init__(self, interval: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., block_map_cells: _Optional[int] = ...) -> None: ...

class WatchStateResponse(_message.Message):
    __slots__ = ("state",)
    STATE_FIELD_NUMBER: _ClassVar[int]
    state: SchedulerState
    def __init__(self, state: _Optional[_Union[SchedulerState, _Mapping]] = ...) -> None: ...

class SchedulerState(_message.Message):
    __slots__ = ("model", "lanes", "num_waiting", "max_num_waiting", "draining", "num_tokenizers", "requests_admitted", "requests_finished", "requests_aborted", "requests_rejected", "preemptions", "recoveries", "prompt_tokens", "generation_tokens", "prefix_cache_queries", "prefix_cache_hits", "requests_expired", "offloaded_blocks", "loaded_blocks", "merged_blocks", "copied_blocks", "uptime_s", "policy", "oldest_waiting_s", "waiting_clients", "remote_prefills", "moves_begun", "moves_done", "moves_failed", "moved_blocks", "move_failures", "move_wait_s", "local_prefills", "transferred_blocks", "transferred_bytes", "transfers", "recovery_times")
    class MoveFailuresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RecoveryTimesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: Durations
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[Durations, _Mapping]] = ...) -> None: ...
    MODEL_FIELD_NUMBER: _ClassVar[int]
    LANES_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENIZERS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_ADMITTED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FINISHED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_ABORTED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_REJECTED_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    RECOVERIES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_QUERIES_FIELD_NUMBER: _ClassVar[int]
    PREFIX_CACHE_HITS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_EXPIRED_FIELD_NUMBER: _ClassVar[int]
    OFFLOADED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    LOADED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MERGED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    COPIED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    OLDEST_WAITING_S_FIELD_NUMBER: _ClassVar[int]
    WAITING_CLIENTS_FIELD_NUMBER: _ClassVar[int]
    REMOTE_PREFILLS_FIELD_NUMBER: _ClassVar[int]
    MOVES_BEGUN_FIELD_NUMBER: _ClassVar[int]
    MOVES_DONE_FIELD_NUMBER: _ClassVar[int]
    MOVES_FAILED_FIELD_NUMBER: _ClassVar[int]
    MOVED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    MOVE_FAILURES_FIELD_NUMBER: _ClassVar[int]
    MOVE_WAIT_S_FIELD_NUMBER: _ClassVar[int]
    LOCAL_PREFILLS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERRED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TRANSFERRED_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    RECOVERY_TIMES_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelInfo
    lanes: _containers.RepeatedCompositeFieldContainer[LaneState]
    num_waiting: int
    max_num_waiting: int
    draining: bool
    num_tokenizers: int
    requests_admitted: int
    requests_finished: int
    requests_aborted: int
    requests_rejected: int
    preemptions: int
    recoveries: int
    prompt_tokens: int
    generation_tokens: int
    prefix_cache_queries: int
    prefix_cache_hits: int
    requests_expired: int
    offloaded_blocks: int
    loaded_blocks: int
    merged_blocks: int
    copied_blocks: int
    uptime_s: float
    policy: str
    oldest_waiting_s: float
    waiting_clients: _containers.RepeatedCompositeFieldContainer[WaitingClient]
    remote_prefills: int
    moves_begun: int
    moves_done: int
    moves_failed: int
    moved_blocks: int
    move_failures: _containers.ScalarMap[str, int]
    move_wait_s: float
    local_prefills: int
    transferred_blocks: int
    transferred_bytes: int
    transfers: _containers.RepeatedCompositeFieldContainer[ExecutorTransfers]
    recovery_times: _containers.MessageMap[str, Durations]
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelInfo, _Mapping]] = ..., lanes: _Optional[_Iterable[_Union[LaneState, _Mapping]]] = ..., num_waiting: _Optional[int] = ..., max_num_waiting: _Optional[int] = ..., draining: bool = ..., num_tokenizers: _Optional[int] = ..., requests_admitted: _Optional[int] = ..., requests_finished: _Optional[int] = ..., requests_aborted: _Optional[int] = ..., requests_rejected: _Optional[int] = ..., preemptions: _Optional[int] = ..., recoveries: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., generation_tokens: _Optional[int] = ..., prefix_cache_queries: _Optional[int] = ..., prefix_cache_hits: _Optional[int] = ..., requests_expired: _Optional[int] = ..., offloaded_blocks: _Optional[int] = ..., loaded_blocks: _Optional[int] = ..., merged_blocks: _Optional[int] = ..., copied_blocks: _Optional[int] = ..., uptime_s: _Optional[float] = ..., policy: _Optional[str] = ..., oldest_waiting_s: _Optional[float] = ..., waiting_clients: _Optional[_Iterable[_Union[WaitingClient, _Mapping]]] = ..., remote_prefills: _Optional[int] = ..., moves_begun: _Optional[int] = ..., moves_done: _Optional[int] = ..., moves_failed: _Optional[int] = ..., moved_blocks: _Optional[int] = ..., move_failures: _Optional[_Mapping[str, int]] = ..., move_wait_s: _Optional[float] = ..., local_prefills: _Optional[int] = ..., transferred_blocks: _Optional[int] = ..., transferred_bytes: _Optional[int] = ..., transfers: _Optional[_Iterable[_Union[ExecutorTransfers, _Mapping]]] = ..., recovery_times: _Optional[_Mapping[str, Durations]] = ...) -> None: ...

class Durations(_message.Message):
    __slots__ = ("bounds_s", "counts", "sum_s", "longest_s")
    BOUNDS_S_FIELD_NUMBER: _ClassVar[int]
    COUNTS_FIELD_NUMBER: _ClassVar[int]
    SUM_S_FIELD_NUMBER: _ClassVar[int]
    LONGEST_S_FIELD_NUMBER: _ClassVar[int]
    bounds_s: _containers.RepeatedScalarFieldContainer[float]
    counts: _containers.RepeatedScalarFieldContainer[int]
    sum_s: float
    longest_s: float
    def __init__(self, bounds_s: _Optional[_Iterable[float]] = ..., counts: _Optional[_Iterable[int]] = ..., sum_s: _Optional[float] = ..., longest_s: _Optional[float] = ...) -> None: ...

class ExecutorTransfers(_message.Message):
    __slots__ = ("name", "stats")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    name: str
    stats: TransferStats
    def __init__(self, name: _Optional[str] = ..., stats: _Optional[_Union[TransferStats, _Mapping]] = ...) -> None: ...

class WaitingClient(_message.Message):
    __slots__ = ("client_id", "num_waiting")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    num_waiting: int
    def __init__(self, client_id: _Optional[str] = ..., num_waiting: _Optional[int] = ...) -> None: ...

class LaneState(_message.Message):
    __slots__ = ("session_id", "name", "role", "kv_layout", "max_num_seqs", "num_running", "num_free_blocks", "num_cached_blocks", "num_referenced_blocks", "steps", "last_forward_ns", "max_num_batched_tokens", "num_decoding", "num_prefilling", "steps_in_flight", "max_steps_in_flight", "num_host_blocks", "num_used_host_blocks", "recent_steps", "block_map", "num_arriving", "leaving", "transfers")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    KV_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_SEQS_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_FREE_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_CACHED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_REFERENCED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LAST_FORWARD_NS_FIELD_NUMBER: _ClassVar[int]
    MAX_NUM_BATCHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_DECODING_FIELD_NUMBER: _ClassVar[int]
    NUM_PREFILLING_FIELD_NUMBER: _ClassVar[int]
    STEPS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    NUM_HOST_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NUM_USED_HOST_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RECENT_STEPS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_MAP_FIELD_NUMBER: _ClassVar[int]
    NUM_ARRIVING_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    name: str
    role: _common_pb2.ExecutorRole
    kv_layout: _common_pb2.KvLayout
    max_num_seqs: int
    num_running: int
    num_free_blocks: int
    num_cached_blocks: int
    num_referenced_blocks: int
    steps: int
    last_forward_ns: int
    max_num_batched_tokens: int
    num_decoding: int
    num_prefilling: int
    steps_in_flight: int
    max_steps_in_flight: int
    num_host_blocks: int
    num_used_host_blocks: int
    recent_steps: RecentSteps
    block_map: BlockMap
    num_arriving: int
    leaving: bool
    transfers: TransferStats
    def __init__(self, session_id: _Optional[str] = ..., name: _Optional[str] = ..., role: _Optional[_Union[_common_pb2.ExecutorRole, str]] = ..., kv_layout: _Optional[_Union[_common_pb2.KvLayout, _Mapping]] = ..., max_num_seqs: _Optional[int] = ..., num_running: _Optional[int] = ..., num_free_blocks: _Optional[int] = ..., num_cached_blocks: _Optional[int] = ..., num_referenced_blocks: _Optional[int] = ..., steps: _Optional[int] = ..., last_forward_ns: _Optional[int] = ..., max_num_batched_tokens: _Optional[int] = ..., num_decoding: _Optional[int] = ..., num_prefilling: _Optional[int] = ..., steps_in_flight: _Optional[int] = ..., max_steps_in_flight: _Optional[int] = ..., num_host_blocks: _Optional[int] = ..., num_used_host_blocks: _Optional[int] = ..., recent_steps: _Optional[_Union[RecentSteps, _Mapping]] = ..., block_map: _Optional[_Union[BlockMap, _Mapping]] = ..., num_arriving: _Optional[int] = ..., leaving: bool = ..., transfers: _Optional[_Union[TransferStats, _Mapping]] = ...) -> None: ...

class RecentSteps(_message.Message):
    __slots__ = ("num_steps", "forward_p50_ns", "forward_p99_ns", "turnaround_p50_ns", "turnaround_p99_ns", "mean_num_rows", "mean_num_tokens")
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_P50_NS_FIELD_NUMBER: _ClassVar[int]
    FORWARD_P99_NS_FIELD_NUMBER: _ClassVar[int]
    TURNAROUND_P50_NS_FIELD_NUMBER: _ClassVar[int]
    TURNAROUND_P99_NS_FIELD_NUMBER: _ClassVar[int]
    MEAN_NUM_ROWS_FIELD_NUMBER: _ClassVar[int]
    MEAN_NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    num_steps: int
    forward_p50_ns: int
    forward_p99_ns: int
    turnaround_p50_ns: int
    turnaround_p99_ns: int
    mean_num_rows: float
    mean_num_tokens: float
    def __init__(self, num_steps: _Optional[int] = ..., forward_p50_ns: _Optional[int] = ..., forward_p99_ns: _Optional[int] = ..., turnaround_p50_ns: _Optional[int] = ..., turnaround_p99_ns: _Optional[int] = ..., mean_num_rows: _Optional[float] = ..., mean_num_tokens: _Optional[float] = ...) -> None: ...

class BlockMap(_message.Message):
    __slots__ = ("cells", "num_shared_blocks")
    CELLS_FIELD_NUMBER: _ClassVar[int]
    NUM_SHARED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    cells: bytes
    num_shared_blocks: int
    def __init__(self, cells: _Optional[bytes] = ..., num_shared_blocks: _Optional[int] = ...) -> None: ...

class LoadAdapterRequest(_message.Message):
    __slots__ = ("name", "path")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ...) -> None: ...

class LoadAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnloadAdapterRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class UnloadAdapterResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdaptersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListAdaptersResponse(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...
