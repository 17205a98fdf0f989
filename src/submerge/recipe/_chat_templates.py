"""Chat templates that a recipe may name: formats of conversations, as Jinja that transformers renders."""

from __future__ import annotations

import re
from collections.abc import Mapping

from submerge.errors import did_you_mean
from submerge.recipe._problems import Report, show

__all__ = ["CHAT_TEMPLATES", "read_chat_template"]

_CHATML = """\
{%- for message in messages -%}
    {{- '<|im_start|>' ~ message.role ~ '\\n' ~ message.content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
_LLAMA_3 = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' ~ message.role ~ '<|end_header_id|>\\n\\n' -}}
    {{- message.content | trim ~ '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}
{%- endif -%}
"""
_MISTRAL = """\
{%- set turns = namespace(system='') -%}
{{- bos_token -}}
{%- for message in messages -%}
    {%- if message.role == 'system' -%}
        {%- if not loop.first -%}
            {{- raise_exception('a system message comes first') -}}
        {%- endif -%}
        {%- set turns.system = message.content ~ '\\n\\n' -%}
    {%- elif message.role == 'user' -%}
        {{- ' [INST] ' ~ turns.system ~ message.content ~ ' [/INST]' -}}
        {%- set turns.system = '' -%}
    {%- elif message.role == 'assistant' -%}
        {{- ' ' ~ message.content ~ eos_token -}}
    {%- else -%}
        {{- raise_exception('there is no role ' ~ message.role) -}}
    {%- endif -%}
{%- endfor -%}
"""
_ALPACA = """\
{%- set headings = {'user': 'Instruction', 'user_context': 'Input', 'assistant': 'Response'} -%}
{%- for message in messages -%}
    {%- if message.role in headings -%}
        {{- '### ' ~ headings[message.role] ~ ':\\n' -}}
    {%- endif -%}
    {{- message.content | trim ~ '\\n\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '### Response:\\n' -}}
{%- endif -%}
"""
_EXAONE = """\
{%- if messages and messages[0].role != 'system' -%}
    {{- '[|system|][|endofturn|]\\n' -}}
{%- endif -%}
{%- for message in messages -%}
    {{- '[|' ~ message.role ~ '|]' ~ message.content -}}
    {{- '\\n' if message.role == 'user' else '[|endofturn|]\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '[|assistant|]' -}}
{%- endif -%}
"""

CHAT_TEMPLATES: Mapping[str, str] = {
    "alpaca": _ALPACA,
    "chatml": _CHATML,
    "exaone": _EXAONE,
    "llama3": _LLAMA_3,
    "mistral": _MISTRAL,
}
"""The templates by the names that mergekit has for the formats."""


def read_chat_template(raw: object, report: Report) -> str | None:
    """Return `auto`, the name of a template, or a template's own text."""
    if raw is None:
        return None
    if isinstance(raw, str) and (raw == "auto" or raw in CHAT_TEMPLATES or "{" in raw):
        if fault := _syntax_fault(raw):
            hint = "mend it, or name a format, such as chatml"
            report.add(f"the chat template is no Jinja ({fault})", ("chat_template",), hint)
        return raw
    names = ("auto", *CHAT_TEMPLATES)
    hint = did_you_mean(raw if isinstance(raw, str) else "", names, f"one of {', '.join(names)}, or Jinja")
    report.add(f"unknown chat template {show(raw)}", ("chat_template",), hint)
    return None


def _syntax_fault(text: str) -> str:
    """Return what is wrong with a template, and in which line of it; empty where jinja2 is not installed."""
    try:
        import jinja2
    except ImportError:
        return ""
    # transformers knows one tag more, which marks what the model says
    known = re.sub(r"\{%-?\s*(?:end)?generation\s*-?%\}", "", text)
    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(known)
    except jinja2.TemplateSyntaxError as error:
        return f"{error.message}, in its line {error.lineno}"
    return ""
