"""`pagoda chat`: a conversation in the terminal with any OpenAI-compatible server. Standard library only."""

from __future__ import annotations

import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from pagoda.cli.chat_client import ChatClient, ChatError
from pagoda.options import option

_HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C interrupts an answer."


@dataclass(frozen=True)
class ChatOptions:
    question: str | None = option(
        None, "Ask this, print the answer and end. A question may also come through a pipe.", positional=True
    )
    url: str = option("http://127.0.0.1:8000", "The server.")
    model: str | None = option(None, "Model to ask for; the server's first one if not given.")
    system: str | None = option(None, "System message.")
    max_tokens: int | None = option(None, "Longest answer, in tokens.")
    temperature: float | None = option(None, "0 for the most likely answer; the server's default if not given.")
    api_key: str | None = option(None, "Key for servers that want one.", metavar="KEY")


def main(options: ChatOptions) -> int:
    try:
        client = ChatClient(options.url, options.api_key)
        conversation = Conversation(client, options, options.model or client.first_model())
        question = _single_question(options.question)
        if question is not None:
            conversation.ask(question)
            return 0
        return _talk(conversation)
    except ChatError as error:
        print(f"pagoda chat: {error}", file=sys.stderr)
        return 1


class Conversation:
    """The messages so far; a question that got no answer leaves none."""

    def __init__(self, client: ChatClient, options: ChatOptions, model: str) -> None:
        self.model = model
        self._client = client
        self._parameters = {"max_tokens": options.max_tokens, "temperature": options.temperature}
        self._system = [{"role": "system", "content": options.system}] if options.system else []
        self._messages: list[dict[str, str]] = []

    def reset(self) -> None:
        self._messages.clear()

    def ask(self, question: str) -> None:
        """Prints the answer as it comes. Ctrl-C ends it early; what came until then stays in the conversation."""
        asked = [*self._messages, {"role": "user", "content": question}]
        body: dict[str, Any] = {"model": self.model, "messages": [*self._system, *asked]}
        body |= {name: value for name, value in self._parameters.items() if value is not None}
        answer = ""
        try:
            for piece in self._client.stream(body):
                print(piece, end="", flush=True)
                answer += piece
        except KeyboardInterrupt:
            print(" [interrupted]", end="")
        print(flush=True)
        if answer:
            self._messages = [*asked, {"role": "assistant", "content": answer}]


def _single_question(question: str | None) -> str | None:
    """From the command line, a pipe, or both (the pipe is what the question is about); None at a terminal."""
    piped = "" if sys.stdin.isatty() else sys.stdin.read().strip()
    if question is not None:
        return f"{question}\n\n{piped}" if piped else question
    if piped:
        return piped
    if not sys.stdin.isatty():
        raise ChatError("the question is empty")
    return None


def _talk(conversation: Conversation) -> int:
    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() a history and line editing
    print(f"Talking to {conversation.model}. {_HELP}")
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print()
            continue
        if line == "/exit":
            return 0
        if line == "/reset":
            conversation.reset()
        elif line.startswith("/"):
            print(_HELP)
        elif line:
            try:
                conversation.ask(line)
            except ChatError as error:
                print(f"[{error}]")
