"""Native kernels for CPUs: C++ with a plain C interface, compiled at first use."""
