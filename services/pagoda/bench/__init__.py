"""Measurements: of a running server from outside, of the model in one process, of the scheduler alone."""
