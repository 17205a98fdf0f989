"""Composed models: the language model is the merge of the language models, and the bank has the streams."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import submerge
from _models import ROOM
from _specialists import Specialists, State, make_specialists

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
TABLES = ("lm_head.weight", "model.embed_tokens.weight")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Specialists:
    specialists = make_specialists(tmp_path_factory.mktemp("specialists"))
    specialists.adapt("vision", "vision-lora", 1)
    specialists.adapt("hearing", "hearing-language", 2, r=3, target_modules=r".*language_model.*q_proj")
    specialists.adapt("hearing", "hearing-audio", 3, target_modules=r".*language_model.*(?:k|o)_proj")
    specialists.tune("vision", "vision-tuned", 4)
    specialists.tune("hearing", "hearing-tuned", 5)
    return specialists


def merged(made: Specialists, out: Path, method: str, *entries: dict[str, Any], **more: Any) -> State:
    """Return the language model of the merge's output, after the folder was found to be sound."""
    submerge.merge(made.recipe(method, *entries, **more), out, settings=ROOM)
    report = submerge.verify(out)
    assert report.sound, report.problems
    assert report.loaded == "LlamaForCausalLM"
    return load_file(out / "model.safetensors")


def stream(out: Path, number: int, made: Specialists) -> State:
    """Return the parameters of a stream, by the bank's reading rule."""
    bank, text = load_file(out / "bank.safetensors"), load_file(out / "model.safetensors")
    return {name: _of_stream(bank, number, name, text[name]) for name in text if name not in TABLES}


def _of_stream(bank: State, number: int, name: str, text: torch.Tensor) -> torch.Tensor:
    own = f"streams.{number}.{name}"
    if f"{own}.values" in bank:
        return bank[f"{own}.values"]
    base = bank.get(f"base.{name}")
    if base is None and f"merged.{name}.left" in bank:
        base = text - bank[f"merged.{name}.left"] @ bank[f"merged.{name}.right"]
    base = text if base is None else base
    return base + bank[f"{own}.left"] @ bank[f"{own}.right"] if f"{own}.left" in bank else base


def same(actual: State, expected: State) -> None:
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], **CLOSE)


def without_tables(state: State) -> State:
    return {name: tensor for name, tensor in state.items() if name not in TABLES}


def base_state(made: Specialists) -> State:
    return load_file(made.path("base") / "model.safetensors")


def plain_merge(made: Specialists, method: str, languages: list[State], **options: Any) -> State:
    layers, base = [without_tables(state) for state in languages], without_tables(base_state(made))
    return submerge.merge_state_dicts(layers, base=base, method=method, **options)


METHODS: dict[str, dict[str, Any]] = {
    "ties": {"weight": 0.5, "density": 0.5},
    "ssam": {"rank": 2, "scale": "auto"},
    "task_arithmetic": {"weight": 0.5},
    "linear": {"weight": 0.5},
}


@pytest.mark.parametrize("method", METHODS)
def test_tuned_language_models(made: Specialists, method: str, tmp_path: Path) -> None:
    entries = [made.entry("vision-tuned", "image"), made.entry("hearing-tuned", "audio")]
    out = tmp_path / "out"
    text = merged(made, out, method, *entries, parameters=METHODS[method])
    own = [made.language(dict(made.load(name).state_dict())) for name in ("vision-tuned", "hearing-tuned")]
    expected = plain_merge(made, method, own, **METHODS[method])
    assert all(torch.equal(text[name], expected[name]) for name in text if name not in TABLES)
    for number, language in enumerate(own):
        same(stream(out, number, made), language)


@pytest.mark.parametrize("method", METHODS)
def test_adapters(made: Specialists, method: str, tmp_path: Path) -> None:
    entries = [
        made.entry("vision", "image", lora="vision-lora"),
        made.entry("hearing", "audio", language_lora="hearing-language", modality_lora="hearing-audio"),
    ]
    out = tmp_path / "out"
    text = merged(made, out, method, *entries, parameters=METHODS[method])
    vision = made.language(made.adapted("vision", "vision-lora"))
    hearing = made.language(made.adapted("hearing", "hearing-language"))
    same(without_tables(text), plain_merge(made, method, [vision, hearing], **METHODS[method]))
    same(stream(out, 0, made), vision)
    same(stream(out, 1, made), made.language(made.adapted("hearing", "hearing-audio")))
    bank = load_file(out / "bank.safetensors")
    q = "model.layers.0.self_attn.q_proj.weight"
    assert bank[f"streams.0.{q}.left"].shape == (16, 2)
    assert f"streams.1.{q}.left" not in bank
    low_rank = method in ("ssam", "task_arithmetic")
    assert (f"merged.{q}.left" in bank) == low_rank
    assert (f"base.{q}" in bank) == (not low_rank)
