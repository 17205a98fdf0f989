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
from submerge.store import (
    edited_text_parts,
    open_checkpoint,
    text_parts,
    tied_embeddings,
    vocabulary_size,
    with_vocabulary_size,
)


def test_quantised_models(tmp_path: Path) -> None:
    write_single(tmp_path / "c", config={"quantization_config": {"quant_method": "gptq"}})
    text = refused(tmp_path / "c")
    assert "quantised (gptq), and the files have floats" in text
    assert "if they were dequantised, remove quantization_config there; else give the original" in text
    write_single(tmp_path / "t", config={"text_config": {"quantization_config": {"bits": 4}}})
    assert "quantised" in refused(tmp_path / "t")
    write_single(tmp_path / "m", config={"quantization": {"group_size": 64, "bits": 4}})
    assert "quantised, and the files have floats" in refused(tmp_path / "m")
    write_single(tmp_path / "ok", config={"quantization_config": None, "quantization": {"levels": 8}})
    assert open_checkpoint(str(tmp_path / "ok")).tensors
    for number, made in enumerate(
        (
            {"a.qweight": torch.ones(2, dtype=torch.int32)},
            {"a.weight.absmax": torch.ones(2)},
            {"a.weight.quant_state.bitsandbytes__nf4": torch.ones(2, dtype=torch.uint8)},
            {"a.SCB": torch.ones(2)},
            {"a.weight": torch.ones((2, 2), dtype=torch.int8)},
            {"experts.gate_up_proj_blocks": torch.ones((2, 2), dtype=torch.uint8)},
            {"a.weight": torch.ones(2).to(torch.float8_e4m3fn)},
            {"a.weight": torch.ones((2, 2), dtype=torch.uint32), "b": torch.ones(99)},
            {"a.trellis": torch.ones((2, 2, 2), dtype=torch.int16), "a.suh": torch.ones(2)},
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


def test_the_size_of_a_vocabulary_is_set_where_the_language_model_is() -> None:
    assert with_vocabulary_size({"hidden_size": 8}, 40) == {"hidden_size": 8, "vocab_size": 40}
    composite = {"text_config": {"vocab_size": 32}, "vision_config": {"vocab_size": 1}}
    sized = with_vocabulary_size(composite, 40)
    assert sized == {"text_config": {"vocab_size": 40}, "vision_config": {"vocab_size": 1}}
    assert with_vocabulary_size({**composite, "vocab_size": 32}, 40) == {**sized, "vocab_size": 40}
    assert vocabulary_size(sized) == 40


def test_text_parts_are_edited_and_no_others() -> None:
    config = {"a": 1, "text_config": {"a": 1}, "audio_config": {"a": 1}}
    edited = edited_text_parts(config, lambda part: {**part, "a": 2})
    assert edited == {"a": 2, "text_config": {"a": 2}, "audio_config": {"a": 1}}
    assert text_parts(edited) == [edited, {"a": 2}]
    assert text_parts(None) == [{}]


def test_config_json_must_be_sound(tmp_path: Path) -> None:
    write_single(tmp_path)
    (tmp_path / "config.json").write_bytes(b"\xff")
    assert "config.json: is not valid JSON" in refused(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps([1]))
    assert "an object is expected" in refused(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    assert "config.json" in refused(tmp_path)
