"""What cannot be started ends, with one message that names what is wrong: as one process, and as the whole stack."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import PagodaProcess, descendants, free_port

from pagoda.bundled import CHAT_MODEL

Break = Callable[[Path], object]


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def lose_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def edit_header(folder: Path, edit: Callable[[dict[str, dict[str, object]]], object]) -> None:
    path = folder / "model.safetensors"
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


def rename_a_tensor(folder: Path) -> None:
    edit_header(folder, lambda header: header.update({"model.extra.weight": header.pop("model.norm.weight")}))


def flatten_a_tensor(folder: Path) -> None:
    def flatten(header: dict[str, dict[str, object]]) -> None:
        header["model.norm.weight"]["shape"] = [1, *header["model.norm.weight"]["shape"]]  # type: ignore[misc]

    edit_header(folder, flatten)


def call_it_integers(folder: Path) -> None:
    edit_header(folder, lambda header: header["model.norm.weight"].update(dtype="I16"))


def edit_config(**values: object) -> Break:
    def edit(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return edit


def nothing(folder: Path) -> None:
    pass


# Label -> how the bundled model is broken, options, what the message must say.
CASES: dict[str, tuple[Break, list[str], str]] = {
    "truncated": (truncate, [], "model.safetensors is not a valid safetensors file (truncated download?)"),
    "shard": (lose_a_shard, [], "model-00002-of-00002.safetensors: No such file or directory"),
    "tensor": (rename_a_tensor, [], "tensor model.norm.weight [128] is missing"),
    "shape": (flatten_a_tensor, [], "tensor model.norm.weight has shape [1, 128], expected [128]"),
    "dtype": (call_it_integers, [], "tensor model.norm.weight is of I16, not of F64, F32, F16, BF16"),
    "config": (lambda folder: (folder / "config.json").write_text("{"), [], "config.json is not valid JSON"),
    "no config": (lambda folder: (folder / "config.json").unlink(), [], "it has no config.json"),
    "architecture": (
        edit_config(architectures=["MambaForCausalLM"]),
        [],
        "config.json: architecture MambaForCausalLM is not supported",
    ),
    "weights": (edit_config(vocab_size=2**31 - 1), ["--load-format", "dummy"], "not enough memory for the weights"),
    "cache": (nothing, ["--num-gpu-blocks-override", "1000000000"], "GiB are free: lower --num-gpu-blocks-override"),
    "rows": (nothing, ["--max-num-seqs", "1000000000000"], "--max-num-seqs"),
    "options": (nothing, ["--kernels", "reference", "--quantization", "int8"], "--quantization int8 needs --kernels"),
}


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., PagodaProcess]]:
    started: list[PagodaProcess] = []

    def start(*arguments: str) -> PagodaProcess:
        started.append(PagodaProcess(tmp_path / f"output-{len(started)}", *arguments))
        return started[-1]

    yield start
    for process in started:
        process.close()


@pytest.mark.parametrize("case", CASES)
def test_one_message_and_an_exit_code(start: Callable[..., PagodaProcess], tmp_path: Path, case: str) -> None:
    break_model, options, message = CASES[case]
    model = shutil.copytree(CHAT_MODEL, tmp_path / "model")
    break_model(model)
    options = [str(model), "--device", "cpu", *options]
    # Both at once: most of the time is that of importing torch.
    executor = start("executor", *options, "--listen", f"unix:{tmp_path}/executor.sock")
    stack = start("serve", *options, "--port", str(free_port()))
    for process in (executor, stack):
        assert process.wait(60) == 1, process.output
        assert message in process.output
        assert "Traceback" not in process.output
        assert "restarting" not in process.output
    assert executor.output.count(message) == 1
    assert descendants(stack.pid) == []
