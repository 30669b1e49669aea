"""Measurements of the model and the scheduler's core in one process, without services."""
