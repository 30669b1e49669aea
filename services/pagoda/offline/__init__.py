"""The scheduler's core and an executor in one process, without services: for benchmarks and offline batches."""
