from pagoda.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TransferProblem(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRANSFER_PROBLEM_UNSPECIFIED: _ClassVar[TransferProblem]
    TRANSFER_PROBLEM_REFUSED: _ClassVar[TransferProblem]
    TRANSFER_PROBLEM_CORRUPT: _ClassVar[TransferProblem]
    TRANSFER_PROBLEM_LAYOUT: _ClassVar[TransferProblem]
    TRANSFER_PROBLEM_FULL: _ClassVar[TransferProblem]
    TRANSFER_PROBLEM_UNREACHABLE: _ClassVar[TransferProblem]
TRANSFER_PROBLEM_UNSPECIFIED: TransferProblem
TRANSFER_PROBLEM_REFUSED: TransferProblem
TRANSFER_PROBLEM_CORRUPT: TransferProblem
TRANSFER_PROBLEM_LAYOUT: TransferProblem
TRANSFER_PROBLEM_FULL: TransferProblem
TRANSFER_PROBLEM_UNREACHABLE: TransferProblem

class TransferRequest(_message.Message):
    __slots__ = ("hello", "push", "bye")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    PUSH_FIELD_NUMBER: _ClassVar[int]
    BYE_FIELD_NUMBER: _ClassVar[int]
    hello: TransferHello
    push: BlockPush
    bye: TransferBye
    def __init__(self, hello: _Optional[_Union[TransferHello, _Mapping]] = ..., push: _Optional[_Union[BlockPush, _Mapping]] = ..., bye: _Optional[_Union[TransferBye, _Mapping]] = ...) -> None: ...

class TransferResponse(_message.Message):
    __slots__ = ("welcome", "refusal", "receipts")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    welcome: TransferWelcome
    refusal: TransferRefusal
    receipts: TransferReceipts
    def __init__(self, welcome: _Optional[_Union[TransferWelcome, _Mapping]] = ..., refusal: _Optional[_Union[TransferRefusal, _Mapping]] = ..., receipts: _Optional[_Union[TransferReceipts, _Mapping]] = ...) -> None: ...

class TransferHello(_message.Message):
    __slots__ = ("session", "layout", "block_bytes", "piece_bytes", "shared_memory", "nixl", "cuda_memory")
    SESSION_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    BLOCK_BYTES_FIELD_NUMBER: _ClassVar[int]
    PIECE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHARED_MEMORY_FIELD_NUMBER: _ClassVar[int]
    NIXL_FIELD_NUMBER: _ClassVar[int]
    CUDA_MEMORY_FIELD_NUMBER: _ClassVar[int]
    session: str
    layout: _common_pb2.KvLayout
    block_bytes: int
    piece_bytes: int
    shared_memory: SharedMemory
    nixl: NixlMemory
    cuda_memory: CudaMemory
    def __init__(self, session: _Optional[str] = ..., layout: _Optional[_Union[_common_pb2.KvLayout, _Mapping]] = ..., block_bytes: _Optional[int] = ..., piece_bytes: _Optional[int] = ..., shared_memory: _Optional[_Union[SharedMemory, _Mapping]] = ..., nixl: _Optional[_Union[NixlMemory, _Mapping]] = ..., cuda_memory: _Optional[_Union[CudaMemory, _Mapping]] = ...) -> None: ...

class TransferWelcome(_message.Message):
    __slots__ = ("num_slots", "idle_timeout_s")
    NUM_SLOTS_FIELD_NUMBER: _ClassVar[int]
    IDLE_TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    num_slots: int
    idle_timeout_s: float
    def __init__(self, num_slots: _Optional[int] = ..., idle_timeout_s: _Optional[float] = ...) -> None: ...

class SharedMemory(_message.Message):
    __slots__ = ("pid", "fd", "nonce")
    PID_FIELD_NUMBER: _ClassVar[int]
    FD_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    pid: int
    fd: int
    nonce: bytes
    def __init__(self, pid: _Optional[int] = ..., fd: _Optional[int] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class NixlMemory(_message.Message):
    __slots__ = ("metadata", "address", "is_gpu", "device")
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    IS_GPU_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    metadata: bytes
    address: int
    is_gpu: bool
    device: int
    def __init__(self, metadata: _Optional[bytes] = ..., address: _Optional[int] = ..., is_gpu: bool = ..., device: _Optional[int] = ...) -> None: ...

class CudaMemory(_message.Message):
    __slots__ = ("device_uuid", "handle", "offset", "num_bytes")
    DEVICE_UUID_FIELD_NUMBER: _ClassVar[int]
    HANDLE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    device_uuid: str
    handle: bytes
    offset: int
    num_bytes: int
    def __init__(self, device_uuid: _Optional[str] = ..., handle: _Optional[bytes] = ..., offset: _Optional[int] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class BlockPush(_message.Message):
    __slots__ = ("transfer_id", "first_position", "num_blocks", "slot", "crc32", "block_ids")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    FIRST_POSITION_FIELD_NUMBER: _ClassVar[int]
    NUM_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    SLOT_FIELD_NUMBER: _ClassVar[int]
    CRC32_FIELD_NUMBER: _ClassVar[int]
    BLOCK_IDS_FIELD_NUMBER: _ClassVar[int]
    transfer_id: int
    first_position: int
    num_blocks: int
    slot: int
    crc32: int
    block_ids: bytes
    def __init__(self, transfer_id: _Optional[int] = ..., first_position: _Optional[int] = ..., num_blocks: _Optional[int] = ..., slot: _Optional[int] = ..., crc32: _Optional[int] = ..., block_ids: _Optional[bytes] = ...) -> None: ...

class TransferBye(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TransferRefusal(_message.Message):
    __slots__ = ("problem", "message")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    problem: TransferProblem
    message: str
    def __init__(self, problem: _Optional[_Union[TransferProblem, str]] = ..., message: _Optional[str] = ...) -> None: ...

class TransferReceipts(_message.Message):
    __slots__ = ("slots", "failures")
    SLOTS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    slots: _containers.RepeatedScalarFieldContainer[int]
    failures: _containers.RepeatedCompositeFieldContainer[TransferFailure]
    def __init__(self, slots: _Optional[_Iterable[int]] = ..., failures: _Optional[_Iterable[_Union[TransferFailure, _Mapping]]] = ...) -> None: ...

class TransferFailure(_message.Message):
    __slots__ = ("transfer_id", "problem")
    TRANSFER_ID_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    transfer_id: int
    problem: TransferProblem
    def __init__(self, transfer_id: _Optional[int] = ..., problem: _Optional[_Union[TransferProblem, str]] = ...) -> None: ...
