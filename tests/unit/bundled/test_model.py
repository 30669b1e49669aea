"""The training model, its optimizer and its export."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from pagoda.bundled.corpus import Corpus
from pagoda.bundled.evaluate import accuracy
from pagoda.bundled.export import export, load_exported
from pagoda.bundled.model import Llama, ModelConfig, chat_config, draft_config
from pagoda.bundled.optimizer import Optimizers, orthogonalize, schedule
from pagoda.bundled.schedule import plan_step
from pagoda.bundled.tasks import SHORT_TASKS
from pagoda.bundled.train import TASK_WEIGHTS, Trainer, TrainOptions


def small_model(tokenizer: Tokenizer) -> Llama:
    """Random weights everywhere, also where training starts from zero."""
    torch.manual_seed(0)
    model = Llama(
        ModelConfig(tokenizer.get_vocab_size(), width=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_width=48)
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def test_exported_model_has_the_same_logits_in_transformers(tokenizer: Tokenizer, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model = small_model(tokenizer)
    export(model, tokenizer, tmp_path, torch.float32)
    loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(0, tokenizer.get_vocab_size(), (2, 50))
    with torch.no_grad():
        expected = model(ids)
        actual = loaded(ids).logits.flatten(0, 1)
    torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-3)


def test_exported_model_reads_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = small_model(tokenizer)
    export(model, tokenizer, tmp_path, torch.float32)
    read, read_tokenizer = load_exported(tmp_path)
    assert read.config == model.config
    assert read_tokenizer.to_str() == tokenizer.to_str()
    for ours, theirs in zip(read.parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_export_leaves_no_other_files(tokenizer: Tokenizer, tmp_path: Path) -> None:
    for _ in range(2):
        export(small_model(tokenizer), tokenizer, tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_logits_at_positions_are_those_of_all(tokenizer: Tokenizer) -> None:
    model = small_model(tokenizer)
    ids = torch.randint(0, 100, (2, 10))
    positions = torch.rand(2, 10) < 0.5
    torch.testing.assert_close(model(ids, positions), model(ids).view(2, 10, -1)[positions])


def test_draft_is_at_most_a_quarter(tokenizer: Tokenizer) -> None:
    def size(config: ModelConfig) -> int:
        return sum(parameter.numel() for parameter in Llama(config).parameters())

    vocab_size = tokenizer.get_vocab_size()
    assert 4 * size(draft_config(vocab_size)) <= size(chat_config(vocab_size))


@pytest.mark.parametrize("shape", [(2, 16, 48), (2, 48, 16), (1, 8, 8)])
def test_orthogonalize_brings_singular_values_near_one(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalize(torch.randn(shape)).float())
    assert values.min() > 0.4
    assert values.max() < 1.4


def test_schedule_warms_up_stays_and_decays() -> None:
    assert schedule(0.0) < 0.1
    assert schedule(0.1) == schedule(0.7) == 1.0
    assert 0.0 < schedule(0.9) < 1.0
    assert schedule(1.0) == 0.0


def test_batches_repeat_from_a_seed_and_mark_the_answers(tokenizer: Tokenizer) -> None:
    def draw() -> list[list[int]]:
        corpus = Corpus(tokenizer, 3, TASK_WEIGHTS)
        return [plan.batches[1].ids.tolist() for plan in (plan_step(corpus, random.Random(1), 0.03) for _ in range(2))]

    assert draw() == draw()
    batch = Corpus(tokenizer, 3, TASK_WEIGHTS).short_batch(4, 128, is_chained=True)
    end = tokenizer.token_to_id("<|im_end|>")
    assert batch.ids.shape == batch.targets.shape == (4, 128)
    assert (batch.ids[batch.targets] == end).sum() >= 4
    assert not batch.targets[batch.ids == tokenizer.token_to_id("<|im_start|>")].any()


def test_a_stopped_run_goes_on(tmp_path: Path) -> None:
    options = TrainOptions(
        minutes=0, out=tmp_path / "model", state=tmp_path / "run.pt", draft=True, evaluation_samples=1
    )
    first = Trainer(options)
    first.train_step(0.0)
    first.train_step(0.5)
    first.save()
    second = Trainer(options)
    assert second.progress.step == 2
    for ours, theirs in zip(second.model.parameters(), first.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    second.train_step(0.5)
    assert second.progress.step == 3


def test_training_lowers_the_loss(tokenizer: Tokenizer) -> None:
    torch.manual_seed(0)
    model = Llama(ModelConfig(tokenizer.get_vocab_size(), width=32, num_layers=1, mlp_width=32))
    optimizers = Optimizers(model)
    batch = Corpus(tokenizer, 0, {"small_talk": 1.0}).short_batch(8, 64, is_chained=False)
    ids, targets = torch.from_numpy(batch.ids), torch.from_numpy(batch.targets)
    losses = []
    for _ in range(30):
        logits = model(ids[:, :-1], targets[:, 1:])
        loss = torch.nn.functional.cross_entropy(logits, ids[:, 1:][targets[:, 1:]])
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(0.5)
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_accuracy_counts_whole_answers(tokenizer: Tokenizer) -> None:
    """A model of random weights solves nothing; the count must not depend on how samples are grouped."""
    rng = random.Random(0)
    samples = [SHORT_TASKS["copy"](rng, "held_out") for _ in range(5)]
    assert accuracy(small_model(tokenizer), tokenizer, samples) == 0.0
