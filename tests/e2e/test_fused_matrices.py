"""Fused matrices, end to end: a model has the merge of the same numbers in a split layout."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _cli import cli
from _models import CONFIG, ROOM, perturbed, quiet_transformers, read, write
from _specialists import make_specialists
from submerge.algebra import FusedLayout
from submerge.engine import Settings
from submerge.engine.output import compute_seconds, describe, explain, fingerprint
from submerge.errors import RequestError
from submerge.store import Manifest

State = Mapping[str, torch.Tensor]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 40}
GROUPED = SIZES | {"num_key_value_heads": 2, "intermediate_size": 48, "pad_token_id": 0}


@dataclass(frozen=True)
class Kind:
    """A class of transformers, its sizes, and how its fused matrices are cut, by the last word of a name."""

    config: str
    model: str
    sizes: Mapping[str, Any]
    cuts: Mapping[str, Callable[[torch.Tensor], tuple[torch.Tensor, ...]]]


def by_head(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cut as GPT-NeoX and BLOOM do: heads of 8 rows."""
    return tuple(weight.view(4, 3, 8, 32)[:, i].reshape(32, 32) for i in range(3))


def by_group(weight: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Cut as Falcon does: two groups of two heads of 8 rows, with keys and values for each group."""
    groups = weight.view(2, 4, 8, 32)
    return tuple(groups[:, own].reshape(-1, 32) for own in (slice(0, 2), slice(2, 3), slice(3, 4)))


KINDS = {
    "phi3": Kind(
        "Phi3Config",
        "Phi3ForCausalLM",
        GROUPED,
        {"qkv_proj": lambda w: w.split((32, 16, 16)), "gate_up_proj": lambda w: w.chunk(2)},
    ),
    "gpt2": Kind(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": 40},
        {"c_attn": lambda w: w.chunk(3, dim=1)},
    ),
    "neox": Kind(
        "GPTNeoXConfig", "GPTNeoXForCausalLM", SIZES | {"intermediate_size": 48}, {"query_key_value": by_head}
    ),
    "falcon": Kind(
        "FalconConfig",
        "FalconForCausalLM",
        SIZES | {"new_decoder_architecture": True, "num_kv_heads": 2},
        {"query_key_value": by_group},
    ),
}


def split(state: State, kind: Kind) -> dict[str, torch.Tensor]:
    """Return the same model with a matrix for each map."""
    found = {}
    for name, tensor in state.items():
        module = name.removesuffix(".weight").rpartition(".")[2]
        if module not in kind.cuts or tensor.ndim < 2:
            found[name] = tensor
            continue
        for i, part in enumerate(kind.cuts[module](tensor)):
            found[name.replace(".weight", f".map{i}.weight")] = part.contiguous()
    return found


def base_of(root: Path, kind: Kind) -> Path:
    """Write a model of this kind with random weights."""
    transformers = quiet_transformers()
    torch.manual_seed(0)
    config = getattr(transformers, kind.config)(**kind.sizes)
    getattr(transformers, kind.model)(config).save_pretrained(root / "base")
    return root / "base"


def saved(model: Any, folder: Path) -> dict[str, torch.Tensor]:
    """Return a model's tensors as files have them."""
    model.save_pretrained(folder)
    return read(folder)


def recipe(base: Path, models: list[Path], **more: Any) -> dict[str, Any]:
    parameters = {"rank": "3"} | more.pop("parameters", {})
    return {
        "merge_method": "ssam",
        "base_model": str(base),
        "models": [{"model": str(path)} for path in models],
        "parameters": parameters,
        **more,
    }


def close(found: State, wanted: State) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("name", KINDS)
def test_checkpoints_merge_as_those_of_a_split_layout(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    base = base_of(tmp_path, kind)
    config, state = json.loads((base / "config.json").read_text()), read(base)
    tuned = [perturbed(state, seed) for seed in range(2)]
    fused = [write(tmp_path / f"fused{i}", one, config) for i, one in enumerate(tuned)]
    apart = [write(tmp_path / f"split{i}", split(one, kind), CONFIG) for i, one in enumerate([state, *tuned])]

    report = submerge.merge(recipe(base, fused), tmp_path / "out", settings=ROOM)
    wanted = read(submerge.merge(recipe(apart[0], apart[1:]), tmp_path / "apart", settings=ROOM).out)
    found = read(report.out)
    close(split(found, kind), wanted)
    assert not [line for line in report.warnings if "one matrix" in line]

    whole = recipe(base, fused, parameters={"fused": "whole"})
    as_one = split(read(submerge.merge(whole, tmp_path / "whole", settings=ROOM).out), kind)
    mapped = [key for key in wanted if ".map" in key]
    assert mapped
    assert all(float((as_one[key] - wanted[key]).norm()) > 1e-3 for key in mapped)
    close(
        {k: v for k, v in as_one.items() if k not in mapped},
        {k: v for k, v in wanted.items() if k not in mapped},
    )

    once = submerge.merge(
        recipe(base, fused), tmp_path / "again", settings=Settings(max_memory=10**11, threads=1)
    )
    for key, tensor in read(once.out).items():
        assert torch.equal(tensor, found[key]), key


@pytest.mark.parametrize("name", KINDS)
def test_adapters_merge_as_those_of_a_split_layout(name: str, tmp_path: Path) -> None:
    """As a checkpoint, and as an adapter that PEFT loads."""
    kind = KINDS[name]
    base = base_of(tmp_path, kind)
    state, transformers = read(base), quiet_transformers()
    tuned, folders = [], []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import peft

        for i, r in enumerate((4, 2)):
            model = getattr(transformers, kind.model).from_pretrained(base)
            wrapped = peft.get_peft_model(model, peft.LoraConfig(r=r, target_modules=list(kind.cuts)))
            draw = torch.Generator().manual_seed(i)
            for parameter in wrapped.parameters():
                if parameter.requires_grad:
                    parameter.data = 0.3 * torch.randn(parameter.shape, generator=draw)
            wrapped.save_pretrained(tmp_path / f"a{i}")
            folders.append(tmp_path / f"a{i}")
            tuned.append(saved(wrapped.merge_and_unload(), tmp_path / f"whole{i}"))

    apart = [write(tmp_path / f"split{i}", split(one, kind), CONFIG) for i, one in enumerate([state, *tuned])]
    wanted = read(submerge.merge(recipe(apart[0], apart[1:]), tmp_path / "apart", settings=ROOM).out)
    found = read(submerge.merge(recipe(base, folders), tmp_path / "out", settings=ROOM).out)
    close(split(found, kind), wanted)

    report = submerge.merge(
        recipe(base, folders, output={"as": "adapter"}), tmp_path / "adapter", settings=ROOM
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = getattr(transformers, kind.model).from_pretrained(base)
        merged = peft.PeftModel.from_pretrained(model, report.out).merge_and_unload()
    close(split(saved(merged, tmp_path / "merged"), kind), wanted)
    ranks = {figures["rank"] for figures in report.figures.values()}
    assert ranks <= {6, 9}, "three directions for each of two or three maps"


def lora(folder: Path, base: str, seed: int) -> Path:
    """Write an adapter of Phi-3's fused queries, keys and values by hand."""
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "r": 4, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"target_modules": ["qkv_proj"]}))
    draw = torch.Generator().manual_seed(seed)
    path = "base_model.model.model.layers.0.self_attn.qkv_proj.lora_"
    factors = {"A": torch.randn(4, 32, generator=draw), "B": torch.randn(64, 4, generator=draw)}
    save_file(
        {f"{path}{side}.weight": factor for side, factor in factors.items()},
        folder / "adapter_model.safetensors",
    )
    return folder


