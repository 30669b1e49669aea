"""A load generator for OpenAI-compatible servers, and what it measures."""
