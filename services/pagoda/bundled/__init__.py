"""The model that ships with Pagoda: its folder, the tasks it is trained and checked on, and the training itself."""

from pathlib import Path

CHAT_MODEL = Path(__file__).parent / "chat"
"""Hugging Face folder of the bundled chat model."""

DRAFT_MODEL = Path(__file__).parent / "draft"
"""Hugging Face folder of its draft model for speculative decoding; the same tokenizer."""