@pytest.mark.parametrize("named", [True, False])
def test_the_base_of_adapters_alone_need_only_have_a_configuration(named: bool, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"model_type": "phi3", **GROUPED}))
    folders = [lora(tmp_path / f"a{i}", str(base), i) for i in range(2)]
    asked = recipe(base, folders, output={"as": "adapter"})
    if not named:
        del asked["base_model"]
    plan = submerge.plan(asked, settings=ROOM)
    (tensor,) = plan.tensors
    assert tensor.fused == FusedLayout(("q", "k", "v"), (32, 16, 16))
    assert not plan.warnings
    (base / "config.json").write_text("{")
    with pytest.raises(RequestError, match="fused: whole to take each as one"):
        submerge.plan(asked, settings=ROOM)
    asked["parameters"] = {**asked.get("parameters", {}), "fused": "whole"}
    assert submerge.plan(asked, settings=ROOM).tensors[0].fused is None


def test_a_base_that_adapters_alone_name_is_not_looked_for_elsewhere(tmp_path: Path) -> None:
    """No network is asked for what the recipe does not name."""
    folders = [lora(tmp_path / f"a{i}", "org/base", i) for i in range(2)]
    asked = recipe(tmp_path / "base", folders, output={"as": "adapter"})
    del asked["base_model"]
    plan = submerge.plan(asked, settings=ROOM)
    assert plan.tensors[0].fused is None
    (told,) = plan.warnings
    assert "without the base's config.json: name it as base_model" in told


