"""The command line itself: help, versions, one-line errors, exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pagoda.cli.commands import COMMANDS
from pagoda.cli.main import main


def exit_of(*arguments: str) -> int:
    """The exit code, whether it is returned or raised by argparse."""
    try:
        return main(arguments)
    except SystemExit as exit:
        return int(exit.code or 0)


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("--version") == 0
    assert capsys.readouterr().out.startswith("pagoda 0.")


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of(command, "--help") == 0
    assert f"usage: pagoda {command}" in capsys.readouterr().out


def test_help_lists_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("--help") == 0
    output = capsys.readouterr().out
    assert all(f"\n  {name} " in output for name in COMMANDS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "invalid choice: 'nothing'"),
        ([], "the following arguments are required: command"),
        (["serve", "--port", "http"], "argument --port: invalid int value: 'http'"),
        (["serve", "--port", "70000"], "port is 70000; it must be between 1 and 65535"),
        (["serve", "--executors", "0"], "executors is 0; it must be at least 1"),
        (["serve", "--block-size", "0"], "block-size is 0; it must be at least 1"),
        (["serve", "--nothing"], "unrecognized arguments: --nothing"),
        (["gateway", "--tokenizers", "nowhere"], "'nowhere' is not an address"),
        (["executor", "--config", "/no/such/file"], "cannot read the configuration file /no/such/file"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_of(*arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("pagoda")
    assert message in last


def test_missing_model_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("executor", "/no/such/model") == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "pagoda executor: '/no/such/model' is neither a checkpoint folder nor a hub id" in error


def test_configuration_of_the_gateway_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_of("gateway", "--print-config", "--tokenizers", "tokenizer:50051") == 0
    assert "address: tokenizer" in capsys.readouterr().out.replace('"', "")


def test_child_ends_with_a_parent_that_is_gone() -> None:
    """A child that starts after its supervisor was killed must not stay."""
    done = subprocess.run(
        [sys.executable, "-m", "pagoda.cli.main", "--version"], env={"PAGODA_PARENT_PID": "1"}, check=False
    )
    assert done.returncode == -9


def test_supervisor_does_not_import_torch_or_grpc() -> None:
    code = "import sys, pagoda.cli.serve; sys.exit('torch' in sys.modules or 'grpc' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
