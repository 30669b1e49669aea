"""The `Tokenizer` service, and the endpoints beside generation."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from http_client import HttpClient
from scripted_scheduler import ScriptedScheduler

from pagoda.rpc.status import from_rpc_error
from pagoda.text import TextTokenizer
from pagoda.v1 import common_pb2, scheduler_pb2
from pagoda.v1 import tokenizer_pb2 as pb
from pagoda.v1.tokenizer_pb2_grpc import TokenizerStub

USER = [{"role": "user", "content": "Hi"}]
RENDERED = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture
def stub(client: HttpClient) -> Any:
    return TokenizerStub(client.channel)  # type: ignore[no-untyped-call]


async def test_text_to_tokens_and_back(stub: Any, tokenizer: TextTokenizer) -> None:
    tokens = await stub.Tokenize(pb.TokenizeRequest(text="the stone", return_token_strings=True))
    assert list(tokens.token_ids) == tokenizer.encode("the stone")
    assert "".join(tokens.token_strings) == "theĠstone"
    assert tokens.max_model_len == 256
    assert (await stub.Detokenize(pb.DetokenizeRequest(token_ids=tokens.token_ids))).text == "the stone"


async def test_a_long_text_goes_through_a_thread(stub: Any, tokenizer: TextTokenizer) -> None:
    tokens = await stub.Tokenize(pb.TokenizeRequest(text="the stone " * 5000))
    assert list(tokens.token_ids) == tokenizer.encode("the stone " * 5000)


async def test_a_stream_of_tokens_comes_out_in_whole_characters(stub: Any, tokenizer: TextTokenizer) -> None:
    token_ids = tokenizer.encode("塔 è!")

    async def one_by_one() -> AsyncIterator[pb.DetokenizeStreamRequest]:
        for token_id in token_ids[:-1]:
            yield pb.DetokenizeStreamRequest(token_ids=[token_id])
        # The first byte of a character that never ends.
        yield pb.DetokenizeStreamRequest(token_ids=tokenizer.encode("塔")[:1])

    texts = [response.text async for response in stub.DetokenizeStream(one_by_one())]
    assert texts[2] == "塔"
    assert texts[0] == texts[1] == ""
    assert "".join(texts) == "塔 è\ufffd"


async def test_a_token_id_out_of_range(stub: Any, client: HttpClient) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.Detokenize(pb.DetokenizeRequest(token_ids=[10**6]))
    assert from_rpc_error(raised.value).param == "token_ids"
    answer = await client.detokenize({"tokens": [10**6]})
    assert (answer.status, answer.json["error"]["param"]) == (400, "tokens")


async def test_a_chat_as_the_model_sees_it(stub: Any, tokenizer: TextTokenizer) -> None:
    tools = json.dumps([{"type": "function", "function": {"name": "clock"}}])
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hi")], tools_json=tools)
    rendered = await stub.RenderChat(pb.RenderChatRequest(chat=chat))
    assert rendered.prompt == f"<tool>clock</tool>{RENDERED}"
    assert list(rendered.token_ids) == tokenizer.encode(rendered.prompt)


@pytest.mark.parametrize("field", ["tools_json", "template_kwargs_json"])
async def test_json_in_a_chat_that_is_not(stub: Any, field: str) -> None:
    chat = pb.Chat(messages=[pb.ChatMessage(role="user", content="Hi")])
    setattr(chat, field, "[1")
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await stub.RenderChat(pb.RenderChatRequest(chat=chat))
    assert from_rpc_error(raised.value).param == field


async def test_tokenizer_info(stub: Any, client: HttpClient, tokenizer: TextTokenizer) -> None:
    info = await stub.GetTokenizerInfo(pb.GetTokenizerInfoRequest())
    assert set(info.eos_token_ids) == tokenizer.eos_token_ids
    assert json.loads(info.config_json) == (await client.tokenizer_info()).json
    assert "chat_template" in json.loads(info.config_json)


async def test_tokenize_as_vllm_has_it(client: HttpClient, tokenizer: TextTokenizer) -> None:
    ids = tokenizer.encode("the stone")
    plain = await client.tokenize({"prompt": "the stone"})
    assert plain.json == {"count": len(ids), "max_model_len": 256, "tokens": ids, "token_strs": None}
    spelled = await client.tokenize({"prompt": "the stone", "return_token_strs": True})
    assert "".join(spelled.json["token_strs"]) == "theĠstone"
    chat = await client.tokenize({"messages": USER})
    assert (await client.detokenize({"tokens": chat.json["tokens"]})).json == {"prompt": RENDERED}
    assert (await client.tokenize({"prompt": ""})).json["count"] == 0


async def test_nothing_to_tokenize(client: HttpClient) -> None:
    answer = await client.tokenize({})
    assert (answer.status, answer.json["error"]["code"]) == (400, "missing_required_parameter")


async def test_models(client: HttpClient) -> None:
    listed = (await client.models()).json
    assert (listed["object"], [model["id"] for model in listed["data"]]) == ("list", ["tiny", "tiny/alias"])
    (one,) = [(await client.model("tiny/alias")).json]
    assert one == listed["data"][1]
    assert (one["root"], one["max_model_len"], one["owned_by"]) == ("tiny-chat", 256, "pagoda")


async def test_version(client: HttpClient) -> None:
    assert set((await client.version()).json) == {"version"}


async def test_health_follows_the_cell(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    watch = health_pb2_grpc.HealthStub(client.channel).Watch(health_pb2.HealthCheckRequest())
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    assert (await client.health()).status == 200
    await scheduler.set_ready(False)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
    watch.cancel()
    answer = await client.health()
    assert (answer.status, answer.json["error"]["type"]) == (503, "service_unavailable")
    assert answer.headers["retry-after"] == "2"
    refused = await client.chat({"messages": USER})
    assert refused.status == 503


async def test_metrics(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    scheduler.state = scheduler_pb2.SchedulerState(num_waiting=7, prefix_cache_queries=100, prefix_cache_hits=40)
    layout = common_pb2.KvLayout(num_blocks=10)
    scheduler.state.lanes.add(
        num_running=2, num_referenced_blocks=5, kv_layout=layout, num_host_blocks=8, num_used_host_blocks=2
    )
    told = {"requests_rejected": 3, "requests_expired": 4, "recoveries": 5, "preemptions": 6}
    told |= {"offloaded_blocks": 7, "loaded_blocks": 8, "merged_blocks": 9, "copied_blocks": 10}
    scheduler.state.MergeFrom(scheduler_pb2.SchedulerState(oldest_waiting_s=1.5, **told))
    await client.chat({"messages": USER, "max_tokens": 5, "n": 2})
    values = _values((await client.metrics()).body)
    prompt_tokens = scheduler.requests[0].num_prompt_tokens
    assert values["vllm:prompt_tokens_total"] == prompt_tokens
    assert values["vllm:generation_tokens_total"] == 10
    assert values['vllm:request_success_total{finished_reason="length"}'] == 2
    assert values["vllm:time_to_first_token_seconds_count"] == 2
    assert values["vllm:inter_token_latency_seconds_count"] <= 8
    assert values["vllm:e2e_request_latency_seconds_count"] == 2
    assert (values["vllm:num_requests_running"], values["vllm:num_requests_waiting"]) == (2, 7)
    assert values["vllm:kv_cache_usage_perc"] == 0.5
    assert (values["vllm:prefix_cache_queries_total"], values["vllm:prefix_cache_hits_total"]) == (100, 40)
    assert values["vllm:num_preemptions_total"] == 6
    assert values["vllm:cpu_cache_usage_perc"] == 0.25
    assert values["pagoda:oldest_waiting_seconds"] == 1.5
    assert values["pagoda:requests_recovered_total"] == 5
    for name in ("requests_rejected", "requests_expired"):
        assert values[f"pagoda:{name}_total"] == told[name]
    for name in ("offloaded_blocks", "loaded_blocks", "merged_blocks", "copied_blocks"):
        assert values[f"pagoda:{name}_total"] == told[name]
    await scheduler.stop()
    absent = _values((await client.metrics()).body)
    assert "vllm:num_requests_running" not in absent
    assert absent["vllm:generation_tokens_total"] == 10
    await scheduler.start(scheduler.address)


async def test_metrics_of_pools(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    decode, prefill = common_pb2.EXECUTOR_ROLE_DECODE, common_pb2.EXECUTOR_ROLE_PREFILL
    received = scheduler_pb2.TransferCounters(
        blocks=7, bytes=700, seconds=0.5, failures={"timeout": 2}, late_blocks=3, duplicate_blocks=4
    )
    told = {"local_prefills": 1, "remote_prefills": 2, "moves_begun": 9, "moves_done": 4, "moves_failed": 5}
    told |= {"moved_blocks": 40, "move_wait_s": 0.25}
    scheduler.state = scheduler_pb2.SchedulerState(
        lanes=[
            scheduler_pb2.LaneState(role=decode, num_running=3, num_arriving=1),
            scheduler_pb2.LaneState(role=decode, num_running=2, num_arriving=1),
            scheduler_pb2.LaneState(role=prefill, num_running=4),
        ],
        move_failures={"timeout": 2, "push_refused": 3},
        recovery_times={"executor": scheduler_pb2.Durations(bounds_s=[0.1, 2], counts=[2, 0, 1], sum_s=3.5)},
        transfers=[
            scheduler_pb2.ExecutorTransfers(name="d", stats=scheduler_pb2.TransferStats(received=received)),
            scheduler_pb2.ExecutorTransfers(
                name="p", stats=scheduler_pb2.TransferStats(sent=scheduler_pb2.TransferCounters(bytes=800))
            ),
        ],
        **told,
    )
    values = _values((await client.metrics()).body)
    expected = {
        'pagoda:executors{role="prefill"}': 1,
        'pagoda:executors{role="decode"}': 2,
        'pagoda:executors{role="mixed"}': 0,
        'pagoda:requests_running{role="decode"}': 5,
        'pagoda:requests_running{role="prefill"}': 4,
        'pagoda:requests_arriving{role="decode"}': 2,
        'pagoda:prefills_total{where="local"}': 1,
        'pagoda:prefills_total{where="remote"}': 2,
        "pagoda:moves_begun_total": 9,
        "pagoda:moves_done_total": 4,
        "pagoda:moved_blocks_total": 40,
        'pagoda:moves_failed_total{reason="timeout"}': 2,
        'pagoda:moves_failed_total{reason="push_refused"}': 3,
        "pagoda:move_wait_seconds_count": 4,
        "pagoda:move_wait_seconds_sum": 0.25,
        'pagoda:recovery_seconds_bucket{le="0.1",lost="executor"}': 2,
        'pagoda:recovery_seconds_bucket{le="2.0",lost="executor"}': 2,
        'pagoda:recovery_seconds_bucket{le="+Inf",lost="executor"}': 3,
        'pagoda:recovery_seconds_count{lost="executor"}': 3,
        'pagoda:recovery_seconds_sum{lost="executor"}': 3.5,
        'pagoda:kv_transfer_blocks_total{direction="received",executor="d"}': 7,
        'pagoda:kv_transfer_bytes_total{direction="received",executor="d"}': 700,
        'pagoda:kv_transfer_bytes_total{direction="sent",executor="d"}': 0,
        'pagoda:kv_transfer_bytes_total{direction="sent",executor="p"}': 800,
        'pagoda:kv_transfer_seconds_total{direction="received",executor="d"}': 0.5,
        'pagoda:kv_transfer_failures_total{direction="received",executor="d",reason="timeout"}': 2,
        'pagoda:kv_transfer_dropped_blocks_total{executor="d",reason="late"}': 3,
        'pagoda:kv_transfer_dropped_blocks_total{executor="d",reason="duplicate"}': 4,
    }
    assert values | expected == values


async def test_an_abandoned_request_is_counted_as_such(client: HttpClient, scheduler: ScriptedScheduler) -> None:
    scheduler.paused = True
    call = client.start_chat({"messages": USER, "stream": True})
    await scheduler.until(lambda: len(scheduler.requests) == 1)
    call.cancel()
    await scheduler.until(lambda: len(scheduler.aborted) == 1)
    assert _values((await client.metrics()).body)['vllm:request_success_total{finished_reason="abort"}'] == 1


async def test_a_template_of_the_operators(
    start_client: Callable[..., Awaitable[HttpClient]], tmp_path: Any, scheduler: ScriptedScheduler
) -> None:
    file = tmp_path / "template.jinja"
    file.write_text("File {{ messages[0].content }}")
    for template, start in (("Own {{ messages[0].content }}", "Own Hi"), (str(file), "File Hi")):
        client = await start_client(chat_template=template, response_role="bot")
        answer = await client.chat({"messages": USER})
        assert answer.json["choices"][0]["message"] == {"role": "bot", "content": f"Echo: {start}", "refusal": None}


def _values(text: bytes) -> dict[str, float]:
    """Samples by name and labels, without the model's name."""
    values = {}
    for line in text.decode().splitlines():
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            assert 'model_name="tiny"' in name
            for label in (',model_name="tiny"', 'model_name="tiny",', '{model_name="tiny"}'):
                name = name.replace(label, "")
            values[name] = float(value)
    return values