def test_language_models_of_specialists(tmp_path: Path) -> None:
    """Of a composed model: its language model, and that of its bank from which modalities' values follow."""
    kind = KINDS["phi3"]
    cuts = {"qkv_proj": lambda w: w.split((16, 8, 8)), "gate_up_proj": lambda w: w.chunk(2)}
    made = make_specialists(tmp_path, "Phi3")
    maps = r".*language_model.*(?:qkv|gate_up)_proj"
    made.adapt("vision", "vision-lora", 1, r=2, target_modules=maps)
    made.adapt("hearing", "hearing-lora", 2, r=1, target_modules=maps)
    entries = [
        made.entry("vision", "image", lora="vision-lora"),
        made.entry("hearing", "audio", lora="hearing-lora"),
    ]
    asked = made.recipe("ssam", *entries, parameters={"rank": "2"})
    plan = submerge.plan(asked, settings=ROOM)
    out = submerge.merge(plan, tmp_path / "out").out
    base = load_file(made.path("base") / "model.safetensors")
    tuned = [
        made.language(made.adapted("vision", "vision-lora")),
        made.language(made.adapted("hearing", "hearing-lora")),
    ]
    kind = replace(kind, cuts=cuts)
    layers = [{n: t for n, t in one.items() if ".layers." in n} for one in (base, *tuned)]
    apart = [split(one, kind) for one in layers]
    wanted = submerge.merge_state_dicts(apart[1:], base=apart[0], method="ssam", rank="2")
    found, bank = load_file(out / "model.safetensors"), load_file(out / "bank.safetensors")
    close(split({name: found[name] for name in layers[0]}, kind), wanted)
    fused = [t.name for t in plan.tensors if t.fused]
    assert len(fused) == 4
    for name in fused:
        merged = bank[f"merged.{name}.left"] @ bank[f"merged.{name}.right"]
        torch.testing.assert_close(found[name] - merged, base[name], rtol=0, atol=1e-5)
    assert sum(tensor.nbytes for tensor in bank.values()) <= describe(plan)["bank"]["most"]
    assert submerge.verify(out).sound


def test_an_adapter_may_be_cut_to_a_rank(tmp_path: Path) -> None:
    kind = KINDS["phi3"]
    base = base_of(tmp_path, kind)
    state = read(base)
    config = json.loads((base / "config.json").read_text())
    tuned = [write(tmp_path / f"t{i}", perturbed(state, i), config) for i in range(2)]
    form = {"as": "adapter", "rank": 4}
    report = submerge.merge(recipe(base, tuned, output=form), tmp_path / "out", settings=ROOM)
    fused = {n: f for n, f in report.figures.items() if "maps" in f}
    assert len(fused) == 4
    assert {f["rank"] for f in fused.values()} == {4}
    assert all(0 < f["error"] < 1 for f in fused.values())


def test_plans_say_which_maps_a_matrix_has(tmp_path: Path) -> None:
    kind = KINDS["phi3"]
    base = base_of(tmp_path, kind)
    config = json.loads((base / "config.json").read_text())
    tuned = [write(tmp_path / f"t{i}", perturbed(read(base), i), config) for i in range(2)]
    plan = submerge.plan(recipe(base, tuned), settings=ROOM)
    qkv = "model.layers.0.self_attn.qkv_proj.weight"
    (line,) = explain(plan, qkv)
    assert line["why"] == "q, k, v one by one"
    assert line["options"]["fused"][0]["value"] == "split"
    whole = submerge.plan(recipe(base, tuned, parameters={"fused": "whole"}), settings=ROOM)
    assert plan.budget.per_worker < whole.budget.per_worker, "no Gram matrix has the side of all maps"
    assert compute_seconds(plan) > 0
    groups = {group["tensors"]: group.get("why") for group in describe(plan)["groups"]}
    assert groups["model.layers.*.mlp.gate_up_proj.weight"] == "gate, up one by one"
    assert groups["model.layers.*.mlp.down_proj.weight"] is None
    by_layer = {"filter": "layers.0", "value": "whole"}
    mixed = submerge.plan(
        recipe(base, tuned, parameters={"fused": [by_layer, {"value": "split"}]}), settings=ROOM
    )
    assert {t.name for t in mixed.tensors if t.fused} == {
        f"model.layers.1.{module}.weight" for module in ("self_attn.qkv_proj", "mlp.gate_up_proj")
    }


