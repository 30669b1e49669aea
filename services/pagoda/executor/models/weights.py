"""Builds a decoder's weights out of a checkpoint's tensors: names, shapes, fused matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from pagoda.executor.models.config import ModelConfig
from pagoda.executor.models.decoder import DecoderWeights, LayerWeights
from pagoda.executor.models.families import FAMILIES
from pagoda.executor.models.linear import DenseLinear, Linear
from pagoda.executor.models.ranks import ONE_RANK, Ranks, share

Shape = tuple[int, ...]
ReadTensor = Callable[[str, Shape], Tensor]
"""Gives the tensor of a name and shape, in any dtype and on any device."""
MakeLinear = Callable[[Tensor, Tensor | None], Linear]
"""(weight [out_features, in_features], bias [out_features] or None) -> the layer."""

_PREFIX = "model."
_HEAD = "lm_head.weight"
EMBEDDING = f"{_PREFIX}embed_tokens.weight"


def build_weights(
    config: ModelConfig,
    read: ReadTensor,
    dtype: torch.dtype,
    device: torch.device,
    *,
    linear: MakeLinear,
    gate_up: MakeLinear,
    head: MakeLinear,
    ranks: Ranks = ONE_RANK,
) -> DecoderWeights:
    """Reads every tensor of the model once, into tensors of `dtype` on `device`; each rank keeps its share.

    config: of the whole model
    linear, gate_up, head: make the layers of the decoder, those of them with an activation, and the one behind it, of a
    weight and a bias
    """
    builder = _Builder(config, read, dtype, device, linear, gate_up, ranks)
    layers = [builder.layer(f"{_PREFIX}layers.{i}.") for i in range(len(config.layers))]
    embedding = builder.looked_up(EMBEDDING, config.vocab_size, config.hidden_size)
    head_weight = embedding
    if not config.tied_embeddings:
        head_weight = builder.stacked((_HEAD,), (config.vocab_size,), config.hidden_size)
    norm = builder.norm(f"{_PREFIX}norm", config.hidden_size)
    return DecoderWeights(embedding, layers, norm, head(head_weight, None))


def expected_shapes(config: ModelConfig) -> dict[str, Shape]:
    """Name and shape of every tensor that `build_weights` reads, in that order."""
    shapes: dict[str, Shape] = {}

    def record(name: str, shape: Shape) -> Tensor:
        shapes[name] = shape
        return torch.empty(shape, device="meta")

    dense = DenseLinear
    build_weights(config, record, torch.float32, torch.device("meta"), linear=dense, gate_up=dense, head=dense)
    return shapes


def is_ignored(config: ModelConfig, name: str) -> bool:
    """Whether a checkpoint may hold a tensor that `build_weights` does not read."""
    # A tied head is sometimes saved too; old checkpoints hold the rotary frequencies.
    return (name == _HEAD and config.tied_embeddings) or name.endswith("rotary_emb.inv_freq")


class _Builder:
    def __init__(
        self,
        config: ModelConfig,
        read: ReadTensor,
        dtype: torch.dtype,
        device: torch.device,
        linear: MakeLinear,
        gate_up: MakeLinear,
        ranks: Ranks,
    ) -> None:
        self._config = config
        self._names = FAMILIES[config.architecture].names
        self._read = read
        self._dtype = dtype
        self._device = device
        self._make_linear = linear
        self._make_gate_up = gate_up
        self._ranks = ranks

    def layer(self, prefix: str) -> LayerWeights:
        config, names = self._config, self._names
        width = config.hidden_size
        heads = (config.num_heads * config.head_dim, *[config.num_kv_heads * config.head_dim] * 2)
        return LayerWeights(
            qkv=self._make_linear(*self._stacked_layer(prefix, names.qkv, heads, width, config.qkv_bias)),
            o=self._summed(prefix, names.o, width, heads[0], config.o_bias),
            gate_up=self._make_gate_up(
                *self._stacked_layer(prefix, names.gate_up, (config.intermediate_size,) * 2, width, config.mlp_bias)
            ),
            down=self._summed(prefix, names.down, width, config.intermediate_size, config.mlp_bias),
            attention_norm=self.norm(prefix + names.attention_norm, width),
            mlp_norm=self.norm(prefix + names.mlp_norm, width),
            q_norm=self.norm(prefix + names.q_norm, config.head_dim) if config.qk_norm else None,
            k_norm=self.norm(prefix + names.k_norm, config.head_dim) if config.qk_norm else None,
            attention_out_norm=self.norm(prefix + names.attention_out_norm, width) if config.sandwich_norms else None,
            mlp_out_norm=self.norm(prefix + names.mlp_out_norm, width) if config.sandwich_norms else None,
        )

    def looked_up(self, name: str, rows: int, columns: int) -> Tensor:
        """This rank's rows, [rows / ranks, columns]: a view of the file where that has the dtype. A step reads a few
        rows; to copy all of them takes long, because memory that nobody used before is slow (0.13 to 1.9 GB/s in a
        virtual machine)."""
        return share(self._read(name, (rows, columns)), 0, self._ranks).to(self._device, self._dtype)

    def stacked(self, names: tuple[str, ...], rows: tuple[int, ...], *columns: int) -> Tensor:
        """This rank's rows of the tensors called `names`, one below the other: [sum(rows) / ranks, *columns]."""
        kept = [each // self._ranks.size for each in rows]
        stack = torch.empty(sum(kept), *columns, dtype=self._dtype, device=self._device)
        parts = self._parts(names, rows, *columns)
        for target, part in zip(torch.split(stack, kept), parts, strict=True):
            target.copy_(share(part, 0, self._ranks))
        return stack

    def _parts(self, names: tuple[str, ...], rows: tuple[int, ...], *columns: int) -> Iterator[Tensor]:
        if len(names) == 1:  # the checkpoint has them stacked already
            yield from torch.split(self._read(names[0], (sum(rows), *columns)), list(rows))
        else:
            for name, each in zip(names, rows, strict=True):
                yield self._read(name, (each, *columns))

    def norm(self, name: str, dim: int) -> Tensor:
        """[dim]: the factors, in the model's dtype; in float32 where 1 is added (see `rms_norm`)."""
        weight = self._read(f"{name}.weight", (dim,))
        if self._config.norm_plus_one:
            return (weight.to(self._device, torch.float32) + 1.0).contiguous()
        # A copy: the tensor read may be a view of a file.
        return torch.empty(dim, dtype=self._dtype, device=self._device).copy_(weight)

    def _stacked_layer(
        self, prefix: str, names: tuple[str, ...], rows: tuple[int, ...], columns: int, bias: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Weight and bias; the outputs are shared out to the ranks."""
        weight = self.stacked(tuple(f"{prefix}{name}.weight" for name in names), rows, columns)
        biases = self.stacked(tuple(f"{prefix}{name}.bias" for name in names), rows) if bias else None
        return weight, biases

    def _summed(self, prefix: str, name: str, rows: int, columns: int, bias: bool) -> Linear:
        """Its inputs are shared out, and the ranks' results are to be added: one of them has the bias."""
        whole = self._read(f"{prefix}{name}.weight", (rows, columns))
        weight = torch.empty(rows, columns // self._ranks.size, dtype=self._dtype, device=self._device)
        weight.copy_(share(whole, 1, self._ranks))
        biases = None
        if bias:
            whole_bias = self._read(f"{prefix}{name}.bias", (rows,))
            if self._ranks.rank == 0:
                biases = torch.empty(rows, dtype=self._dtype, device=self._device).copy_(whole_bias)
        return self._make_linear(weight, biases)
