from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from _hub_server import COMMIT, environment, serving
from _victim import result_of
from store.helpers_adapter import by_hand, described


def opened(cache: Path, url: str, *specs: str, **more: str) -> list[dict[str, Any]]:
    """Open these adapters in a process of its own; with `-` before the name by headers alone."""
    found: list[dict[str, Any]] = result_of(described, specs, environment=environment(url, cache) | more)
    return found


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = by_hand(tmp_path / "repo", base_model_name_or_path="org/base")
    (folder / "README.md").write_text("a card")
    (folder / "optimizer.pt").write_bytes(b"large")
    (folder / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0}}}')
    (folder / "chat_template.jinja").write_text("{{ bos }}")
    for inner in ("additional_chat_templates", "checkpoint-10"):
        (folder / inner).mkdir()
    (folder / "additional_chat_templates" / "tools.jinja").write_text("{{ tools }}")
    (folder / "checkpoint-10" / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text('{"quantization_config": {"quant_method": "bitsandbytes"}}')
    return folder


def test_adapters_of_the_hub(tmp_path: Path, repo: Path) -> None:
    by_hand(tmp_path / "several" / "one")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    repos = {"org/adapter": repo, "org/several": tmp_path / "several", "org/model": tmp_path / "model"}
    cache = tmp_path / "cache"
    with serving(repos) as hub:
        specs = ("-org/adapter", "org/adapter", "org/several", "org/model")
        planned, found, several, model = opened(cache, hub.url, *specs)
        assert hub.whole("adapter_model.safetensors") == 1
        assert hub.whole("optimizer.pt") == hub.whole("README.md") == 0
        assert hub.whole("checkpoint-10/tokenizer.json") == 0
    tokenizer = ["additional_chat_templates/tools.jinja", "chat_template.jinja", "tokenizer.json"]
    assert planned == {
        "revision": COMMIT, "shapes": {"q.weight": [3, 4]}, "values": None, "base": "org/base",
        "tokenizer": tokenizer,
    }  # fmt: skip
    assert found == planned | {"values": [[4.0] * 4] * 3}
    assert "its subfolders do (one)" in several["error"]
    assert "adapter_config.json is missing" in model["error"]
    # without a network the cache is enough
    assert opened(cache, "http://127.0.0.1:9", "org/adapter", HF_HUB_OFFLINE="1") == [found]
