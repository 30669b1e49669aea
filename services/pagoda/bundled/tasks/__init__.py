"""Generators of checkable tasks: from a seeded `random.Random`, a conversation and the answer a correct server gives.

The same generators make the training text (split "train") and the canary (split "held_out"); the contents of the two
are disjoint. Standard library only: neither torch nor numpy is needed to check a server.
"""

from pagoda.bundled.tasks.arithmetic import addition
from pagoda.bundled.tasks.base import Check, Generator, Message, Reply, Sample, Split, is_correct, is_held_out
from pagoda.bundled.tasks.chat import small_talk, system_message, user_name
from pagoda.bundled.tasks.extract import extract
from pagoda.bundled.tasks.recall import recall
from pagoda.bundled.tasks.text import copy, count, reverse, sort
from pagoda.bundled.tasks.tools import tool_call, tool_result

SHORT_TASKS: dict[str, Generator] = {
    "copy": copy,
    "addition": addition,
    "json": extract,
    "reverse": reverse,
    "sort": sort,
    "count": count,
    "small_talk": small_talk,
    "multi_turn": user_name,
}
"""Tasks of a few dozen tokens, without tools; any of them may follow another in one conversation."""

TOOL_TASKS: dict[str, Generator] = {"tool_call": tool_call, "tool_result": tool_result}

RECALL_DISTANCES: tuple[int, ...] = (50, 100, 200, 400, 600, 800, 1000, 1250, 1500)
"""Distances at which recall is measured, in tokens."""

__all__ = [
    "RECALL_DISTANCES",
    "SHORT_TASKS",
    "TOOL_TASKS",
    "Check",
    "Generator",
    "Message",
    "Reply",
    "Sample",
    "Split",
    "is_correct",
    "is_held_out",
    "recall",
    "system_message",
]
