"""The scheduler proper: pure, without transport, clock or I/O, so that it runs against a simulated executor too."""
