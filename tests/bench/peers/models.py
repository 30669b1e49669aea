"""Checkpoints with random weights, on which every engine is measured: nothing is downloaded.

    python tests/bench/peers/models.py FOLDER [--models S M L] [--w8a8] [--gguf LLAMA_CPP]

    S    a Llama of 15 M parameters: so small that the serving around it is what costs
    M    the shape of Qwen2.5-0.5B
    L    the shape of Llama-3.2-1B

Weights are normal numbers from a fixed seed, in bfloat16. The tokenizer is a byte-level BPE, trained on the sources of
the Python standard library. Embeddings (tied to the head) of tokens outside TEXT_TOKENS are next to nothing, so that
greedy decoding never chooses one of them: each token generated is a piece of text, and every engine sends an event for
it.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gguf_files import write_gguf
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers.models import BPE
from torch import Tensor

TOKENIZER_VOCAB_SIZE = 32_000
# Of the tokenizer: neither special tokens nor single bytes, nor the last merges, which not every Python has alike.
TEXT_TOKENS = range(300, 31_000)

_STD = 0.02
_SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|end|>")
_CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@dataclass(frozen=True)
class Shape:
    """A decoder; what differs between the models."""

    model_type: str
    architecture: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    rope_theta: float
    rms_norm_eps: float
    max_positions: int
    qkv_bias: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "dtype": "bfloat16",
            "torch_dtype": "bfloat16",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "max_position_embeddings": self.max_positions,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta},
            "tie_word_embeddings": True,
            "attention_dropout": 0.0,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 2,
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of each, in the order in which they are drawn."""
        hidden, inner = self.hidden_size, self.intermediate_size
        heads, kv = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocab_size, hidden)
        for number in range(self.num_layers):
            layer = f"model.layers.{number}"
            for name, rows in (("q", heads), ("k", kv), ("v", kv)):
                yield f"{layer}.self_attn.{name}_proj.weight", (rows, hidden)
                if self.qkv_bias:
                    yield f"{layer}.self_attn.{name}_proj.bias", (rows,)
            yield f"{layer}.self_attn.o_proj.weight", (hidden, heads)
            yield f"{layer}.mlp.gate_proj.weight", (inner, hidden)
            yield f"{layer}.mlp.up_proj.weight", (inner, hidden)
            yield f"{layer}.mlp.down_proj.weight", (hidden, inner)
            yield f"{layer}.input_layernorm.weight", (hidden,)
            yield f"{layer}.post_attention_layernorm.weight", (hidden,)
        yield "model.norm.weight", (hidden,)


SHAPES = {
    "S": Shape("llama", "LlamaForCausalLM", 32_064, 256, 704, 8, 8, 4, 1e4, 1e-5, 8_192),
    "M": Shape("qwen2", "Qwen2ForCausalLM", 151_936, 896, 4_864, 24, 14, 2, 1e6, 1e-6, 32_768, qkv_bias=True),
    "L": Shape("llama", "LlamaForCausalLM", 128_256, 2_048, 8_192, 16, 32, 8, 5e5, 1e-5, 32_768),
}


def make(name: str, folder: Path) -> Path:
    """The checkpoint `name` below `folder`; left alone where it is there already."""
    target = folder / name
    if (target / "model.safetensors").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    _copy_tokenizer(folder, target)
    shape = SHAPES[name]
    _write_json(target / "config.json", shape.config())
    _write_json(target / "generation_config.json", {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2})
    _save(target, {tensor: _draw(tensor, size, seed) for seed, (tensor, size) in enumerate(shape.tensors())})
    print(f"{target}: {sum(math.prod(size) for _, size in shape.tensors()) / 1e6:.0f} M parameters", flush=True)
    return target


def make_w8a8(source: Path) -> Path:
    """`source` with int8 linear layers (a scale per row; inputs are quantized per token, as they come), in the
    compressed-tensors form that vLLM reads. Embeddings and head stay as they are."""
    target = source.with_name(f"{source.name}-w8a8")
    if (target / "model.safetensors").exists():
        return target
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
    weights = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel", "dynamic": False}
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "weights": weights,
                "input_activations": {**weights, "strategy": "token", "dynamic": True},
            }
        },
    }
    _write_json(target / "config.json", config)
    _save(target, dict(_quantized(load_file(source / "model.safetensors"))))
    print(target, flush=True)
    return target


def _quantized(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors.items():
        if not name.endswith("_proj.weight"):
            yield name, tensor
            continue
        scales = tensor.float().abs().amax(dim=1, keepdim=True) / 127
        yield name, (tensor.float() / scales).round().to(torch.int8)
        yield f"{name}_scale", scales.to(torch.bfloat16)


def _draw(name: str, shape: Sequence[int], seed: int) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(*shape, dtype=torch.bfloat16)
    if name.endswith("bias"):
        return torch.zeros(*shape, dtype=torch.bfloat16)
    drawn = torch.empty(*shape).normal_(0, _STD, generator=torch.Generator().manual_seed(seed))
    if name == "model.embed_tokens.weight":
        drawn[: TEXT_TOKENS.start] *= 0.01
        drawn[TEXT_TOKENS.stop :] *= 0.01
    return drawn.to(torch.bfloat16)


def _copy_tokenizer(folder: Path, target: Path) -> None:
    """Trained once per folder."""
    trained = folder / "tokenizer"
    if not (trained / "tokenizer.json").exists():
        trained.mkdir(parents=True, exist_ok=True)
        _train_tokenizer().save(str(trained / "tokenizer.json"))
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": "<|bos|>",
            "eos_token": "<|eos|>",
            "pad_token": "<|pad|>",
            "model_max_length": 32_768,
            "clean_up_tokenization_spaces": False,
            "chat_template": _CHAT_TEMPLATE,
        }
        _write_json(trained / "tokenizer_config.json", settings)
    shutil.copytree(trained, target, dirs_exist_ok=True)


def _train_tokenizer() -> Tokenizer:
    library = Path(sysconfig.get_paths()["stdlib"])
    sources = [path for pattern in ("*.py", "*/*.py") for path in sorted(library.glob(pattern))]
    sources = [path for path in sources if not {"site-packages", "test"} & set(path.relative_to(library).parts)]
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENIZER_VOCAB_SIZE,
        special_tokens=list(_SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train([str(path) for path in sources], trainer)
    if (size := tokenizer.get_vocab_size()) < TEXT_TOKENS.stop:
        raise SystemExit(
            f"this Python's sources make a vocabulary of {size} tokens only; {TEXT_TOKENS.stop} are needed"
        )
    return tokenizer


def _save(target: Path, tensors: Mapping[str, Tensor]) -> None:
    """Whole or not at all."""
    partial = target / "partial"
    save_file(dict(tensors), partial, metadata={"format": "pt"})
    partial.rename(target / "model.safetensors")


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    parser.add_argument("--w8a8", action="store_true", help="a copy with int8 linear layers for vLLM, too")
    parser.add_argument(
        "--gguf", type=Path, metavar="LLAMA_CPP", help="GGUF files for llama.cpp, too: bf16, q8_0, q4_0"
    )
    args = parser.parse_args()
    for name in args.models:
        source = make(name, args.folder)
        if args.w8a8:
            make_w8a8(source)
        if args.gguf:
            write_gguf(source, args.gguf)


if __name__ == "__main__":
    main()
