"""Kernels for GPUs (CUDA and ROCm), written in Triton (https://doi.org/10.1145/3315508.3329973).

Every file is one operation: its kernels, then a launcher that takes torch tensors. Launchers trust their callers: what
comes from outside was checked where it came in.

Words used throughout: rows are rows of a matrix product's left side; a program is one instance of a kernel.
"""
