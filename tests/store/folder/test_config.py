"""What a configuration says of weights."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from store.helpers_store import (
    raw_file,
    record,
    refused,
    write_single,
)
from submerge.store import open_checkpoint, tied_embeddings


def test_quantised_models(tmp_path: Path) -> None:
    write_single(tmp_path / "c", config={"quantization_config": {"quant_method": "gptq"}})
    assert "quantised (gptq)" in refused(tmp_path / "c")
    write_single(tmp_path / "t", config={"text_config": {"quantization_config": {"bits": 4}}})
    assert "quantised" in refused(tmp_path / "t")
    write_single(tmp_path / "ok", config={"quantization_config": None})
    assert open_checkpoint(str(tmp_path / "ok")).tensors
    for number, made in enumerate(
        (
            {"a.qweight": torch.ones(2, dtype=torch.int32)},
            {"a.weight.absmax": torch.ones(2)},
            {"a.weight.quant_state.bitsandbytes__nf4": torch.ones(2, dtype=torch.uint8)},
            {"a.SCB": torch.ones(2)},
            {"a.weight": torch.ones(2).to(torch.float8_e4m3fn)},
        )
    ):
        path = tmp_path / f"{number}.safetensors"
        save_file(made, path)
        text = refused(path)
        assert "quantised" in text
        assert next(iter(made)) in text
    save_file({"freqs": torch.ones(2, dtype=torch.complex64)}, tmp_path / "z.safetensors")
    assert "complex tensors of type C64" in refused(tmp_path / "z.safetensors")
    assert "quantised" in refused(raw_file(tmp_path / "f4", {"a": record("F4", [4], [0, 2])}, bytes(2)))


def test_tied_embeddings() -> None:
    assert tied_embeddings({"tie_word_embeddings": True})
    assert tied_embeddings({"text_config": {"tie_word_embeddings": True}})
    assert not tied_embeddings({"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}})
    assert not tied_embeddings({})
    assert not tied_embeddings(None)


def test_config_json_must_be_sound(tmp_path: Path) -> None:
    write_single(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff")
    assert "config.json: is not valid JSON" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    assert "an object is expected" in refused(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "config.json" in refused(tmp_path)
