"""The `Tokenizer` service: text to tokens and back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc

from pagoda.text import IncrementalDetokenizer
from pagoda.tokenizer.cell import Cell
from pagoda.tokenizer.messages import to_chat_prompt
from pagoda.tokenizer.prompts import PromptEncoder, TextPrompt, run_sized
from pagoda.v1 import tokenizer_pb2 as pb
from pagoda.v1.tokenizer_pb2_grpc import TokenizerServicer as Base

Context = grpc.aio.ServicerContext[Any, Any]


class TokenizerServicer(Base):
    def __init__(self, encoder: PromptEncoder, cell: Cell) -> None:
        self._encoder = encoder
        self._cell = cell

    async def Tokenize(self, request: pb.TokenizeRequest, context: Context) -> pb.TokenizeResponse:
        add_special_tokens = request.add_special_tokens if request.HasField("add_special_tokens") else True
        token_ids = await self._encoder.tokenize(TextPrompt(request.text, add_special_tokens), request.ByteSize())
        strings = await self._encoder.token_strings(token_ids) if request.return_token_strings else []
        return pb.TokenizeResponse(
            token_ids=token_ids, token_strings=strings, max_model_len=self._cell.status.model.max_model_len
        )

    async def Detokenize(self, request: pb.DetokenizeRequest, context: Context) -> pb.DetokenizeResponse:
        text = await self._encoder.decode(
            request.token_ids, skip_special_tokens=request.skip_special_tokens, param="token_ids"
        )
        return pb.DetokenizeResponse(text=text)

    async def DetokenizeStream(
        self, requests: AsyncIterator[pb.DetokenizeStreamRequest], context: Context
    ) -> AsyncIterator[pb.DetokenizeStreamResponse]:
        """One answer per request, and one for what was still held back at the end of the stream."""
        detokenizer: IncrementalDetokenizer | None = None
        async for request in requests:
            if detokenizer is None:
                skip = request.skip_special_tokens if request.HasField("skip_special_tokens") else True
                detokenizer = IncrementalDetokenizer(self._encoder.tokenizer, skip_special_tokens=skip)
            text = await run_sized(request.ByteSize(), partial(detokenizer.push, request.token_ids))
            yield pb.DetokenizeStreamResponse(text=text)
        if detokenizer is not None and (rest := detokenizer.finish()):
            yield pb.DetokenizeStreamResponse(text=rest)

    async def RenderChat(self, request: pb.RenderChatRequest, context: Context) -> pb.RenderChatResponse:
        chat = to_chat_prompt(request.chat)
        prompt = await self._encoder.render(chat, request.ByteSize())
        token_ids = await self._encoder.tokenize(TextPrompt(prompt, add_special_tokens=False), len(prompt))
        return pb.RenderChatResponse(prompt=prompt, token_ids=token_ids)

    async def GetTokenizerInfo(
        self, request: pb.GetTokenizerInfoRequest, context: Context
    ) -> pb.GetTokenizerInfoResponse:
        tokenizer = self._encoder.tokenizer
        return pb.GetTokenizerInfoResponse(
            config_json=json.dumps(tokenizer.info(), ensure_ascii=False),
            vocab_size=len(tokenizer),
            eos_token_ids=sorted(tokenizer.eos_token_ids),
            special_token_ids=sorted(tokenizer.special_token_ids),
        )
