"""Philox-4x32-10, a counter-based random number generator.

J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw: Parallel Random Numbers: As Easy as 1, 2, 3. SC 2011. Output is a
pure function of key and counter, so there is no state to keep, save or order.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)
_ROUNDS = 10


def philox(counters: tuple[U64, U64, U64, U64], keys: tuple[U64, U64]) -> tuple[U64, U64, U64, U64]:
    """Four words of 32 random bits per key and counter.

    counters, keys: words of 32 bits, each [n] uint64; returns the same form.
    """
    c0, c1, c2, c3 = counters
    k0, k1 = keys
    for _ in range(_ROUNDS):
        product0, product1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (product1 >> _32) ^ c1 ^ k0, product1 & _LOW, (product0 >> _32) ^ c3 ^ k1, product0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & _LOW, (k1 + _WEYL[1]) & _LOW
    return c0, c1, c2, c3


def uniform(seeds: U64, positions: U64) -> NDArray[np.float64]:
    """One number in [0, 1) with 52 random bits for each (seed, position); all are [n]."""
    zero = np.zeros_like(positions)
    high, low, _, _ = philox((positions & _LOW, positions >> _32, zero, zero), (seeds & _LOW, seeds >> _32))
    # Fewer bits than a double's 53, so that u * total < total holds after rounding, too.
    return ((high << np.uint64(20)) | (low >> np.uint64(12))).astype(np.float64) * 2.0**-52
