"""A checkpoint folder as GGUF files, by llama.cpp's own converter and quantizer.

    python tests/bench/peers/gguf_files.py CHECKPOINT OUTPUT LLAMA_CPP_SOURCES      # the conversion alone

The converter looks a tokenizer's pre-tokenizer up in a list of known models. Ours is in no list; it is GPT-2's.
"""

from __future__ import annotations

import importlib
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

QUANTIZED = ("q8_0", "q4_0")


def write_gguf(source: Path, llama_cpp: Path) -> None:
    """SOURCE.bf16.gguf and one per type in QUANTIZED; those that are there are left alone.

    llama_cpp: folder with `src` (llama.cpp's sources) and `bin` (what was built of them)
    """
    whole = source.with_name(f"{source.name}.bf16.gguf")
    if not whole.exists():
        # The converter changes its process: arguments, import path, and parts of itself.
        subprocess.run([sys.executable, __file__, source, whole, llama_cpp / "src"], check=True)
    for kind in QUANTIZED:
        target = source.with_name(f"{source.name}.{kind}.gguf")
        if not target.exists():
            subprocess.run(
                [llama_cpp / "bin" / "llama-quantize", whole, target, kind],
                check=True,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        print(target, flush=True)


def _convert(source: str, target: str, sources: str) -> None:
    sys.path[:0] = [sources, f"{sources}/gguf-py"]
    text_model: Any = importlib.import_module("conversion.base").TextModel
    text_model.get_vocab_base_pre = lambda self, tokenizer: "gpt-2"
    # Tried first for Llama, and found by its files; ours is no SentencePiece model.
    text_model._set_vocab_sentencepiece = lambda self: self._set_vocab_gpt2()
    sys.argv = ["convert_hf_to_gguf.py", source, "--outtype", "bf16", "--outfile", target]
    runpy.run_path(f"{sources}/convert_hf_to_gguf.py", run_name="__main__")


if __name__ == "__main__":
    _convert(*sys.argv[1:])
