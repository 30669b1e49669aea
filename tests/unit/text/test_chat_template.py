"""Chat templates must render what transformers' `apply_chat_template` renders, and fail as a bad request.

The templates are our own, small, and use what the well-known ones use: ChatML, Llama 3 with tools, Mistral's
strict roles, Gemma's refusal of system messages, Qwen's tools, Phi-3, reasoning, parts, and `generation`.
"""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from pagoda.errors import InvalidArgumentError
from pagoda.text import ChatTemplate

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}

CHATML = """
{%- for message in messages %}
    {{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

LLAMA_3 = """
{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}
{%- if not tools is defined %}{% set tools = none %}{% endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{{- '<|system|>Today: ' ~ date_string ~ '\\n' }}
{%- if tools is not none %}
    {%- for tool in tools %}
        {{- tool | tojson(indent=4) }}
        {{- '\\n\\n' }}
    {%- endfor %}
{%- endif %}
{{- system + '<|eot|>' }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or message.role == 'ipython' or 'tool_calls' in message) %}
        {{- '<|' + message['role'] + '|>' + message['content'] | trim + '<|eot|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception('This model only supports single tool-calls at once!') }}
        {%- endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- '<|assistant|>{"name": "' + call.name + '", "parameters": ' }}
        {{- call.arguments | tojson }}
        {{- '}<|eot|>' }}
    {%- else %}
        {{- '<|tool|>' }}
        {%- if message.content is mapping or message.content is iterable and message.content is not string %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- '<|eot|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}
"""

MISTRAL = """
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, roles must alternate user/assistant.') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {%- if loop.first and system_message is defined %}
            {{- ' [INST] ' + system_message + '\\n\\n' + message['content'] + ' [/INST]' }}
        {%- else %}
            {{- ' [INST] ' + message['content'] + ' [/INST]' }}
        {%- endif %}
    {%- else %}
        {{- ' ' + message['content'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """
{{ bos_token }}
{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
{% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}
{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}
"""

QWEN = """
{%- macro header(role) -%}<|im_start|>{{ role }}
{% endmacro %}
{%- if tools %}
    {{- header('system') }}{{ '# Tools\\n<tools>' }}
    {%- for tool in tools %}{{ '\\n' }}{{ tool | tojson }}{% endfor %}
    {{- '\\n</tools><|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == 'user' %}
        {%- set ns.multi_step = false %}{% set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}{{ header('user') }}{% endif %}
        {{- '<tool_response>' ~ message.content ~ '</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif %}
        {%- continue %}
    {%- endif %}
    {{- header(message.role) }}
    {%- if message.reasoning_content and loop.index0 > ns.last %}
        {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
    {%- endif %}
    {{- message.content | default('', true) }}
    {%- for tool_call in message.tool_calls or [] %}
        {{- '\\n<tool_call>{"name": "' ~ tool_call.function.name ~ '", "arguments": ' }}
        {{- tool_call.function.arguments | tojson ~ '}</tool_call>' }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}
{%- endif %}
"""

PHI_3 = """
{% for message in messages %}
{% if message['role'] == 'user' %}
{{'<|user|>\\n' + message['content'] + '<|end|>\\n'}}
{% elif message['role'] == 'assistant' %}
{{'<|assistant|>\\n' + message['content'] + '<|end|>\\n'}}
{% else %}{% break %}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}
"""

PARTS = """
{%- for message in messages %}
    {{- message.role ~ ': ' }}
    {%- if message.content is string %}
        {{- message.content }}
    {%- else %}
        {%- for part in message.content %}{{ '[' ~ part.text ~ ']' }}{% endfor %}
    {%- endif %}
    {{- '\\n' }}
{%- endfor %}
"""

GENERATION = """
{%- for message in messages %}
    {%- set tag = message.role %}
    {%- if message.role == 'assistant' %}
        {%- generation %}{% set tag = 'inner' %}{{ message.content }}{{ eos_token }}{% endgeneration %}
    {%- else %}{{ message.content }}{% endif %}
    {{- tag }}
{%- endfor %}
"""

DOCUMENTS = """
{%- for document in documents or [] %}{{ loop.index }}. {{ document.title }}: {{ document.text }}
{% endfor %}
{{- messages | map(attribute='content') | join(' / ') }}
{{- '%s and %d' % ('text', 7) }} {{ '{} {x}'.format(1, x=2) }} {{ 2 ** 3 * 'ab' }} {{ [1] + [2] }}
{{- 'a,b'.split(',') | join('+') }} {{ ', '.join(messages | map(attribute='role')) }}
{{- messages | selectattr('role', 'equalto', 'user') | list | length }} {{ 'a b' | replace(' ', '_') | upper }}
{{- {'b': 1, 'a': '<é>'} | tojson }} {{ {'b': 1, 'a': [2]} | tojson(indent=2, sort_keys=True) }}
{{- dict(a=1).items() | list }} {{ 'x\\ny' | indent(2) }} {{ range(3) | list }} {{ missing }} {{ none }}
{%- set captured %}captured {{ messages | length }}{% endset %}{{ captured ~ 1 ~ none ~ missing }}
"""

USER = {"role": "user", "content": "Hi, how is <b>Bézier</b>? "}
ASSISTANT = {"role": "assistant", "content": " Fine & dandy.\n"}
SYSTEM = {"role": "system", "content": " Be brief. "}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Weather in a city, in °C",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
TOOL_CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Zürich"}}}],
}
TOOL_RESULT = {"role": "tool", "tool_call_id": "1", "content": '{"celsius": 7}'}
REASONING = {"role": "assistant", "content": "4", "reasoning": "2 + 2"}
USER_PARTS = {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]}

# (template, messages, further arguments of apply_chat_template)
CASES: dict[str, tuple[str, list[dict[str, Any]], dict[str, Any]]] = {
    "chatml": (CHATML, [SYSTEM, USER, ASSISTANT, USER], {}),
    "chatml, no prompt": (CHATML, [USER], {"add_generation_prompt": False}),
    "llama 3": (LLAMA_3, [SYSTEM, USER, ASSISTANT, USER], {"date_string": "1 Jan 2025"}),
    "llama 3, today": (LLAMA_3, [USER], {}),
    "llama 3, tools": (LLAMA_3, [SYSTEM, USER, TOOL_CALL, TOOL_RESULT], {"tools": [TOOL]}),
    "mistral": (MISTRAL, [SYSTEM, USER, ASSISTANT, USER], {}),
    "gemma": (GEMMA, [USER, ASSISTANT, USER], {}),
    "qwen": (QWEN, [SYSTEM, USER, ASSISTANT, USER], {}),
    "qwen, tools": (QWEN, [USER, TOOL_CALL, TOOL_RESULT, TOOL_RESULT, ASSISTANT], {"tools": [TOOL, TOOL]}),
    "qwen, reasoning": (QWEN, [USER, REASONING], {"enable_thinking": False}),
    "phi 3": (PHI_3, [USER, ASSISTANT, USER], {}),
    "phi 3, break": (PHI_3, [USER, SYSTEM, USER], {"add_generation_prompt": False}),
    "parts": (PARTS, [USER_PARTS, ASSISTANT], {}),
    "generation": (GENERATION, [USER, ASSISTANT, USER], {}),
    "documents": (DOCUMENTS, [USER, ASSISTANT], {"documents": [{"title": "T", "text": "x"}]}),
    "keyword over special token": (GEMMA, [USER], {"bos_token": "[BOS]"}),
    "continue": (CHATML, [USER, ASSISTANT], {"continue_final_message": True}),
    "continue, trimmed": (LLAMA_3, [USER, ASSISTANT], {"continue_final_message": True}),
    "continue, parts": (PARTS, [USER_PARTS], {"continue_final_message": True}),
    "continue, spaces kept": (
        MISTRAL,
        [USER, {"role": "assistant", "content": "x "}],
        {"continue_final_message": True},
    ),
}


def reference(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    backend = Tokenizer(models.BPE())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL_TOKENS)  # type: ignore[no-untyped-call]
    return str(tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, **options))


def render(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    return ChatTemplate(template, SPECIAL_TOKENS).render(messages, **options)


def refused(template: str, messages: list[dict[str, Any]], **options: Any) -> InvalidArgumentError:
    with pytest.raises(InvalidArgumentError) as raised:
        render(template, messages, **options)
    return raised.value


@pytest.mark.parametrize(("template", "messages", "options"), CASES.values(), ids=CASES.keys())
def test_renders_what_transformers_renders(
    template: str, messages: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    options = {"add_generation_prompt": not options.get("continue_final_message", False), **options}
    before = json.dumps(messages)
    assert render(template, messages, **options) == reference(template, messages, **options)
    assert json.dumps(messages) == before


class TestMessages:
    """What becomes of OpenAI's messages before a template sees them."""

    def test_tool_arguments_in_a_string_become_an_object(self) -> None:
        call = {"id": "1", "function": {"name": "weather", "arguments": '{"city": "Zürich"}'}}
        text = render(QWEN, [USER, {"role": "assistant", "tool_calls": [call]}])
        assert '"arguments": {"city": "Zürich"}}' in text

    @pytest.mark.parametrize("arguments", ["", None])
    def test_no_tool_arguments_are_an_empty_object(self, arguments: str | None) -> None:
        call = {"function": {"name": "now", "arguments": arguments}}
        assert '"arguments": {}}' in render(QWEN, [USER, {"role": "assistant", "tool_calls": [call]}])

    def test_tool_arguments_must_be_json(self) -> None:
        call = {"function": {"name": "now", "arguments": "{city"}}
        error = refused(QWEN, [USER, {"role": "assistant", "tool_calls": [call]}])
        assert error.param == "messages[1].tool_calls[0]"
        assert error.reason == "INVALID_MESSAGE"

    def test_parts_become_lines_for_a_template_that_wants_strings(self) -> None:
        assert "user\none\ntwo<|im_end|>" in render(CHATML, [USER_PARTS])

    def test_strings_become_parts_for_a_template_that_knows_only_parts(self) -> None:
        template = "{% for m in messages %}{% for part in m['content'] %}{{ part['text'] }};{% endfor %}{% endfor %}"
        assert render(template, [{"role": "user", "content": "one"}, USER_PARTS]) == "one;one;two;"

    @pytest.mark.parametrize("template", [CHATML, PARTS])
    def test_every_kind_of_text_part_is_text(self, template: str) -> None:
        parts = ["a", {"type": "input_text", "text": "b"}, {"type": "refusal", "refusal": "c"}]
        expected = [{"type": "text", "text": letter} for letter in "abc"]
        assert render(template, [{"role": "user", "content": parts}]) == render(
            template, [{"role": "user", "content": expected}]
        )

    @pytest.mark.parametrize("template", [CHATML, PARTS])
    @pytest.mark.parametrize(
        "part", [{"type": "image_url", "image_url": {"url": "x"}}, {"type": "text"}, 7, {"type": []}]
    )
    def test_other_parts_are_refused(self, template: str, part: object) -> None:
        error = refused(template, [USER, {"role": "user", "content": ["a", part]}])
        assert error.param == "messages[1].content[1]"

    @pytest.mark.parametrize("messages", [[], [{"role": "user", "content": 7}], ["text"]])
    def test_what_is_no_conversation_is_refused(self, messages: list[Any]) -> None:
        assert "messages" in str(refused(CHATML, messages).param)


class TestContentFormat:
    """Which templates are seen to handle content parts."""

    @pytest.mark.parametrize(
        "template",
        [
            PARTS,
            "{% for m in messages %}{% for p in m.content %}{% endfor %}{% endfor %}",
            "{% set rest = messages[1:] %}"
            "{% for m in rest %}{% for p in m['content'] | list %}{% endfor %}{% endfor %}",
            "{% for m in messages %}{% set c = m.content %}{% for p in c %}{% endfor %}{% endfor %}",
            "{% macro show(c) %}{% for p in c %}{% endfor %}{% endmacro %}"
            "{% for m in messages %}{{ show(m.content) }}{% endfor %}",
        ],
    )
    def test_openai(self, template: str) -> None:
        assert ChatTemplate(template, {}).content_format == "openai"

    @pytest.mark.parametrize("template", [CHATML, LLAMA_3, MISTRAL, GEMMA, QWEN, PHI_3, GENERATION, DOCUMENTS, "x"])
    def test_string(self, template: str) -> None:
        assert ChatTemplate(template, {}).content_format == "string"


class TestErrors:
    """A template's refusal is the request's fault; a broken template the operator's."""

    @pytest.mark.parametrize(
        ("template", "messages", "message"),
        [
            (GEMMA, [SYSTEM, USER], "System role not supported"),
            (MISTRAL, [USER, USER], "roles must alternate"),
            ("{{ messages[0].name.first }}", [USER], "has no attribute 'name'"),
            ("{{ no_such_function() }}", [USER], "'no_such_function' is undefined"),
            ("{{ messages.__class__.__mro__ }}", [USER], "unsafe"),
            ("{{ messages.append(1) }}", [USER], "unsafe"),
            ("{% set ns = namespace(_x=1) %}", [USER], "underscore"),
            ("{{ 1 / 0 }}", [USER], "division by zero"),
            ("{{ messages + 1 }}", [USER], "concatenate"),
            ("{{ missing | tojson }}", [USER], "not JSON serializable"),
            ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", [USER], "recursion"),
        ],
    )
    def test_refusals_carry_the_templates_message(
        self, template: str, messages: list[dict[str, Any]], message: str
    ) -> None:
        error = refused(template, messages)
        assert message in error.message
        assert (error.reason, error.param) == ("CHAT_TEMPLATE_ERROR", "messages")

    @pytest.mark.parametrize(
        "source", ["{% if %}", "{{ x | no_such_filter }}", "{% for x in y %}", "{{ '" + "(" * 9999]
    )
    def test_invalid_jinja_names_the_template(self, source: str) -> None:
        with pytest.raises(ValueError, match=r"The file x\.jinja is not valid Jinja"):
            ChatTemplate(source, {}, name="file x.jinja")

    def test_continuing_excludes_a_generation_prompt(self) -> None:
        assert refused(CHATML, [USER, ASSISTANT], continue_final_message=True).param == "continue_final_message"

    @pytest.mark.parametrize(
        ("template", "message"), [(CHATML, TOOL_CALL), (PARTS, {"role": "assistant", "content": []})]
    )
    def test_there_must_be_something_to_continue(self, template: str, message: dict[str, Any]) -> None:
        error = refused(template, [USER, message], continue_final_message=True, add_generation_prompt=False)
        assert error.param == "continue_final_message"

    def test_the_template_must_render_what_is_continued(self) -> None:
        error = refused("fixed", [USER, ASSISTANT], continue_final_message=True, add_generation_prompt=False)
        assert error.reason == "CHAT_TEMPLATE_ERROR"


class TestBounds:
    """No template may hang or eat memory. Each of these would, without bounds."""

    @pytest.mark.parametrize(
        "template",
        [
            "{{ range(10 ** 9) | list }}",
            "{{ 'a' * 10 ** 10 }}",
            "{{ ['a'] * 10 ** 10 }}",
            "{{ 9 ** (9 ** 9) }}",
            "{% set ns = namespace(x=10) %}{% for i in range(99) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
            "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
            "{% set ns = namespace(x='ab') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
            "{% set ns = namespace(x='ab') %}"
            "{% for i in range(99) %}{% set x %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = x %}{% endfor %}",
            "{% macro f(x, n) %}{{ f(x ~ x, n - 1) if n else x }}{% endmacro %}{{ f('ab', 99) }}",
            "{% for i in range(100000) %}{% for j in range(100000) %}{{ 'a' * 1000 }}{% endfor %}{% endfor %}",
            "{{ '%999999999d' % 1 }}",
            "{{ '%*d' % (999999999, 1) }}",
            "{{ '%999999999d' | format(1) }}",
            "{{ '{:999999999}'.format(1) }}",
            "{{ '{:{w}}'.format(1, w=999999999) }}",
            "{{ 'a'.ljust(999999999) }}",
            "{{ 'a'.center(999999999) }}",
            "{{ 'a' | center(999999999) }}",
            "{{ 'a\\n' | indent(999999999) }}",
            "{{ 'a\\n' | indent(first=true, width=999999999) }}",
            "{% set a = 'a\\n' * 9999 %}{{ a | indent(a) }}",
            "{{ ('\\t' * 9999).expandtabs(999999999) }}",
            "{% set a = 'a' * 900000 %}{{ a.replace('a', a) }}",
            "{% set a = 'a' * 900000 %}{{ a | replace('a', a) }}",
            "{% set a = ['a' * 900000] * 900000 %}{{ a | join }}",
            "{% set a = ['a' * 900000] * 900000 %}{{ ''.join(a | map('upper')) }}",
            "{% set a = 'a' * 900000 %}{{ a.translate({97: a}) }}",
            "{% set ns = namespace(x=[]) %}{% set a = 'a' * 900000 %}"
            "{% for i in range(100000) %}{% set ns.x = ns.x + [a ~ i] %}{% endfor %}",
        ],
    )
    def test_text_is_bounded(self, template: str) -> None:
        started = time.monotonic()
        with pytest.raises(InvalidArgumentError) as raised:
            ChatTemplate(template, {}, max_chars=1_000_000).render([USER])
        assert raised.value.reason == "CHAT_TEMPLATE_ERROR"
        assert time.monotonic() - started < 9  # a bound on text has ended it, not the one on time

    @pytest.mark.parametrize(
        "template",
        [
            "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
            "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
            "{% for i in range(100000) if range(100000) | sum < 0 %}{% endfor %}",
        ],
    )
    def test_time_is_bounded(self, template: str) -> None:
        with pytest.raises(InvalidArgumentError, match="takes too long"):
            ChatTemplate(template, {}, time_limit_s=0.05).render([USER])

    @pytest.mark.parametrize(
        "show",
        [
            "x",
            "x | tojson",
            "x | string",
            "x | upper",
            "'' ~ x",
            "[x] | join",
            "'%s' % [x]",
            "'%s' | format(x)",
            "'{}'.format(x)",
            "[1] | tojson(indent=999999999)",
            "('%(a)s' * 9999) % {'a': 'a' * 9999}",
            "('{0}' * 9999).format('a' * 9999)",
        ],
    )
    def test_lists_are_not_printed_without_bound(self, show: str) -> None:
        doubling = "{% set ns = namespace(x=['a']) %}{% for i in range(99) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}"
        template = ChatTemplate(doubling + "{% set x = ns.x %}{{ " + show + " }}", {}, max_chars=1_000_000)
        with pytest.raises(InvalidArgumentError) as raised:
            template.render([USER])
        assert raised.value.reason == "CHAT_TEMPLATE_ERROR"

    def test_output_up_to_the_bound_passes(self) -> None:
        template = ChatTemplate("{% for i in range(100) %}{{ messages[0].content }}{% endfor %}", {}, max_chars=1000)
        assert len(template.render([{"role": "user", "content": "x" * 10}])) == 1000
        with pytest.raises(InvalidArgumentError, match="limit of 1000 characters"):
            template.render([{"role": "user", "content": "x" * 11}])
