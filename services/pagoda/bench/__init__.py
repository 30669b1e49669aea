"""Measurements of a running server, from outside, over its OpenAI-compatible API."""
