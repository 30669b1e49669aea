"""The cases of scheduler_cases.py on vLLM's scheduler. Runs under an interpreter that has vLLM:

    python tests/bench/vllm_scheduler.py MODEL          # a checkpoint folder of which only config.json is read

Prints one JSON object per line; `scheduler_core.py --vllm` puts them beside Pagoda's. One plan in flight is measured on
`Scheduler`, two on `AsyncScheduler`, as vLLM runs them.
"""

from __future__ import annotations

import argparse
import json
import pickle
from typing import Any

import torch
import vllm
from scheduler_cases import DECODE_ROWS, MAX_MODEL_LEN, MAX_NUM_BATCHED_TOKENS, Shape, measure
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.structured_output import StructuredOutputManager


class VllmSubject:
    """A `scheduler_cases.Subject`."""

    def __init__(self, model: str, shape: Shape) -> None:
        config = EngineArgs(
            model=model,
            skip_tokenizer_init=True,
            max_model_len=MAX_MODEL_LEN,
            max_num_seqs=shape.num_rows,
            max_num_batched_tokens=MAX_NUM_BATCHED_TOKENS,
            block_size=shape.block_size,
            enable_prefix_caching=True,
            async_scheduling=shape.depth > 1,
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = shape.num_blocks
        attention = FullAttentionSpec(block_size=shape.block_size, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)
        kv_cache = KVCacheConfig(
            num_blocks=shape.num_blocks,
            kv_cache_tensors=[],
            kv_cache_groups=[KVCacheGroupSpec(["layer"], attention)],
            hash_block_size=shape.block_size,
        )
        hash_function = get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)
        init_none_hash(hash_function)
        self._hasher = get_request_block_hasher(shape.block_size, hash_function)
        scheduler_class = AsyncScheduler if shape.depth > 1 else Scheduler
        self._scheduler = scheduler_class(
            vllm_config=config,
            kv_cache_config=kv_cache,
            structured_output_manager=StructuredOutputManager(config),
            block_size=shape.block_size,
            hash_block_size=shape.block_size,
            log_stats=True,
        )

    def build(self, number: int, token_ids: list[int], max_tokens: int) -> Request:
        return self._request(number, token_ids, max_tokens, None)

    def hash(self, request: Request) -> None:
        request.block_hashes = self._hasher(request)

    def lookup(self, request: Request) -> int:
        return int(self._scheduler.kv_cache_manager.get_computed_blocks(request)[1])

    def submit(self, number: int, token_ids: list[int], max_tokens: int) -> None:
        self._scheduler.add_request(self._request(number, token_ids, max_tokens, self._hasher))

    def plan(self) -> SchedulerOutput | None:
        output = self._scheduler.schedule()
        return output if output.total_num_scheduled_tokens else None

    def names_blocks(self, plan: SchedulerOutput) -> bool:
        return any(blocks is not None for blocks in plan.scheduled_cached_reqs.new_block_ids)

    def encode(self, plan: SchedulerOutput) -> bytes:
        # What vLLM's queue to its worker processes does.
        return pickle.dumps(plan, protocol=pickle.HIGHEST_PROTOCOL)

    def settle(self) -> None:
        pass

    def execute(self, plan: SchedulerOutput, encoded: bytes) -> tuple[Any, int]:
        ids = list(plan.num_scheduled_tokens)
        requests = self._scheduler.requests
        # A chunk of a prompt that goes on samples nothing.
        tokens = [[] if requests[each].is_prefill_chunk else [7] for each in ids]
        indices = {each: index for index, each in enumerate(ids)}
        result = ModelRunnerOutput(req_ids=ids, req_id_to_index=indices, sampled_token_ids=tokens)
        return (plan, result), sum(map(len, tokens))

    def commit(self, result: tuple[SchedulerOutput, ModelRunnerOutput]) -> None:
        self._scheduler.update_from_output(*result)

    def _request(self, number: int, token_ids: list[int], max_tokens: int, hasher: Any) -> Request:
        sampling = SamplingParams(max_tokens=max_tokens, ignore_eos=True, seed=number)
        return Request(str(number), token_ids, sampling, None, block_hasher=hasher)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--rows", type=int, nargs="+", default=DECODE_ROWS)
    parser.add_argument("--freeze", action="store_true")
    args = parser.parse_args()
    print(json.dumps({"version": vllm.__version__}), flush=True)
    for measurement in measure(lambda shape: VllmSubject(args.model, shape), rows=args.rows, freeze=args.freeze):
        print(json.dumps(measurement), flush=True)


if __name__ == "__main__":
    main()
