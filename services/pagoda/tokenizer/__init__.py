"""The tokenizer service: text in, text out, over gRPC and as OpenAI's HTTP API.

Wiring       config, server, metrics
Services     servicer (text <-> tokens), inference (typed generation), openai/ (the OpenAI facade);
             messages, caller, models and limits are what they share
Generation   prompts (any form -> token ids), generation (a request's completions), completion (tokens -> text)
Scheduler    cell (the requests there, handed over when it dies), token_stream (what arrives for them),
             session (one registration: gRPC stream and ZeroMQ socket), scheduler_state (for /metrics)

Stateless but for the requests in flight. Knows neither blocks nor tensors.
"""
