"""Fine-tunes whose files name or pack the same parameters otherwise than the base's: exact at weight 1."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _cli import ROOM as ROOM_ARGUMENTS
from _cli import cli, merge
from _models import ROOM, contents, read
from _two_forms import (
    BY_NAME,
    IDS,
    KINDS,
    NEW,
    gpt2,
    mixtral,
    moved,
    pair,
    recipe,
    renamed,
    same,
    save,
    transformers,
)
from submerge.engine.output import _run
from submerge.errors import RequestError


@pytest.mark.parametrize("other", ["base", "tuned"])
@pytest.mark.parametrize("kind", KINDS)
def test_merged_exactly(kind: str, other: str, tmp_path: Path) -> None:
    base, tuned, model = pair(kind, tmp_path, other=other)
    report = submerge.merge(recipe(tmp_path, base, tuned), tmp_path / "out", settings=ROOM)
    assert not report.warnings
    assert {n: t.shape for n, t in read(tmp_path / "out").items()} == {
        n: t.shape for n, t in read(base).items()
    }
    assert same(tmp_path / "out", model)
    if kind not in ("vit", "whisper", "wav2vec"):
        found = type(model).from_pretrained(tmp_path / "out").eval()(input_ids=IDS)[0]
        torch.testing.assert_close(found, model.eval()(input_ids=IDS)[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("other", ["base", "tuned"])
@pytest.mark.parametrize("kind", BY_NAME)
def test_names_alone_will_do(kind: str, other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without transformers, too, where prefixes and spellings are all that differs."""
    base, tuned, model = pair(kind, tmp_path, other=other)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "transformers", None)
        submerge.merge(recipe(tmp_path, base, tuned), tmp_path / "out", settings=ROOM)
    assert same(tmp_path / "out", model)


def test_packed_experts_need_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, tuned, _ = pair("qwen3moe", tmp_path, other="tuned")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(RequestError, match="experts") as refused:
        submerge.plan(recipe(tmp_path, base, tuned), ROOM)
    assert "missing: base" not in str(refused.value)
    assert 'pip install "submerge[models]"' in str(refused.value)


# --- adapters, buffers ----------------------------------------------------------------------------


def adapted(model: Any, targets: list[str], folder: Path) -> Any:
    """Save an adapter of a model, and return the model with it merged."""
    import peft

    wrapped = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets))
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=draw))
    wrapped.save_pretrained(str(folder))
    return wrapped.merge_and_unload()


@pytest.mark.parametrize("kind", ["qwen2vl", "mixtral"])
@pytest.mark.parametrize("other", ["base", "tuned"])
def test_an_adapter_on_a_model_under_other_names(kind: str, other: str, tmp_path: Path) -> None:
    base, tuned, model = pair(kind, tmp_path, other=other)
    merged = adapted(model, ["q_proj", "v_proj"], tmp_path / "adapter")
    path = recipe(tmp_path, base, f"{tuned}+{tmp_path / 'adapter'}")
    report = submerge.merge(path, tmp_path / "out", settings=ROOM)
    assert same(tmp_path / "out", merged)
    assert json.loads((report.out / "submerge.json").read_text())["models"][1]["adapter"]


def test_an_adapter_on_experts_that_the_base_packs_otherwise(tmp_path: Path) -> None:
    """It is refused by name, and what the hint says leads to the right result."""
    import peft

    base, tuned, model = pair("mixtral", tmp_path, other="base")
    wrapped = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=[], target_parameters=["mlp.experts.down_proj"])
    )
    moved(wrapped, 5)
    wrapped.save_pretrained(str(tmp_path / "adapter"))
    both = f"{tuned}+{tmp_path / 'adapter'}"
    result = merge(recipe(tmp_path, base, both), tmp_path / "out")
    assert result.code == 2
    assert "packs otherwise: model.layers.0" in result.err
    assert "merge_method: passthrough" in result.err
    submerge.merge(
        {"merge_method": "passthrough", "models": [{"model": both}]}, tmp_path / "one", settings=ROOM
    )
    submerge.merge(recipe(tmp_path, base, tmp_path / "one"), tmp_path / "out", settings=ROOM)
    one, two = (mixtral().from_pretrained(tmp_path / n).state_dict() for n in ("one", "out"))
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)


def test_masks_that_one_version_saves(tmp_path: Path) -> None:
    """GPT-2's old files have the causal mask of each layer, which is no parameter."""
    torch.manual_seed(0)
    base, tuned = gpt2(), moved(gpt2())
    save(base, tmp_path / "base")
    renamed(("^transformer\\.", ""))(tmp_path / "base")
    file = tmp_path / "base" / "model.safetensors"
    masks = {f"h.{i}.attn.bias": torch.ones(32, 32).tril()[None, None] for i in range(2)}
    save_file({**load_file(file), **masks}, file, metadata={"format": "pt"})
    save(tuned, tmp_path / "tuned")
    report = submerge.merge(
        recipe(tmp_path, tmp_path / "base", tmp_path / "tuned"), tmp_path / "out", settings=ROOM
    )
    assert same(tmp_path / "out", tuned)
    (warning,) = report.warnings
    assert "no parameter of the model" in warning
    assert torch.equal(read(tmp_path / "out")["h.0.attn.bias"], masks["h.0.attn.bias"])


def test_an_adapter_extracted(tmp_path: Path) -> None:
    """A fine-tune under other names than its base becomes an adapter of that base."""
    base, tuned, model = pair("bert", tmp_path, other="base")
    result = cli("extract-lora", tuned, "--base", base, "--out", tmp_path / "lora", "--rank", "16")
    assert result.code == 0, result.err
    text = {"merge_method": "passthrough", "models": [{"model": f"{base}+{tmp_path / 'lora'}"}]}
    submerge.merge(text, tmp_path / "out", settings=ROOM)
    found = type(model).from_pretrained(tmp_path / "out").state_dict()
    name = "encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(found[name], model.state_dict()[name], atol=1e-4, rtol=1e-4)


