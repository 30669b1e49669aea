"""The canary's table with each way to compute: one table where all answer with the same texts, else several.

    python tests/bench/kernels_canary.py --kernels reference cpu [--samples N] [--dtype float32]
    python tests/bench/kernels_canary.py --kernels reference triton --device cuda
    TRITON_INTERPRET=1 python tests/bench/kernels_canary.py --kernels reference triton --samples 1    # an hour

Exits with 1 where two of them differ in a text.
"""

from __future__ import annotations

import argparse
import sys

from report import circumstances

from pagoda.bench.canary import canary_samples, format_table
from pagoda.bench.offline.canary import answers, grade
from pagoda.bundled import CHAT_MODEL
from pagoda.bundled.export import load_exported
from pagoda.executor.config import KERNELS, ExecutorOptions
from pagoda.offline.engine import Engine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=["reference", "cpu"])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="float32", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--samples", type=int, default=20, help="questions per row")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(circumstances())
    _, tokenizer = load_exported(CHAT_MODEL)
    asked = list(canary_samples(args.samples, args.seed))
    kinds: dict[tuple[str, ...], list[str]] = {}
    for kernels in args.kernels:
        options = ExecutorOptions(
            model=str(CHAT_MODEL), device=args.device, dtype=args.dtype, kernels=kernels, max_num_seqs=32
        )
        with Engine(options) as engine:
            kinds.setdefault(tuple(answers(engine, tokenizer, asked)), []).append(kernels)
    for texts, names in kinds.items():
        print(f"\n{', '.join(names)}, {args.dtype}:\n{format_table(grade(asked, texts))}")
    print(f"\n{'the same text for every question' if len(kinds) == 1 else 'some texts differ'}")
    return 0 if len(kinds) == 1 else 1


if __name__ == "__main__":
    sys.exit(main())