@pytest.mark.parametrize("name", ["gpt2", "falcon"])
def test_rows_may_be_read_anew(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of matrices are that do not fit the memory."""
    base = base_of(tmp_path, KINDS[name])
    config = json.loads((base / "config.json").read_text())
    tuned = [write(tmp_path / f"t{i}", perturbed(read(base), i), config) for i in range(2)]
    asked = recipe(base, tuned, parameters={"residual": 0.5})
    held = read(submerge.merge(asked, tmp_path / "held", settings=ROOM).out)
    monkeypatch.setattr("submerge.engine.work._matrix.HELD", 0)
    close(read(submerge.merge(asked, tmp_path / "streamed", settings=ROOM).out), held)


def test_a_module_tells_its_layout_and_a_state_dict_does_not() -> None:
    kind, transformers = KINDS["phi3"], quiet_transformers()
    torch.manual_seed(0)
    base = getattr(transformers, kind.model)(getattr(transformers, kind.config)(**kind.sizes))
    state = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    tuned = [perturbed(state, seed) for seed in range(2)]
    apart = [split(one, kind) for one in (state, *tuned)]
    wanted = submerge.merge_state_dicts(apart[1:], base=apart[0], method="ssam", rank="3")
    found = submerge.merge_state_dicts(tuned, base=base, method="ssam", rank="3")
    close(split(found, kind), wanted)
    with pytest.warns(UserWarning, match="qkv_proj.weight.*pass the base as a module"):
        told = submerge.merge_state_dicts(tuned, base=state, method="ssam", rank="3")
    whole = submerge.merge_state_dicts(tuned, base=base, method="ssam", rank="3", fused="whole")
    close(told, whole)


def test_what_each_map_keeps_is_printed(tmp_path: Path) -> None:
    base = base_of(tmp_path, KINDS["neox"])
    config = json.loads((base / "config.json").read_text())
    tuned = [write(tmp_path / f"t{i}", perturbed(read(base), i), config) for i in range(2)]
    (tmp_path / "r.yaml").write_text(json.dumps(recipe(base, tuned)))
    result = cli("merge", tmp_path / "r.yaml", "-o", tmp_path / "out", "--max-memory", "64GB")
    assert result.code == 0, result.err
    kept = {
        f"{name} ({which})": figures["kept"]
        for name, tensor in Manifest.read(tmp_path / "out").tensors.items()
        for which, figures in tensor.figures.get("maps", {}).items()
    }
    assert len(kept) == 6
    others = Manifest.read(tmp_path / "out").figures("kept")
    worst = min({**kept, **others}.items(), key=lambda one: one[1])
    assert f"least {worst[1]:.1%} in {worst[0]}" in result.out


def test_another_configuration_is_another_merge(tmp_path: Path) -> None:
    """So that no run goes on that began with other maps."""
    base = base_of(tmp_path, KINDS["falcon"])
    config = json.loads((base / "config.json").read_text())
    tuned = [write(tmp_path / f"t{i}", perturbed(read(base), i), config) for i in range(2)]
    plan = submerge.plan(recipe(base, tuned), settings=ROOM)
    other = [replace(t, fused=None) for t in plan.tensors]
    assert fingerprint(plan) != fingerprint(replace(plan, tensors=tuple(other)))


def test_a_layout_that_is_not_known_is_told_once(tmp_path: Path) -> None:
    kind = KINDS["phi3"]
    base = base_of(tmp_path, kind)
    config = json.loads((base / "config.json").read_text()) | {"model_type": "newer"}
    (base / "config.json").write_text(json.dumps(config))
    tuned = [write(tmp_path / f"t{i}", perturbed(read(base), i), config) for i in range(2)]
    told = [
        line for line in submerge.plan(recipe(base, tuned), settings=ROOM).warnings if "one matrix" in line
    ]
    assert len(told) == 1
    assert "gate_up_proj.weight" in told[0]
    assert "and 1 more" in told[0]
    assert "not known in a model of type newer" in told[0]
    whole = submerge.plan(recipe(base, tuned, parameters={"fused": "whole"}), settings=ROOM)
    assert not [line for line in whole.warnings if "one matrix" in line]
    other = recipe(base, tuned) | {"merge_method": "iso_c", "parameters": {"scale": 1.0}}
    assert not [line for line in submerge.plan(other, settings=ROOM).warnings if "one matrix" in line]