# --- what stays true ------------------------------------------------------------------------------


@pytest.mark.parametrize("other", ["base", "tuned"])
def test_explained_and_resumed(other: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Experts in ranges: any threads, chunks and shards give the same bytes, and what is read is told."""
    base, tuned, model = pair("mixtral", tmp_path, other=other)
    whole = transformers.AutoModelForCausalLM.from_pretrained(tuned)
    save(whole, tmp_path / "sharded", max_shard_size="20KB", **({} if other == "base" else NEW))
    path = recipe(tmp_path, base, tuned, tmp_path / "sharded", parameters={"lambda": 0.5})
    submerge.merge(path, tmp_path / "out", settings=ROOM)
    assert same(tmp_path / "out", model)
    monkeypatch.setattr("submerge.engine.plan.tensors._tensor.CHUNK_VALUES", 1)
    monkeypatch.setattr("submerge.engine.plan.tensors._tensor.RANGE_ELEMENTS", 1)
    submerge.merge(
        path, tmp_path / "again", settings=submerge.Settings(threads=2, max_memory=ROOM.max_memory)
    )
    one, two = read(tmp_path / "out"), read(tmp_path / "again")
    assert all(torch.equal(one[name], two[name]) for name in one)
    manifest = json.loads((tmp_path / "out" / "submerge.json").read_text())
    assert "packed otherwise" in manifest["models"][1]["names"]
    shown = cli("plan", path, *ROOM_ARGUMENTS)
    assert "packed otherwise (" in shown.out
    shown = cli("explain", path, "-t", "*layers.0.*experts*")
    assert shown.code == 0
    names = read(tuned).keys()
    assert any(f"{tuned} {name}" in shown.out for name in names if "experts" in name)


def test_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is stopped goes on to the same bytes."""
    base, tuned, _ = pair("mixtral", tmp_path, other="tuned")
    path = recipe(tmp_path, base, tuned, merge_method="ties", parameters={"density": 0.5})
    whole = submerge.merge(path, tmp_path / "whole", settings=ROOM)
    finished = _run.Run._finished
    count = iter(range(10**6))

    def stopping(self: Any, record: Any) -> None:
        finished(self, record)
        if next(count) == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_run.Run, "_finished", stopping)
        with pytest.raises(KeyboardInterrupt):
            submerge.merge(path, tmp_path / "out", settings=ROOM)
    report = submerge.merge(path, tmp_path / "out", settings=ROOM, resume=True)
    assert report.resumed >= 12
    one, two = contents(report.out), contents(whole.out)
    assert {n: v for n, v in one.items() if n != "README.md"} == {
        n: v for n, v in two.items() if n != "README.md"
    }


def test_bfloat16_and_methods_on_matrices(tmp_path: Path) -> None:
    """A fine-tune of another type, and a method that takes a matrix whole."""
    torch.manual_seed(0)
    base, tuned = mixtral(), moved(mixtral()).bfloat16()
    save(base, tmp_path / "base")
    save(tuned, tmp_path / "tuned", **NEW)
    path = recipe(tmp_path, tmp_path / "base", tmp_path / "tuned", merge_method="cat")
    submerge.merge(path, tmp_path / "out", settings=ROOM)
    assert same(tmp_path / "out", tuned.float())


def test_two_places_that_fit_are_not_guessed() -> None:
    own = {f"layers.{i}.weight": torch.ones(2, 2) for i in range(2)}
    base = {f"{side}.{name}": torch.zeros(2, 2) for side in ("left", "right") for name in own}
    for rules in (None, {"missing": "base"}):
        with pytest.raises(RequestError, match="fit equally with 'left' put before and with 'right'"):
            submerge.merge_state_dicts([own], base=base, method="task_arithmetic", weight=1.0, rules=rules)
    base |= {f"left.{name}": torch.zeros(3, 3) for name in own}
    with pytest.raises(
        RequestError, match=r"missing: left\.layers\.0\.weight"
    ):  # shapes decide for the right
        submerge.merge_state_dicts([own], base=base, method="task_arithmetic", weight=1.0)


def test_in_memory() -> None:
    base = {"h.0.weight": torch.zeros(2, 2), "h.1.weight": torch.zeros(2, 2), "wte.weight": torch.zeros(3, 2)}
    tuned = {f"transformer.{name}": torch.ones_like(tensor) for name, tensor in base.items()}
    found = submerge.merge_state_dicts([tuned], base=base, method="task_arithmetic", weight=1.0)
    assert found.keys() == base.keys()
    assert all(bool((tensor == 1).all()) for tensor in found.values())


def test_a_base_that_training_wrapped(tmp_path: Path) -> None:
    """Its names are the output's, which transformers cannot load: a warning says so, and what to do."""
    base, tuned, _ = pair("gpt2", tmp_path, other="base")
    folder = tmp_path / "wrapped"
    folder.mkdir()
    save_file(
        {f"_orig_mod.{name}": tensor for name, tensor in read(base).items()}, folder / "model.safetensors"
    )
    (folder / "config.json").write_bytes((base / "config.json").read_bytes())
    models = [str(folder), str(tuned)]
    recipe = {"merge_method": "linear", "models": models, "parameters": {"weight": 1}}
    (warning,) = submerge.plan(recipe).warnings
    assert "names that training put words in (_orig_mod." in warning
    assert not submerge.plan(recipe | {"models": models[::-1]}).warnings
