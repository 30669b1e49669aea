"""How much of a GPU's memory steps leave to the KV cache: found out by running the largest ones before it exists.

Graphs know the addresses of their tensors, the cache's among them, so they can only be made once it is there. What they
and the largest step will take is therefore measured with a cache of one block, and given back.
"""

from __future__ import annotations

import gc
from dataclasses import replace

import torch

from pagoda.executor.device.graph import MakeGraph
from pagoda.executor.device.steps import DeviceSteps
from pagoda.executor.kv_cache import KvLayout, allocate, split_layers
from pagoda.executor.loader import Model
from pagoda.executor.machine import available_bytes


def free_beside_steps(
    model: Model, layout: KvLayout, make_graph: MakeGraph, *, max_num_seqs: int, max_num_batched_tokens: int
) -> int:
    """Bytes of the GPU's memory that are free while the largest step and the largest graph have what they need.

    layout: of the cache, whose number of blocks does not matter
    make_graph: for this measurement only
    """
    assert model.kernels.sample
    device = model.decoder.device
    one_block = replace(layout, num_blocks=1)
    steps = DeviceSteps(
        model,
        one_block,
        split_layers(allocate(one_block, device)),
        model.kernels.attention,
        model.kernels.sample,
        make_graph,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
    )
    steps.run_largest()
    # The others share its memory.
    steps.capture([steps.most_rows])
    torch.cuda.synchronize()
    # torch keeps what the step has used and freed, so it counts as taken.
    free = available_bytes(device)
    del steps
    gc.collect()
    torch.cuda.empty_cache()
    return free
