"""Generates traces: arrivals, lengths, shared prefixes, sessions and clients, all drawn from one seed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.random import Generator, SeedSequence, default_rng
from numpy.typing import NDArray

from pagoda.bench.scheduler.trace import TraceRequest
from pagoda.options import option


@dataclass(frozen=True)
class WorkloadOptions:
    trace: Path | None = option(None, "Replay this JSONL trace instead of generating one.", metavar="FILE")
    save_trace: Path | None = option(None, "Write the trace that is run to this file, as JSONL.", metavar="FILE")
    seed: int = option(0, "Seed of everything that is drawn.")
    num_prompts: int = option(1000, "Requests to send.")
    request_rate: float = option(10.0, "Requests per second; inf sends all at once.")
    burstiness: float = option(
        1.0, "Shape of the Gamma distribution of the gaps between arrivals: 1 is Poisson, less comes in bursts."
    )
    random_input_len: int = option(1024, "Mean tokens a request adds to its prefix or to its session.")
    random_output_len: int = option(128, "Mean tokens generated per request.")
    length_distribution: str = option(
        "constant", "Of input and output lengths.", choices=("constant", "lognormal", "pareto")
    )
    length_cv: float = option(1.0, "Standard deviation of the lengths over their mean, where they are not constant.")
    random_prefix_len: int = option(0, "Tokens of the shared prefix (system prompt) in front of every request.")
    num_prefixes: int = option(1, "Distinct prefixes; each session has one of them.")
    num_turns: int = option(1, "Requests per session; each repeats the context so far, with the answers.")
    think_time_s: float = option(5.0, "Mean seconds from the end of an answer to the session's next request.")
    clients: tuple[str, ...] = option(
        (), "Who sends how much of the load: NAME:SHARE or NAME:SHARE:PRIORITY (lower runs first).", metavar="CLIENT"
    )
    request_timeout_s: float | None = option(None, "Deadline of every request, in seconds after its arrival.")

    def check_workload(self) -> None:
        for name in ("num_prompts", "random_input_len", "random_output_len", "num_prefixes", "num_turns"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("request_rate", "burstiness", "length_cv"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")
        for name in ("random_prefix_len", "think_time_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.request_timeout_s is not None and not self.request_timeout_s > 0:
            raise ValueError(f"request_timeout_s is {self.request_timeout_s}; it must be more than 0")
        parse_clients(self.clients)


@dataclass(frozen=True, slots=True)
class Client:
    name: str
    share: float
    """Of the offered load, relative to the others'."""
    priority: int = 0


def parse_clients(texts: tuple[str, ...]) -> list[Client]:
    """Raises ValueError for what is not NAME:SHARE or NAME:SHARE:PRIORITY."""
    clients = []
    for text in texts:
        try:
            name, share, *priority = text.split(":")
            clients.append(Client(name, float(share), *map(int, priority)))
        except (TypeError, ValueError):
            raise ValueError(f"clients: {text!r} is not NAME:SHARE or NAME:SHARE:PRIORITY") from None
        if not 0 < clients[-1].share < math.inf:
            raise ValueError(f"clients: the share in {text!r} must be more than 0")
    if len({client.name for client in clients}) < len(clients):
        raise ValueError("clients: a name is given twice")
    return clients or [Client("", 1.0)]


def generate(options: WorkloadOptions, max_model_len: int) -> list[TraceRequest]:
    """The trace of `options`: sessions in the order of their arrival, each with its turns.

    What would be longer than max_model_len is clipped; a turn whose context has grown too long begins a new session.
    """
    num_turns = options.num_turns
    num_sessions = -(-options.num_prompts // num_turns)
    # A stream of random numbers per purpose: an option that changes one of them leaves the others alone.
    arrivals, inputs, outputs, prefixes, senders, pauses = map(default_rng, SeedSequence(options.seed).spawn(6))

    room = max_model_len - options.random_prefix_len
    assert room >= 2, "a prompt and an answer of one token each"
    shape = (num_sessions, num_turns)
    num_outputs = _lengths(outputs, options, options.random_output_len, shape, room // 2)
    num_inputs = np.minimum(_lengths(inputs, options, options.random_input_len, shape, room), room - num_outputs)
    starts_s = _arrivals(arrivals, options.request_rate / num_turns, options.burstiness, num_sessions)
    pauses_s = pauses.exponential(options.think_time_s, shape)
    prefix_ids = prefixes.integers(options.num_prefixes, size=num_sessions)
    clients = parse_clients(options.clients)
    shares = np.array([client.share for client in clients])
    sender_ids = senders.choice(len(clients), size=num_sessions, p=shares / shares.sum())

    trace: list[TraceRequest] = []
    context, session_id = 0, 0
    for number in range(options.num_prompts):
        session, turn = divmod(number, num_turns)
        num_input, num_output = int(num_inputs[session, turn]), int(num_outputs[session, turn])
        if turn == 0 or context + num_input + num_output > max_model_len:
            context, session_id = options.random_prefix_len, number
        client = clients[sender_ids[session]]
        trace.append(
            TraceRequest(
                arrival_s=float(pauses_s[session, turn] if turn else starts_s[session]),
                num_prompt_tokens=context + num_input,
                num_output_tokens=num_output,
                client_id=client.name,
                priority=client.priority,
                prefix_id=int(prefix_ids[session]) if options.random_prefix_len else None,
                num_prefix_tokens=options.random_prefix_len,
                session_id=session_id if num_turns > 1 else None,
                follows=number - 1 if turn else None,
                timeout_s=options.request_timeout_s,
            )
        )
        context += num_input + num_output
    return trace


def _arrivals(rng: Generator, rate: float, burstiness: float, count: int) -> NDArray[np.float64]:
    """[count] ascending; the coefficient of variation of the gaps is 1 / sqrt(burstiness)."""
    return np.cumsum(rng.gamma(burstiness, 1 / (rate * burstiness), count))


def _lengths(
    rng: Generator, options: WorkloadOptions, mean: int, shape: tuple[int, int], longest: int
) -> NDArray[np.int64]:
    """[shape] in [1, longest]; clipping lowers the mean of what has a long tail."""
    cv = options.length_cv
    if options.length_distribution == "constant":
        lengths = np.full(shape, float(mean))
    elif options.length_distribution == "lognormal":
        variance = math.log1p(cv * cv)
        lengths = rng.lognormal(math.log(mean) - variance / 2, math.sqrt(variance), shape)
    else:
        # Of a Pareto distribution with exponent a and least value m: mean m a / (a - 1), cv 1 / sqrt(a (a - 2)).
        exponent = 1 + math.sqrt(1 + 1 / (cv * cv))
        lengths = (1 + rng.pareto(exponent, shape)) * mean * (exponent - 1) / exponent
    whole: NDArray[np.int64] = np.clip(np.rint(lengths), 1, longest).astype(np.int64)
    return whole
