"""A KV cache in a GPU's memory that other processes of this host read, by CUDA's handles (CUDA IPC), as torch has them.

Torch counts who has memory of its allocator open, in a file that both processes write to, and keeps it until nobody
has. Nothing is counted here: a cache is there as long as its process, and its readers know that it may be gone at any
time. So nothing is left to be done when one of the two is killed.

It has not been tried on GPUs yet; tests/gpu does so, on one. Between two, a reader needs to see the other's
(CUDA_VISIBLE_DEVICES), in whose memory it takes some room, as every process that uses a GPU does.

https://docs.nvidia.com/cuda/cuda-c-programming-guide/index.html#interprocess-communication
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagoda.v1 import transfer_pb2 as pb


def share_cuda(cache: Tensor) -> pb.CudaMemory:
    """For readers, for as long as the cache is there.

    cache: contiguous, and all of its storage

    Raises OSError where CUDA, or torch's allocator, does not share memory.
    """
    storage = cache.untyped_storage()
    try:
        shared = storage._share_cuda_()  # type: ignore[no-untyped-call]
        device, handle, num_bytes, offset, counter, counter_offset, _, _ = shared
        # A first reader is counted from the beginning.
        torch.UntypedStorage._release_ipc_counter_cuda(counter, counter_offset)
    except RuntimeError as error:
        raise OSError(f"the cache cannot be shared: {error}") from None
    return pb.CudaMemory(device_uuid=_uuid(device), handle=handle, offset=offset, num_bytes=num_bytes)


def open_cuda(address: pb.CudaMemory, num_bytes: int, device: torch.device) -> Tensor:
    """The memory of another process, [num_bytes] uint8, to be read; closed when the last tensor of it is gone.

    device: that it will be copied to

    Raises OSError when it cannot be opened from here.
    """
    if device.type != "cuda":
        raise OSError(f"it is a GPU's, and would be copied to the {device.type}'s")
    if address.num_bytes != num_bytes:
        raise OSError(f"it has {address.num_bytes} bytes, not {num_bytes}")
    index = next((each for each in range(torch.cuda.device_count()) if _uuid(each) == address.device_uuid), None)
    if index is None:
        raise OSError(f"the GPU {address.device_uuid} is not seen from here")
    try:
        # Torch finds no counter without a name. Nor is there an event to wait for: what is pushed has been computed.
        no_counter, no_event = (b"", 0), (b"", False)
        storage = torch.UntypedStorage._new_shared_cuda(
            index, address.handle, num_bytes, address.offset, *no_counter, *no_event
        )
    except RuntimeError as error:
        raise OSError(f"CUDA does not open it: {error}") from None
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _uuid(index: int) -> str:
    return str(torch.cuda.get_device_properties(index).uuid)
