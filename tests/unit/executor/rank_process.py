"""One rank of a group, as a process: loads its share of a model, computes a prompt and a next token, keeps the logits.

python rank_process.py MODEL RANK SIZE RENDEZVOUS OUTPUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor

from pagoda.executor.kv_cache import KvLayout, allocate, split_layers
from pagoda.executor.loader import load_model
from pagoda.executor.models.ranks import ONE_RANK, Ranks, TorchRanks
from pagoda.kernels.attention import AttentionBatch

BLOCK_SIZE = 4
PROMPT = [3, 1, 59, 26, 53, 58, 9, 7, 32, 38]


@torch.inference_mode()
def logits(folder: Path, ranks: Ranks = ONE_RANK) -> dict[str, Tensor]:
    """Of every token of a prompt, of the token behind it, and of that one alone when only it is wanted."""
    model = load_model(folder, device=torch.device("cpu"), dtype="float32", kernels="reference", ranks=ranks)
    config = model.decoder.config
    layout = KvLayout(3, BLOCK_SIZE, len(config.layers), config.num_kv_heads, config.head_dim, torch.float32)
    kv = split_layers(allocate(layout, torch.device("cpu")).zero_())

    def step(tokens: list[int], first: int, wanted: Tensor | None = None) -> Tensor:
        positions = torch.arange(first, first + len(tokens))
        batch = AttentionBatch(
            cu_seqlens_q=torch.tensor([0, len(tokens)], dtype=torch.int32),
            seq_lens=torch.tensor([first + len(tokens)], dtype=torch.int32),
            block_tables=torch.arange(3, dtype=torch.int32)[None],
            slot_mapping=positions,
        )
        plan = model.kernels.attention.plan(batch, BLOCK_SIZE)
        return model.decoder.logits(model.decoder.forward(torch.tensor(tokens), positions, kv, plan, wanted))

    return {
        "prompt": step(PROMPT, 0),
        "next": step([11], len(PROMPT)),
        "last": step(PROMPT, 0, torch.tensor([len(PROMPT) - 1])),
        "keys": torch.stack([k_cache for k_cache, _ in kv]),
    }


def main() -> None:
    model, rank, size, rendezvous, output = sys.argv[1:]
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=int(rank), world_size=int(size))
    try:
        assert dist.group.WORLD
        save_file(logits(Path(model), TorchRanks(dist.group.WORLD)), output)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
