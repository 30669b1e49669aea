"""A training model as a Hugging Face Llama folder: written file by file, each replaced at once; and read back."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from pagoda.bundled.chat_format import END_OF_TEXT, IM_END
from pagoda.bundled.model import Llama, ModelConfig
from pagoda.bundled.tokenizer import write_tokenizer


def export(model: Llama, tokenizer: Tokenizer, folder: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write weights, configuration and tokenizer; a reader never sees half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the moves stay within one file system.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".export-") as temporary:
        staging = Path(temporary)
        weights = {f"model.{name}": p.detach().to(dtype).contiguous() for name, p in model.named_parameters()}
        save_file(weights, str(staging / "model.safetensors"), metadata={"format": "pt"})
        config = llama_config(model.config, tokenizer, dtype)
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        write_tokenizer(tokenizer, staging)
        for file in sorted(staging.iterdir()):
            file.chmod(0o644)  # save_file makes its file private
            os.replace(file, folder / file.name)


def load_exported(folder: Path) -> tuple[Llama, Tokenizer]:
    """Read a folder that `export` wrote; the weights become float32."""
    config = json.loads((folder / "config.json").read_text())
    model = Llama(
        ModelConfig(
            vocab_size=config["vocab_size"],
            width=config["hidden_size"],
            num_layers=config["num_hidden_layers"],
            num_heads=config["num_attention_heads"],
            num_kv_heads=config["num_key_value_heads"],
            head_dim=config["head_dim"],
            mlp_width=config["intermediate_size"],
            rope_theta=config["rope_theta"],
            norm_eps=config["rms_norm_eps"],
            max_positions=config["max_position_embeddings"],
        )
    )
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name.removeprefix("model."): weight for name, weight in weights.items()})
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def llama_config(config: ModelConfig, tokenizer: Tokenizer, dtype: torch.dtype) -> dict[str, Any]:
    """The content of config.json."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_positions,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": None,
        "eos_token_id": tokenizer.token_to_id(IM_END),
        "pad_token_id": tokenizer.token_to_id(END_OF_TEXT),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
