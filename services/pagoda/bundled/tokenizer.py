"""Trains the bundled model's tokenizer and writes it in Hugging Face format.

Byte-level BPE (any text round-trips), every digit a token of its own (numbers align by place), ChatML marks as
special tokens.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pagoda.bundled.chat_format import CHAT_TEMPLATE, END_OF_TEXT, IM_END, IM_START, render
from pagoda.bundled.tasks import SHORT_TASKS, TOOL_TASKS
from pagoda.bundled.tasks.recall import FACT, FactSource, filler_sentence
from pagoda.bundled.tasks.words import ADJECTIVES, CITIES, ITEMS, NAMES, NOUNS, PLACES, VERBS

SPECIAL_TOKENS = (END_OF_TEXT, IM_START, IM_END)
VOCAB_SIZE = 1536
MAX_POSITIONS = 2048


def train_tokenizer(seed: int) -> Tokenizer:
    """Learn the merges from generated text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_text(random.Random(seed)), trainer)
    return tokenizer


def _text(rng: random.Random, samples_per_task: int = 400) -> Iterator[str]:
    for generate in (*SHORT_TASKS.values(), *TOOL_TASKS.values()):
        for _ in range(samples_per_task):
            sample = generate(rng, "train")
            yield render(sample.messages, sample.tools)
    for _ in range(samples_per_task):
        yield " ".join([filler_sentence(rng), FACT.format(*FactSource(rng, "train").draw())])
    # Each word as it stands after a space and as it opens a string, often enough to become one token.
    for word in NAMES + CITIES + NOUNS + ITEMS:
        yield f" {word}" * 200 + f'"{word}"' * 200
    for phrase in ADJECTIVES + VERBS + PLACES:
        yield f" {phrase}" * 200


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json (with the chat template) and generation_config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_POSITIONS,
        "bos_token": None,
        "eos_token": IM_END,
        "pad_token": END_OF_TEXT,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    ids = {token: tokenizer.token_to_id(token) for token in SPECIAL_TOKENS}
    generation = {
        "eos_token_id": [ids[IM_END], ids[END_OF_TEXT]],
        "pad_token_id": ids[END_OF_TEXT],
    }
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")
