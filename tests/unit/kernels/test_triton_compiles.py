"""Every kernel compiles for every target, ahead of time and with no GPU, and takes no more than the target has.

Representative variants by default; all of them with PAGODA_COMPILE_ALL=1 (`make compile-all`), which takes minutes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from pagoda.kernels.attention import AttentionBatch, AttentionParams, HostLengths
from pagoda.kernels.triton.ahead import TARGETS, Launch, compile_for, recorded_launches
from pagoda.kernels.triton.backend import TritonBackend
from pagoda.kernels.triton.tuning import TUNINGS, tuned_for
from pagoda.kernels.triton.variants import Variant, variants

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

ALL = os.environ.get("PAGODA_COMPILE_ALL") == "1"
VARIANTS = [variant for variant in variants() if variant.representative or ALL]


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What Triton compiled before is not taken for compiled now."""
    patch = pytest.MonkeyPatch()
    patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
    yield
    patch.undo()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
@pytest.mark.parametrize("target", TARGETS)
def test_fits_without_spilling(target: str, variant: Variant) -> None:
    launches = variant.launches(target)
    assert launches
    for launch in launches:
        took = compile_for(launch, target)
        assert took.shared_bytes <= TUNINGS[target].shared_bytes, launch
        assert took.spilled == 0, launch
        assert took.registers > 0


def test_limits_are_those_of_the_chips() -> None:
    limits = {name: tuning.shared_bytes for name, tuning in TUNINGS.items()}
    assert limits == {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536, "other": 65536}


def test_spills_are_seen() -> None:
    """The check above can fail: a tile that no register file holds."""
    launch = attention_launches("sm_90", AttentionParams(0.1))[-1]
    launch.constants.update(KEYS=128)
    launch.options.update(num_warps=4)
    assert compile_for(launch, "sm_90").spilled > 0


@pytest.mark.parametrize("num_tokens", [8, 40], ids=["decoding", "mixed"])
@pytest.mark.parametrize("host", [False, True])
def test_a_step_is_laid_out_without_reading_from_the_device(num_tokens: int, host: bool) -> None:
    """Tensors without memory: whoever looked into one would raise."""
    launches = attention_launches("sm_90", AttentionParams(0.1), num_tokens=num_tokens, host=host)
    names = [launch.name for launch in launches]
    assert ("_attend_tile" in names) == (num_tokens > 8)
    assert names[0] == "_attend_split"


def attention_launches(
    target: str, params: AttentionParams, *, num_tokens: int = 40, host: bool = False
) -> list[Launch]:
    """Of 8 sequences, the last of which brings all tokens but 7."""
    cu_seqlens = np.array([*range(8), num_tokens], np.int32)
    lengths = HostLengths(cu_seqlens, np.full(8, 5000, np.int32)) if host else None
    batch = AttentionBatch(
        cu_seqlens_q=torch.empty(9, dtype=torch.int32, device="meta"),
        seq_lens=torch.empty(8, dtype=torch.int32, device="meta"),
        block_tables=torch.empty((8, 512), dtype=torch.int32, device="meta"),
        slot_mapping=torch.empty(num_tokens, dtype=torch.int64, device="meta"),
        host=lengths,
    )
    cache = torch.empty((5000, 16, 8, 128), dtype=torch.bfloat16, device="meta")
    q = torch.empty((num_tokens, 32, 128), dtype=torch.bfloat16, device="meta")
    with tuned_for(target), recorded_launches() as launches:
        TritonBackend().plan(batch, 16).attend(q, cache, cache, params)
    return launches
