"""Adapters of MLX-LM, and what its own layers do with the same factors (mlx_lm/tuner/lora.py, dora.py)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from safetensors.torch import load_file, save_file

import submerge
from _models import ROOM
from store.helpers_adapter import State, applied
from submerge.errors import RequestError
from submerge.store import Adapter, fit_adapter, open_model
from submerge.store.folder._hub_files import needed_of_model

Q, UP, TABLE = "model.layers.0.self_attn.q_proj", "model.layers.0.mlp.up_proj", "model.embed_tokens"
SHAPES = {
    f"{Q}.weight": (8, 8),
    f"{UP}.weight": (12, 8),
    f"{TABLE}.weight": (20, 8),
    "lm_head.weight": (20, 8),
}
CONFIG = {
    "model": "mlx-community/Toy-4bit",
    "fine_tune_type": "lora",
    "num_layers": 1,
    "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0},
}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def factors(*modules: str, seed: int = 0) -> State:
    """Return `lora_a` [in, r] and `lora_b` [r, out] of linear maps; [V, r] and [r, d] of an embedding."""
    tensors = {}
    for module in modules:
        first, last = SHAPES[f"{module}.weight"][:: 1 if module == TABLE else -1]
        tensors[f"{module}.lora_a"] = draw(first, 2, seed=seed)
        tensors[f"{module}.lora_b"] = draw(2, last, seed=seed + 1)
    return tensors


def base() -> State:
    return {name: draw(*shape, seed=seed) for seed, (name, shape) in enumerate(SHAPES.items())}


def fused(state: State, tensors: State, scale: float = 20.0) -> State:
    """Return what `mlx_lm.fuse` makes of a base in float32."""
    found = dict(state)
    for key, a in tensors.items():
        module = key.removesuffix(".lora_a")
        if module == key:
            continue
        update = scale * a @ tensors[f"{module}.lora_b"]
        weight = state[f"{module}.weight"] + (update if module == TABLE else update.T)
        if (m := tensors.get(f"{module}.m")) is not None:
            weight = (m / weight.norm(dim=1))[:, None] * weight
        found[f"{module}.weight"] = weight
    return found


def write(folder: Path, tensors: State, config: dict[str, Any] | None = None, **fields: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps((CONFIG if config is None else config) | fields))
    return folder


def opened(folder: Path) -> Adapter:
    adapter = open_model(".", root=folder)
    assert isinstance(adapter, Adapter)
    return adapter


@pytest.mark.parametrize("dora", [False, True])
def test_into_a_base(dora: bool, tmp_path: Path) -> None:
    """Square matrices, others, embeddings and heads; a transposed factor would fit the square ones, too."""
    modules = (Q, UP) if dora else (Q, UP, TABLE, "lm_head")
    tensors = factors(*modules)
    if dora:
        tensors |= {f"{module}.m": draw(SHAPES[f"{module}.weight"][0]).abs() for module in modules}
    adapter = opened(write(tmp_path, tensors, fine_tune_type="dora" if dora else "lora"))
    assert (adapter.form, adapter.rank, adapter.base) == ("mlx", 2, "mlx-community/Toy-4bit")
    found = applied(base(), fit_adapter(adapter, SHAPES))
    for name, wanted in fused(base(), tensors).items():
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-5)


def test_two_of_them_to_an_adapter_of_peft(tmp_path: Path) -> None:
    """What comes out is in PEFT's form: merged into the base it is the sum of both."""
    both = [factors(Q, UP, TABLE, seed=seed) for seed in (1, 5)]
    folders = [write(tmp_path / f"a{i}", tensors) for i, tensors in enumerate(both)]
    (tmp_path / "base").mkdir()
    save_file(base(), tmp_path / "base" / "model.safetensors")
    models = [{"model": str(folder), "parameters": {"weight": 1.0}} for folder in folders]
    recipe = {"merge_method": "task_arithmetic", "models": models, "output": {"as": "adapter"}}
    submerge.merge(recipe, tmp_path / "both", settings=ROOM)
    last = {"merge_method": "passthrough", "models": [{"model": f"{tmp_path / 'base'}+{tmp_path / 'both'}"}]}
    report = submerge.merge(last, tmp_path / "out", settings=ROOM)
    found = load_file(report.out / "model.safetensors")
    for name, wanted in fused(fused(base(), both[0]), both[1]).items():
        torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-5)


def test_the_last_of_several_steps(tmp_path: Path) -> None:
    save_file(factors(UP), write(tmp_path, factors(Q)) / "0000100_adapters.safetensors")
    assert list(opened(tmp_path).parts) == [f"{Q}.weight"]


@pytest.mark.parametrize(
    ("tensors", "fields", "message"),
    [
        (factors(Q), {"lora_parameters": {"rank": 2}}, "says no scale"),
        (factors(Q), {"lora_parameters": {"scale": 10.0, "alpha": 16.0}}, "scale and alpha"),
        (factors(Q) | {f"{Q}.m": torch.ones(3)}, {}, "a magnitude of the shape [3]"),
        (factors(Q) | {f"{UP}.bias": torch.ones(3)}, {}, "beside factors"),
        ({f"{Q}.lora_a": torch.ones(4, 2, 8), f"{Q}.lora_b": torch.ones(4, 8, 2)}, {}, "packed experts"),
        ({f"{Q}.lora_a": torch.ones(8, 2), f"{Q}.lora_b": torch.ones(3, 8)}, {}, "do not fit each other"),
    ],
)
def test_what_is_refused(tensors: State, fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError) as caught:
        open_model(".", root=write(tmp_path, tensors, **fields))
    assert message in str(caught.value)


