"""The OpenAI and vLLM HTTP endpoints, as the gateway transcodes them: raw JSON in, JSON or server-sent events out.

servicer.py      one method per endpoint; errors and metadata
requests.py      the JSON that comes            responses.py   the JSON that goes
parameters.py    checks, and what is refused    sse.py         bodies and events
chat.py          /v1/chat/completions           completions.py /v1/completions
tokenization.py  /tokenize, /detokenize         errors.py      errors as OpenAI words them
"""
