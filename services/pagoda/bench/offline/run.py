"""Prompts through an engine, all submitted at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pagoda.bench.dataset import Prompt
from pagoda.errors import InternalError
from pagoda.offline.engine import Engine
from pagoda.scheduler.core.request import FinishReason, Request, Sampling


def run(
    engine: Engine, prompts: Sequence[Prompt], on_end: Callable[[int], object] = lambda count: None
) -> list[Request]:
    """Generates as many tokens as each prompt wants, whatever they are, as vLLM's benchmarks do: at temperature 1.

    prompts: of token ids
    on_end: is told how many more have ended

    Raises PagodaError for a prompt that the model does not take; then none is run.
    """
    requests: list[Request] = []
    try:
        for number, prompt in enumerate(prompts):
            assert not isinstance(prompt.content, str)
            sampling = Sampling(seed=number, max_tokens=prompt.num_output_tokens, ignore_eos=True)
            requests.append(engine.submit(prompt.content, sampling))
    except BaseException:
        for request in requests:
            engine.core.abort(request.key)
        engine.core.take_outputs()
        raise
    while engine.core.requests:
        if ended := len(engine.step().ended):
            on_end(ended)
    engine.finish()
    for request in requests:
        if request.end is None or request.end.reason is not FinishReason.LENGTH:
            raise InternalError(f"request {request.key.number} has ended otherwise: {request.end}")
    return requests