def test_what_is_downloaded_of_the_hub() -> None:
    """The configuration has the scale: it comes with the weights, and those of earlier steps do not."""
    names = ["README.md", "adapter_config.json", "adapters.safetensors", "0000100_adapters.safetensors"]
    needed = needed_of_model(names, "org/mlx", False)
    assert (needed.choice.name, needed.small[-1:]) == ("adapters.safetensors", ["adapter_config.json"])
    whole = needed_of_model([*names, "config.json", "model.safetensors"], "org/model", False)
    assert (whole.choice.name, "adapter_config.json" in whole.small) == ("model.safetensors", False)


def test_without_its_configuration(tmp_path: Path) -> None:
    (write(tmp_path, factors(Q)) / "adapter_config.json").unlink()
    with pytest.raises(RequestError, match=r"no adapter_config.json says their scale"):
        open_model("adapters.safetensors", root=tmp_path)


MLP = "model.layers.0.mlp"
EXPERTS = {"gate_proj": (12, 8), "up_proj": (12, 8), "down_proj": (8, 12)}


def stacked(head: str, *, flat: bool) -> State:
    """Return factors of three experts: B [E, out, r] and A [E, r, in], or [E r, in] of earlier versions."""
    tensors = {}
    for seed, (leaf, (outputs, inputs)) in enumerate(EXPERTS.items()):
        a = draw(3, 2, inputs, seed=seed)
        tensors[f"{head}.switch_mlp.{leaf}.lora_a"] = a.reshape(6, inputs) if flat else a
        tensors[f"{head}.switch_mlp.{leaf}.lora_b"] = draw(3, outputs, 2, seed=seed)
    return tensors


def updates(tensors: State) -> dict[str, torch.Tensor]:
    """Return LoRASwitchLinear's updates [E, out, in]."""
    found = {}
    for key, b in tensors.items():
        if key.endswith(".lora_b"):
            a = tensors[key.replace("lora_b", "lora_a")].reshape(3, 2, -1)
            found[key.split(".")[-2]] = 20.0 * b @ a
    return found


@pytest.mark.parametrize("flat", [False, True])
def test_stacked_experts(flat: bool, tmp_path: Path) -> None:
    """Onto bases that keep experts apart, that pack them, and that call their maps as Mixtral does."""
    mixtral = "model.layers.0.block_sparse_moe"
    wanted = updates(stacked(MLP, flat=flat))
    adapter = opened(write(tmp_path / "a", stacked(MLP, flat=flat)))
    apart = {
        f"{MLP}.experts.{e}.{leaf}.weight": torch.zeros(EXPERTS[leaf]) for leaf in EXPERTS for e in range(3)
    }
    packed = {
        f"{MLP}.experts.gate_up_proj": torch.zeros(3, 24, 8),
        f"{MLP}.experts.down_proj": torch.zeros(3, 8, 12),
    }
    shapes = {name: tuple(tensor.shape) for name, tensor in (apart | packed).items()}
    found = applied(apart, fit_adapter(adapter, {name: shapes[name] for name in apart}))
    for leaf in EXPERTS:
        own = torch.stack([found[f"{MLP}.experts.{e}.{leaf}.weight"] for e in range(3)])
        torch.testing.assert_close(own, wanted[leaf])
    found = applied(packed, fit_adapter(adapter, {name: shapes[name] for name in packed}))
    both = torch.cat([wanted["gate_proj"], wanted["up_proj"]], 1)
    torch.testing.assert_close(found[f"{MLP}.experts.gate_up_proj"], both)
    torch.testing.assert_close(found[f"{MLP}.experts.down_proj"], wanted["down_proj"])
    other = opened(write(tmp_path / "b", stacked(mixtral, flat=flat)))
    assert {name.split(".")[-2] for name in other.parts} == {"w1", "w2", "w3"}
    torch.testing.assert_close(
        applied({name: torch.zeros(part.shape) for name, part in other.parts.items()}, other)[
            f"{mixtral}.experts.2.w3.weight"
        ],
        wanted["up_proj"][2],
    )


def test_archives_of_numpy(tmp_path: Path) -> None:
    """mlx-examples wrote adapters.npz, which is no pickle; as the message says it becomes one of MLX-LM."""
    (tmp_path / "a").mkdir()
    tensors = factors(Q, UP)
    np.savez(tmp_path / "a" / "adapters.npz", **{name: tensor.numpy() for name, tensor in tensors.items()})
    for spec in ("a/adapters.npz", "a"):
        with pytest.raises(RequestError, match=r"(?s)NumPy.*safetensors\.numpy\.save_file.*lora_parameters"):
            open_model(spec, root=tmp_path)
    config = tmp_path / "a" / "adapter_config.json"
    config.write_text('{"lora_parameters": {"scale": 20.0}}')
    with pytest.raises(RequestError, match=r"NumPy.*safetensors\.numpy\.save_file"):
        open_model("a", root=tmp_path)
    arrays = dict(np.load(tmp_path / "a" / "adapters.npz"))
    safetensors.numpy.save_file(arrays, tmp_path / "a" / "adapters.safetensors")
    found = applied(base(), fit_adapter(opened(tmp_path / "a"), SHAPES))
    torch.testing.assert_close(found[f"{UP}.weight"], fused(base(), tensors)[f"{UP}.weight"])
