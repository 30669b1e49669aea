"""What the C library does with memory that is freed.

ZeroMQ allocates memory for every piece that comes, and frees it when its blocks are copied. By default glibc gives much
of that back to the kernel at once; the next piece then gets pages that the kernel has to map and to zero, which takes
about as long as to receive it.
"""

from __future__ import annotations

import ctypes

# Of mallopt(3).
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The most that glibc takes: what is larger is mapped by itself, and given back.
_LARGEST_KEPT = 32 << 20


def keep_freed_memory(num_bytes: int) -> None:
    """From now on, so many bytes of what is freed stay with this process, in each arena of the allocator.

    Nothing happens where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT)
        mallopt(_M_TRIM_THRESHOLD, num_bytes)
