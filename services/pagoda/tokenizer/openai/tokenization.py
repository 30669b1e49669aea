"""/tokenize and /detokenize, as vLLM has them."""

from __future__ import annotations

from pagoda.errors import InvalidArgumentError
from pagoda.tokenizer.openai.chat import chat_prompt
from pagoda.tokenizer.openai.parameters import refuse_unsupported
from pagoda.tokenizer.openai.requests import TokenizeRequest
from pagoda.tokenizer.openai.responses import Tokens
from pagoda.tokenizer.prompts import PromptEncoder, TextPrompt


async def tokenize(encoder: PromptEncoder, request: TokenizeRequest, num_bytes: int, max_model_len: int) -> Tokens:
    """The tokens of a prompt, or of a conversation as the model sees it."""
    refuse_unsupported(request)
    token_ids = await encoder.tokenize(await _text(encoder, request, num_bytes), num_bytes)
    strings = await encoder.token_strings(token_ids) if request.return_token_strs else None
    return Tokens(len(token_ids), max_model_len or None, token_ids, strings)


async def _text(encoder: PromptEncoder, request: TokenizeRequest, num_bytes: int) -> TextPrompt:
    if request.messages is not None:
        chat = chat_prompt(request)
        return TextPrompt(await encoder.render(chat, num_bytes), chat.add_special_tokens)
    if request.prompt is None:
        raise InvalidArgumentError(
            "Missing required parameter: 'prompt' (or 'messages').", reason="MISSING_REQUIRED_PARAMETER", param="prompt"
        )
    return TextPrompt(request.prompt, request.add_special_tokens is not False)
