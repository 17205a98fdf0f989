"""Chat templates: by name, as text, or the most frequent one, as transformers loads and renders them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

import submerge
from _models import ROOM
from _vocabularies import bpe_tokenizer, language_model

CHAT = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi"},
    {"role": "user", "content": "Bye"},
]
RENDERED = {
    "chatml": "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
    "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nBe kind.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nHi<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] Be kind.\n\nHello [/INST] Hi</s> [INST] Bye [/INST]",
    "alpaca": "Be kind.\n\n### Instruction:\nHello\n\n### Response:\nHi\n\n### Instruction:\nBye\n\n"
    "### Response:\n",
    "exaone": "[|system|]Be kind.[|endofturn|]\n[|user|]Hello\n[|assistant|]Hi[|endofturn|]\n[|user|]Bye\n"
    "[|assistant|]",
}
OWN = "{% for message in messages %}{{ message.content }}|{% endfor %}"


def model(folder: Path, template: str | None = None, *, older: bool = False) -> Path:
    language_model(folder, "llama", bpe_tokenizer())
    if template is not None and older:
        path = folder / "tokenizer_config.json"
        named = [{"name": "tools", "template": "{{ tools }}"}, {"name": "default", "template": template}]
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    elif template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def merged(out: Path, template: str, *models: Path, **keys: Any) -> submerge.MergeReport:
    listed = [{"model": str(model), "parameters": {"weight": 1.0}} for model in models]
    recipe = {"merge_method": "linear", "models": listed, "chat_template": template, **keys}
    return submerge.merge(recipe, out, settings=ROOM)


def rendered(folder: Path) -> str:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    return str(tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True))


@pytest.mark.parametrize("name", RENDERED)
def test_a_named_template(tmp_path: Path, name: str) -> None:
    one = model(tmp_path / "one", OWN)
    out = merged(tmp_path / "out", name, one).out
    assert rendered(out) == RENDERED[name]
    written = json.loads((out / "tokenizer_config.json").read_text())["chat_template"]
    assert written == (out / "chat_template.jinja").read_text(), "for older readers"
    assert submerge.verify(out).problems == []


def test_a_template_of_ones_own(tmp_path: Path) -> None:
    one = model(tmp_path / "one")
    assert rendered(merged(tmp_path / "out", OWN, one).out) == "Be kind.|Hello|Hi|Bye|"


def test_the_most_frequent_template(tmp_path: Path) -> None:
    rare = model(tmp_path / "rare", "{{ 'rare' }}")
    one, two = model(tmp_path / "one", f"{OWN}\n"), model(tmp_path / "two", OWN, older=True)
    none = model(tmp_path / "none")
    out = merged(tmp_path / "out", "auto", rare, one, two, none).out
    assert rendered(out) == "Be kind.|Hello|Hi|Bye|"
    keys = {"merge_method": "linear", "chat_template": "auto", "parameters": {"weight": 1.0}}
    plan = submerge.plan({**keys, "models": [{"model": str(m)} for m in (rare, one, two)]}, ROOM)
    assert plan.vocabulary[-1] == "chat template: auto: that of 2 of 3 models that have one"
    plan = submerge.plan({**keys, "models": [{"model": str(none)}]}, ROOM)
    assert plan.vocabulary[-1] == "chat template: auto: no model has one"


def test_what_carries_no_template_is_told(tmp_path: Path) -> None:
    bare = language_model(tmp_path / "bare", "llama", bpe_tokenizer())
    for path in bare.glob("tokenizer*"):
        path.unlink()
    report = merged(tmp_path / "out", "chatml", bare)
    assert report.warnings == ("chat_template: the output has no tokenizer that could carry it",)
    assert not (report.out / "chat_template.jinja").exists()


def test_chat_models_on_a_base_without_a_template(tmp_path: Path) -> None:
    base, chat = model(tmp_path / "base"), model(tmp_path / "chat", OWN)
    recipe = {"merge_method": "linear", "base_model": str(base), "parameters": {"weight": 1.0}}
    (told,) = submerge.plan({**recipe, "models": [str(chat)]}, ROOM).warnings
    assert told.startswith(f"{chat}: the output has no chat template, for its tokenizer's model has none; ")
    for more in ({"chat_template": "auto"}, {"tokenizer_source": str(chat)}):
        assert submerge.plan({**recipe, **more, "models": [str(chat)]}, ROOM).warnings == ()
    assert submerge.plan({**recipe, "models": [str(base)]}, ROOM).warnings == ()
