"""The `pagoda` command: finds the subcommand and runs it, importing only what that one needs.

Errors that a user can mend are one line on standard error: exit code 2 for wrong options, 1 for the rest.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version

from pagoda.children import PARENT_VARIABLE, die_with
from pagoda.cli.commands import COMMANDS
from pagoda.errors import PagodaError


def main(argv: Sequence[str] | None = None) -> int:
    if parent := os.environ.pop(PARENT_VARIABLE, None):
        die_with(int(parent))()
    arguments = list(sys.argv[1:] if argv is None else argv)
    command, rest = _split(arguments)
    parser = argparse.ArgumentParser(prog=f"pagoda {command}", description=COMMANDS[command].help)
    try:
        return COMMANDS[command].run(parser, rest)
    except (PagodaError, OSError) as error:
        print(f"pagoda {command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _split(arguments: list[str]) -> tuple[str, list[str]]:
    """(subcommand, its arguments). Prints help or the version, and exits, where that is what was asked."""
    parser = argparse.ArgumentParser(
        prog="pagoda",
        description="LLM serving as gRPC microservices.",
        epilog="commands:\n" + "\n".join(f"  {name:<11} {each.help}" for name, each in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pagoda {version('pagoda')}")
    parser.add_argument("command", choices=COMMANDS, metavar="command", help="one of those below; each has --help")
    args = parser.parse_args(arguments[:1])
    return args.command, arguments[1:]


if __name__ == "__main__":
    sys.exit(main())
