"""What an executor tells others about itself, as messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pagoda.executor.config import ExecutorOptions
from pagoda.v1 import common_pb2, executor_pb2, scheduler_pb2

if TYPE_CHECKING:  # torch is loaded later
    from pagoda.executor.kv_cache import KvLayout
    from pagoda.executor.runner import Runner
    from pagoda.executor.transfers import Transfers


class Description:
    """Of one runner, under the options it was made with."""

    def __init__(self, options: ExecutorOptions, runner: Runner, transfers: Transfers | None = None) -> None:
        self._options = options
        self._runner = runner
        self._transfers = transfers

    def registration(self) -> scheduler_pb2.ExecutorRegistration:
        """For the scheduler."""
        return scheduler_pb2.ExecutorRegistration(
            name=self._options.display_name,
            role=self._role(),
            model=self._model(),
            kv_layout=describe_layout(self._runner.layout),
            max_num_seqs=self._options.max_num_seqs,
            max_num_batched_tokens=self._runner.max_num_batched_tokens,
            host_memory=self._host_memory(),
            transfer_endpoints=self._transfers.endpoints if self._transfers else (),
            transfers=self._transfers.stats() if self._transfers else None,
        )

    def info(self) -> executor_pb2.GetInfoResponse:
        """For operators."""
        return executor_pb2.GetInfoResponse(
            name=self._options.display_name,
            role=self._role(),
            model=self._model(),
            kv_layout=describe_layout(self._runner.layout),
            weight_bytes=self._runner.model.decoder.weights.num_bytes,
            kv_cache_bytes=self._runner.layout.num_bytes,
            attention_backend=self._runner.attention.name,
            device=self._runner.device_name,
            steps=self._runner.steps,
        )

    def _role(self) -> str:
        """The name of a `common_pb2.ExecutorRole`."""
        return f"EXECUTOR_ROLE_{self._options.role.upper()}"

    def _model(self) -> common_pb2.ModelInfo:
        model = self._runner.model
        config = model.decoder.config
        return common_pb2.ModelInfo(
            fingerprint=model.fingerprint,
            model_type=config.model_type,
            max_model_len=model.max_model_len,
            vocab_size=config.vocab_size,
            eos_token_ids=model.eos_token_ids,
            dtype=str(model.decoder.dtype).removeprefix("torch."),
        )

    def _host_memory(self) -> scheduler_pb2.HostMemory | None:
        memory = self._runner.host_memory
        if memory is None:
            return None
        return scheduler_pb2.HostMemory(num_blocks=memory.num_blocks, swap_only=memory.swap_only)


def describe_layout(layout: KvLayout) -> common_pb2.KvLayout:
    """The shape of a cache."""
    return common_pb2.KvLayout(
        block_size=layout.block_size,
        num_blocks=layout.num_blocks,
        num_layers=layout.num_layers,
        num_kv_heads=layout.num_kv_heads,
        head_dim=layout.head_dim,
        dtype=str(layout.dtype).removeprefix("torch."),
    )
