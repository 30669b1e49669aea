"""Trains the bundled model from nothing: `python -m pagoda.bundled.train [--draft]`.

The text is generated, the tokenizer is trained on it, and the run is planned by the clock: the learning rate decays
to zero as the minutes end. A run that is stopped goes on from its last checkpoint when started again.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from pagoda.bundled import CHAT_MODEL, DRAFT_MODEL
from pagoda.bundled.corpus import Batch, Corpus
from pagoda.bundled.evaluate import accuracy, held_out_samples
from pagoda.bundled.export import export
from pagoda.bundled.model import Llama, chat_config, draft_config
from pagoda.bundled.optimizer import Optimizers
from pagoda.bundled.schedule import plan_step
from pagoda.bundled.tokenizer import train_tokenizer

logger = logging.getLogger("pagoda.bundled.train")

TASK_WEIGHTS = {
    "copy": 10.0,
    "addition": 5.0,
    "json": 3.0,
    "reverse": 2.0,
    "sort": 2.0,
    "count": 1.0,
    "small_talk": 2.5,
    "multi_turn": 0.5,
}
EVALUATION_SEED = 1


@dataclass(frozen=True)
class TrainOptions:
    """Options of one run."""

    draft: bool = False
    """Train the draft model instead of the chat model."""
    minutes: float = 80.0
    """Length of the run, evaluation included."""
    out: Path = CHAT_MODEL
    """Folder the model is exported to, at every evaluation and at the end."""
    state: Path = Path("bundled-train.pt")
    """Checkpoint that a stopped run goes on from; the run leaves it behind."""
    seed: int = 0
    threads: int = 1
    log_every_s: float = 60.0
    evaluate_every_s: float = 300.0
    evaluation_samples: int = 24
    """Held-out samples per task and per recall distance."""


@dataclass
class Progress:
    """What happened so far; times in seconds of training, over all starts of the run."""

    step: int = 0
    tokens: int = 0
    elapsed_s: float = 0.0
    losses: list[tuple[float, float]] = field(default_factory=list)
    """(short tasks and tools, recall) per step since the last log line."""


class Trainer:
    """One run: weights, optimizers and the text they see."""

    def __init__(self, options: TrainOptions) -> None:
        torch.manual_seed(options.seed)
        self.options = options
        self.tokenizer: Tokenizer = train_tokenizer(seed=0)  # the same for every model and seed
        vocab_size = self.tokenizer.get_vocab_size()
        self.model = Llama(draft_config(vocab_size) if options.draft else chat_config(vocab_size))
        self.optimizers = Optimizers(self.model)
        self.progress = Progress()
        self.is_stopping = False
        if options.state.exists():
            self._load()
        # A run that goes on draws new text instead of repeating the old.
        self.rng = random.Random(f"{options.seed}-{self.progress.step}")
        self.corpus = Corpus(self.tokenizer, self.rng.randrange(2**63), dict(TASK_WEIGHTS))
        self.held_out = held_out_samples(options.evaluation_samples, EVALUATION_SEED)

    def stop(self) -> None:
        """Let the run end, with its state saved, after the step it is in."""
        self.is_stopping = True

    def run(self) -> None:
        """Train until the minutes are over; log, evaluate, save and export on the way."""
        parameters = sum(p.numel() for p in self.model.parameters())
        logger.info("parameters %d, minutes %.0f", parameters, self.options.minutes)
        total_s = self.options.minutes * 60
        last = logged = evaluated = time.monotonic()
        logged_tokens = self.progress.tokens
        while self.progress.elapsed_s < total_s:
            if self.is_stopping:
                self.save()
                return
            self.train_step(self.progress.elapsed_s / total_s)
            now = time.monotonic()
            self.progress.elapsed_s += now - last
            last = now
            if now - logged >= self.options.log_every_s:
                self._log((self.progress.tokens - logged_tokens) / (now - logged))
                logged, logged_tokens = now, self.progress.tokens
            if now - evaluated >= self.options.evaluate_every_s:
                self.save_and_evaluate()
                evaluated = time.monotonic()
        self.save_and_evaluate()

    def train_step(self, share: float) -> None:
        """One update. share: of the run that is over, in [0, 1]."""
        plan = plan_step(self.corpus, self.rng, share)
        tasks, recall = (self._backward(batch, weight=0.5) for batch in plan.batches)
        self.optimizers.step(share)
        self.progress.step += 1
        self.progress.tokens += plan.num_tokens
        self.progress.losses.append((tasks, recall))

    def _backward(self, batch: Batch, weight: float) -> float:
        """Add weight * (mean loss over the batch's targets) to the gradients; return the mean."""
        ids = torch.from_numpy(batch.ids)
        targets = torch.from_numpy(batch.targets)
        with torch.autocast("cpu", torch.bfloat16):
            logits: Tensor = self.model(ids[:, :-1], targets[:, 1:])
        loss = F.cross_entropy(logits.float(), ids[:, 1:][targets[:, 1:]])
        value = loss.item()
        if value != value:
            raise FloatingPointError(f"the loss is not a number at step {self.progress.step}")
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        return value

    def save_and_evaluate(self) -> None:
        """Save the state, export the model, log held-out accuracy per task."""
        self.save()
        export(self.model, self.tokenizer, self.options.out)
        scores = {task: accuracy(self.model, self.tokenizer, samples) for task, samples in self.held_out.items()}
        logger.info("held out: %s", ", ".join(f"{task} {score:.0%}" for task, score in scores.items()))

    def _log(self, tokens_per_s: float) -> None:
        tasks, recall = (sum(column) / len(column) for column in zip(*self.progress.losses, strict=True))
        self.progress.losses.clear()
        logger.info(
            "step %d, %.1f min, %.1f M tokens, %.0f tokens/s, loss: tasks %.4f, recall %.4f",
            self.progress.step,
            self.progress.elapsed_s / 60,
            self.progress.tokens / 1e6,
            tokens_per_s,
            tasks,
            recall,
        )

    def save(self) -> None:
        """Write the checkpoint that a stopped run goes on from."""
        state = {
            "tokenizer": self.tokenizer.to_str(),
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state_dict(),
            "progress": (self.progress.step, self.progress.tokens, self.progress.elapsed_s),
        }
        temporary = self.options.state.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.options.state)

    def _load(self) -> None:
        state = torch.load(self.options.state)
        self.tokenizer = Tokenizer.from_str(state["tokenizer"])
        self.model.load_state_dict(state["model"])
        self.optimizers.load_state_dict(state["optimizers"])
        self.progress = Progress(*state["progress"])
        logger.info("going on from step %d", self.progress.step)


def parse_options(arguments: list[str] | None = None) -> TrainOptions:
    """Options from the command line."""
    defaults = TrainOptions()
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--draft", action="store_true", help="train the draft model")
    parser.add_argument("--minutes", type=float, default=defaults.minutes, help="length of the run")
    parser.add_argument("--out", type=Path, help="folder to export to (default: the bundled one)")
    parser.add_argument("--state", type=Path, default=defaults.state, help="checkpoint of a run that can go on")
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--threads", type=int, default=defaults.threads, help="CPU threads")
    parser.add_argument("--evaluation-samples", type=int, default=defaults.evaluation_samples)
    parsed = vars(parser.parse_args(arguments))
    parsed["out"] = parsed["out"] or (DRAFT_MODEL if parsed["draft"] else CHAT_MODEL)
    return TrainOptions(**parsed)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    options = parse_options()
    torch.set_num_threads(options.threads)
    trainer = Trainer(options)
    signal.signal(signal.SIGTERM, lambda *_: trainer.stop())
    trainer.run()


if __name__ == "__main__":
    main()
