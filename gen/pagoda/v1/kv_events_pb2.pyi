import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KvMedium(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KV_MEDIUM_UNSPECIFIED: _ClassVar[KvMedium]
    KV_MEDIUM_DEVICE: _ClassVar[KvMedium]
    KV_MEDIUM_HOST: _ClassVar[KvMedium]
KV_MEDIUM_UNSPECIFIED: KvMedium
KV_MEDIUM_DEVICE: KvMedium
KV_MEDIUM_HOST: KvMedium

class KvEventBatch(_message.Message):
    __slots__ = ("epoch", "sequence", "published_at", "executors")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_AT_FIELD_NUMBER: _ClassVar[int]
    EXECUTORS_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    sequence: int
    published_at: _timestamp_pb2.Timestamp
    executors: _containers.RepeatedCompositeFieldContainer[ExecutorKvEvents]
    def __init__(self, epoch: _Optional[int] = ..., sequence: _Optional[int] = ..., published_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., executors: _Optional[_Iterable[_Union[ExecutorKvEvents, _Mapping]]] = ...) -> None: ...

class ExecutorKvEvents(_message.Message):
    __slots__ = ("session_id", "name", "block_size", "events")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    name: str
    block_size: int
    events: _containers.RepeatedCompositeFieldContainer[KvEvent]
    def __init__(self, session_id: _Optional[str] = ..., name: _Optional[str] = ..., block_size: _Optional[int] = ..., events: _Optional[_Iterable[_Union[KvEvent, _Mapping]]] = ...) -> None: ...

class KvEvent(_message.Message):
    __slots__ = ("stored", "removed", "cleared")
    STORED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    CLEARED_FIELD_NUMBER: _ClassVar[int]
    stored: KvBlocksStored
    removed: KvBlocksRemoved
    cleared: KvBlocksCleared
    def __init__(self, stored: _Optional[_Union[KvBlocksStored, _Mapping]] = ..., removed: _Optional[_Union[KvBlocksRemoved, _Mapping]] = ..., cleared: _Optional[_Union[KvBlocksCleared, _Mapping]] = ...) -> None: ...

class KvBlocksStored(_message.Message):
    __slots__ = ("medium", "hashes", "parent", "token_ids")
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    medium: KvMedium
    hashes: bytes
    parent: bytes
    token_ids: bytes
    def __init__(self, medium: _Optional[_Union[KvMedium, str]] = ..., hashes: _Optional[bytes] = ..., parent: _Optional[bytes] = ..., token_ids: _Optional[bytes] = ...) -> None: ...

class KvBlocksRemoved(_message.Message):
    __slots__ = ("medium", "hashes")
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    medium: KvMedium
    hashes: bytes
    def __init__(self, medium: _Optional[_Union[KvMedium, str]] = ..., hashes: _Optional[bytes] = ...) -> None: ...

class KvBlocksCleared(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListKvBlocksRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListKvBlocksResponse(_message.Message):
    __slots__ = ("start", "blocks")
    START_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    start: KvSnapshotStart
    blocks: ExecutorKvBlocks
    def __init__(self, start: _Optional[_Union[KvSnapshotStart, _Mapping]] = ..., blocks: _Optional[_Union[ExecutorKvBlocks, _Mapping]] = ...) -> None: ...

class KvSnapshotStart(_message.Message):
    __slots__ = ("epoch", "sequence")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    epoch: int
    sequence: int
    def __init__(self, epoch: _Optional[int] = ..., sequence: _Optional[int] = ...) -> None: ...

class ExecutorKvBlocks(_message.Message):
    __slots__ = ("session_id", "name", "block_size", "medium", "hashes", "parents")
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    MEDIUM_FIELD_NUMBER: _ClassVar[int]
    HASHES_FIELD_NUMBER: _ClassVar[int]
    PARENTS_FIELD_NUMBER: _ClassVar[int]
    session_id: str
    name: str
    block_size: int
    medium: KvMedium
    hashes: bytes
    parents: bytes
    def __init__(self, session_id: _Optional[str] = ..., name: _Optional[str] = ..., block_size: _Optional[int] = ..., medium: _Optional[_Union[KvMedium, str]] = ..., hashes: _Optional[bytes] = ..., parents: _Optional[bytes] = ...) -> None: ...
