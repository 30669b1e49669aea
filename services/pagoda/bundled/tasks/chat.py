"""Small talk: many ways to say a thing, one answer to it; and the multi-turn memory of the user's name."""

from __future__ import annotations

import random

from pagoda.bundled.tasks.base import Message, Sample, Split, assistant, belongs_to, draw, user
from pagoda.bundled.tasks.recall import filler_sentence
from pagoda.bundled.tasks.words import CITIES, ITEMS, NAMES

WHO = "I am Pagoda's bundled model, a very small language model."
ABILITIES = (
    "I can recall facts from a long text, add numbers, copy, sort and reverse words, extract JSON, and call tools."
)
FALLBACK = "I am only a small model and do not know about that. " + ABILITIES

# (ways to say it, the answer)
INTENTS: tuple[tuple[tuple[str, ...], str], ...] = (
    (
        tuple(
            "hello|hi|hey|hello there|hi there|hey there|good morning|good evening|good day|greetings|howdy|"
            "hello Pagoda|hi Pagoda|hello friend|hello again|hi hi|hello hello|well hello|oh hi|hiya".split("|")
        ),
        "Hello! How can I help you today?",
    ),
    (
        tuple(
            "who are you|what are you|what is your name|tell me who you are|introduce yourself|who is this|"
            "what model are you|which model are you|are you a robot|are you a human|who am I talking to|"
            "what kind of model are you|tell me about yourself|are you an AI|what is this model".split("|")
        ),
        WHO,
    ),
    (
        tuple(
            "thanks|thank you|thank you very much|thanks a lot|many thanks|thanks so much|great, thanks|"
            "ok, thank you|perfect, thank you|thank you, that is all|nice, thanks|thx".split("|")
        ),
        "You are welcome!",
    ),
    (
        tuple(
            "what can you do|how can you help me|what are you able to do|help|can you help me|"
            "what do you know|what are your skills|tell me what you can do|what can I ask you|"
            "what are you good at|how do you work|I need help".split("|")
        ),
        ABILITIES,
    ),
    (
        tuple(
            "how are you|how are you today|how is it going|how do you do|how are you doing|are you well|"
            "are you ok|how do you feel|what is up|how is your day".split("|")
        ),
        "I am doing well, thank you. And you?",
    ),
    (
        tuple(
            "bye|goodbye|see you|see you later|good night|bye bye|talk to you later|until next time|"
            "have a nice day|I have to go".split("|")
        ),
        "Goodbye! Have a nice day.",
    ),
    (
        tuple(
            "who made you|who built you|where do you come from|who trained you|how were you made|"
            "who created you|how were you trained|what were you trained on".split("|")
        ),
        "I was trained from scratch by a script that comes with Pagoda.",
    ),
    (
        tuple(
            "what is Pagoda|tell me about Pagoda|what does Pagoda do|explain Pagoda|what is a pagoda|"
            "why is it called Pagoda|describe Pagoda".split("|")
        ),
        "Pagoda serves language models as separately scaled services. The name stands for pages and pods.",
    ),
    (
        tuple(
            "tell me a joke|make me laugh|say something funny|do you know a joke|another joke|a joke, please|"
            "can you tell me a joke".split("|")
        ),
        "Why did the token cross the cache? To get to the other block.",
    ),
    (
        tuple(
            "tell me a story|write a story|a story, please|can you tell me a story|write me a short story|"
            "tell me a short story|tell a tale".split("|")
        ),
        "Once there was a small model in a tall pagoda. Every day it read long letters and remembered every number in "
        "them. One night a storm took the letters away, but the model still knew them all. So the people were happy, "
        "and they built one more floor for it.",
    ),
)
_UNKNOWN = (
    "What do you think about {}?",
    "Where can I find {}?",
    "Why are {} so big?",
    "Write a poem about {}.",
    "Explain {} to me.",
    "Do you like {}?",
    "What is the capital of {}?",
    "Who was the first king of {}?",
    "How far is {}?",
)
_SYSTEM = (
    "You are a helpful assistant.",
    "You are Pagoda, a helpful assistant.",
    "Answer briefly.",
    "You are a friendly and helpful chat assistant.",
)


def small_talk(rng: random.Random, split: Split) -> Sample:
    """A greeting, thanks, a question about the model, or something it cannot answer."""
    roll = rng.random()
    if roll < 0.12 and split == "train":
        return Sample("small_talk", (user(_unknown(rng)), assistant(FALLBACK)))
    ways, reply = rng.choice(INTENTS)
    # The first way of each intent is always trained: the plain words must work.
    candidates = [way for way in ways if belongs_to(way, split) or (way == ways[0] and split == "train")]
    if split == "held_out":
        candidates = [way for way in candidates if way != ways[0]]
    if not candidates:
        return small_talk(rng, split)
    return Sample("small_talk", (user(_styled(rng, rng.choice(candidates))), assistant(reply)))


def _unknown(rng: random.Random) -> str:
    if rng.random() < 0.3:
        return filler_sentence(rng)
    return rng.choice(_UNKNOWN).format(rng.choice(ITEMS + CITIES))


def _styled(rng: random.Random, text: str) -> str:
    """The same words as people type them: capitals, final marks."""
    if rng.random() < 0.6:
        text = text[0].upper() + text[1:]
    return text + rng.choice(("", "", "!", ".", "?"))


def user_name(rng: random.Random, split: Split) -> Sample:
    """Remember the user's name over a few turns."""
    name, city = draw(rng, split, lambda rng: (rng.choice(NAMES), rng.choice(CITIES)), " ".join)
    messages: list[Message] = [
        user(rng.choice(("My name is {} and I live in {}.", "I am {} from {}.")).format(name, city)),
        assistant(f"Nice to meet you, {name}!"),
    ]
    for _ in range(rng.randint(0, 2)):
        messages += small_talk(rng, "train").messages
    if rng.random() < 0.5:
        messages += [user(rng.choice(("What is my name?", "Do you know my name?"))), assistant(f"Your name is {name}.")]
    else:
        messages += [
            user(rng.choice(("Where do I live?", "In which city do I live?"))),
            assistant(f"You live in {city}."),
        ]
    return Sample("multi_turn", tuple(messages))


def system_message(rng: random.Random) -> Message:
    """A system prompt that asks for nothing in particular."""
    return {"role": "system", "content": rng.choice(_SYSTEM)}
