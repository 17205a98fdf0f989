"""Updates of LyCORIS beyond two factors: LoHa, LoKr, cores of LoCon, and differences of values.

The formulas are those of LyCORIS (lycoris/functional) and of ComfyUI (comfy/weight_adapter).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import submerge
from _models import ROOM
from store.helpers_adapter import State, applied
from submerge.errors import RequestError
from submerge.store import (
    Adapter,
    Checkpoint,
    FileTable,
    byte_view,
    fit_adapter,
    open_model,
    with_folded_table,
)

Q, CONV, NORM = "x.to_q.weight", "x.conv.weight", "x.norm.weight"
SHAPES = {Q: (6, 8), CONV: (6, 4, 3, 2), NORM: (8,), "x.norm.bias": (8,)}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def base() -> State:
    return {name: draw(*shape, seed=9) for name, shape in SHAPES.items()}


def write(path: Path, module: str, tensors: State, **metadata: str) -> Path:
    state = {
        f"lora_unet_x_{module}.{role}": tensor.clone(memory_format=torch.contiguous_format)
        for role, tensor in tensors.items()
    }
    save_file(state, path, metadata=metadata)
    return path


def opened(folder: Path, module: str, tensors: State, **metadata: str) -> Adapter:
    write(folder / "lora.safetensors", module, tensors, **metadata)
    adapter = open_model("lora.safetensors", root=folder)
    assert isinstance(adapter, Adapter)
    return adapter


def tucker(core: torch.Tensor, out: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return a kernel from its core, out [r, m] and inputs [r, i]."""
    return torch.einsum("ijkl,ip,jr->prkl", core, out, inputs).contiguous()


W1, W2 = (draw(6, 2), draw(2, 8)), (draw(6, 2, seed=1), draw(2, 8, seed=1))
T1, T2 = draw(2, 2, 3, 2), draw(2, 2, 3, 2, seed=1)
ROWS, COLUMNS = (draw(2, 6), draw(2, 6, seed=1)), (draw(2, 4), draw(2, 4, seed=1))
BIG, SMALL, SQUARE = draw(2, 4), draw(3, 2), draw(2, 2)
KERNEL = draw(3, 2, 3, 2)
HADAMARD = dict(zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), (*W1, *W2), strict=True))
KRONECKER = {"lokr_w1": BIG, "lokr_w2": SMALL}
LOW = {"lokr_w1": BIG, "lokr_w2_a": SMALL, "lokr_w2_b": SQUARE}
ALPHA = {"alpha": torch.tensor(1.0)}
FORMS: dict[str, tuple[str, State, torch.Tensor]] = {
    "LoHa": ("to_q", HADAMARD | ALPHA, (W1[0] @ W1[1]) * (W2[0] @ W2[1]) / 2),
    "LoHa without alpha": ("to_q", HADAMARD, (W1[0] @ W1[1]) * (W2[0] @ W2[1])),
    "LoHa with cores": (
        "conv",
        {
            "hada_t1": T1, "hada_w1_a": ROWS[0], "hada_w1_b": COLUMNS[0],
            "hada_t2": T2, "hada_w2_a": ROWS[1], "hada_w2_b": COLUMNS[1],
        },
        tucker(T1, ROWS[0], COLUMNS[0]) * tucker(T2, ROWS[1], COLUMNS[1]),
    ),
    "LoKr of whole matrices": ("to_q", KRONECKER | ALPHA, torch.kron(BIG, SMALL)),
    "LoKr": ("to_q", LOW | ALPHA, torch.kron(BIG, SMALL @ SQUARE) / 2),
    "LoKr, both factored": (
        "to_q",
        {"lokr_w1_a": SQUARE, "lokr_w1_b": BIG, "lokr_w2_a": SMALL, "lokr_w2_b": SQUARE},
        torch.kron(SQUARE @ BIG, SMALL @ SQUARE),
    ),
    "LoKr of a convolution": (
        "conv", {"lokr_w1": SQUARE, "lokr_w2": KERNEL}, torch.kron(SQUARE[..., None, None], KERNEL)
    ),
    "LoKr of a convolution, in rows": (
        "conv",
        {"lokr_w1": SQUARE, "lokr_w2_a": SMALL, "lokr_w2_b": draw(2, 12)},
        torch.kron(SQUARE[..., None, None], (SMALL @ draw(2, 12)).view(3, 2, 3, 2)),
    ),
    "LoKr with a core": (
        "conv",
        {"lokr_w1": SQUARE, "lokr_t2": T1, "lokr_w2_a": SMALL.T, "lokr_w2_b": SQUARE},
        torch.kron(SQUARE[..., None, None], tucker(T1, SMALL.T, SQUARE)),
    ),
    "LoCon with a core": (
        "conv",
        {
            "lora_up.weight": ROWS[0].T[..., None, None],
            "lora_mid.weight": T1,
            "lora_down.weight": COLUMNS[0][..., None, None],
        } | ALPHA,
        tucker(T1, ROWS[0], COLUMNS[0]) / 2,
    ),
    "differences": ("to_q", {"diff": draw(6, 8)}, draw(6, 8)),
    "differences of norms": ("norm", {"w_norm": draw(8), "b_norm": draw(8)}, draw(8)),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    module, tensors, update = FORMS[form]
    found = applied(base(), fit_adapter(opened(tmp_path, module, tensors), SHAPES))
    wanted = base()
    wanted[f"x.{module}.weight"] += update
    if "b_norm" in tensors:
        wanted["x.norm.bias"] += tensors["b_norm"]
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, atol=1e-5, rtol=1e-5)


LINEAR = {"lora_up.weight": W1[0], "lora_down.weight": W1[1]}
POINTS = {"lora_up.weight": draw(6, 2, 1, 1), "lora_down.weight": draw(2, 4, 3, 2)}


@pytest.mark.parametrize(
    ("module", "factors", "norms", "axes"),
    [
        ("to_q", LINEAR, draw(6, 1).abs(), (1,)),  # LyCORIS, wd_on_output
        ("to_q", LINEAR, draw(1, 8).abs(), (0,)),  # LyCORIS before, OneTrainer
        ("conv", POINTS, draw(6, 1, 1, 1).abs(), (1, 2, 3)),
    ],
)
def test_dora(
    module: str, factors: State, norms: torch.Tensor, axes: tuple[int, ...], tmp_path: Path
) -> None:
    """`apply_weight_decompose` of LyCORIS: W + BA, scaled to the norms that were trained."""
    adapter = opened(tmp_path, module, factors | ALPHA | {"dora_scale": norms})
    name = f"x.{module}.weight"
    shape = SHAPES[name]
    down, up = factors["lora_down.weight"].flatten(1), factors["lora_up.weight"].flatten(1)
    whole = base()[name] + 0.5 * (up @ down).view(shape)
    wanted = whole * norms / whole.square().sum(axes, keepdim=True).sqrt()
    found = applied(base(), fit_adapter(adapter, SHAPES))
    torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-5)
    save_file(base(), tmp_path / "base.safetensors")
    models = [{"model": f"{tmp_path / 'base.safetensors'}+{tmp_path / 'lora.safetensors'}"}]
    submerge.merge({"merge_method": "passthrough", "models": models}, tmp_path / "out", settings=ROOM)
    found = load_file(tmp_path / "out" / "model.safetensors")
    torch.testing.assert_close(found[name], wanted, atol=1e-5, rtol=1e-5)


def test_differences_alone_are_no_model(tmp_path: Path) -> None:
    """Files for Wan hold differences of norms and biases, under names with dots."""
    state = {"diffusion_model.x.norm.diff": draw(8), "diffusion_model.x.norm.diff_b": draw(8)}
    save_file(state, tmp_path / "wan.safetensors")
    adapter = open_model("wan.safetensors", root=tmp_path)
    assert isinstance(adapter, Adapter)
    found = applied(base(), fit_adapter(adapter, SHAPES))
    for name in (NORM, "x.norm.bias"):
        torch.testing.assert_close(found[name], base()[name] + draw(8))


def test_merges_of_several_kinds(tmp_path: Path) -> None:
    """A product, a difference and factors: into the base, and to an adapter of their sum, which is exact."""
    kinds = {
        "a": ("to_q", HADAMARD, FORMS["LoHa without alpha"][2]),
        "b": ("to_q", {"diff": draw(6, 8)}, draw(6, 8)),
        "c": ("to_q", {"lora_up.weight": W1[0], "lora_down.weight": W1[1]}, W1[0] @ W1[1]),
    }
    models = [
        {"model": str(write(tmp_path / f"{key}.safetensors", *kind[:2])), "parameters": {"weight": 0.5}}
        for key, kind in kinds.items()
    ]
    save_file(base(), tmp_path / "base.safetensors")
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(tmp_path / "base.safetensors"),
        "models": models,
    }
    wanted = base()[Q] + sum(0.5 * kind[2] for kind in kinds.values())
    submerge.merge(recipe, tmp_path / "model", settings=ROOM)
    found = load_file(tmp_path / "model" / "model.safetensors")[Q]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    submerge.merge(recipe | {"output": {"as": "adapter"}}, tmp_path / "adapter", settings=ROOM)
    spec = f"{tmp_path / 'base.safetensors'}+{tmp_path / 'adapter'}"
    submerge.merge(
        {"merge_method": "passthrough", "models": [{"model": spec}]}, tmp_path / "out", settings=ROOM
    )
    found = load_file(tmp_path / "out" / "model.safetensors")[Q]
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(RequestError, match=r"product of matrices \(LoHa\).* name the base"):
        submerge.plan(
            {key: value for key, value in recipe.items() if key != "base_model"}
            | {"output": {"as": "adapter"}},
            settings=ROOM,
        )


def test_a_core_goes_into_factors(tmp_path: Path) -> None:
    """Two LoCons with cores give a file of plain factors, with the same update."""
    module, tensors, update = FORMS["LoCon with a core"]
    path = write(tmp_path / "a.safetensors", module, tensors)
    models = [{"model": str(path), "parameters": {"weight": 0.5}}] * 2
    recipe = {"merge_method": "task_arithmetic", "models": models, "output": {"as": "adapter"}}
    submerge.merge(recipe, tmp_path / "both", settings=ROOM)
    adapter = open_model("both", root=tmp_path)
    assert isinstance(adapter, Adapter)
    found = applied(base(), fit_adapter(adapter, SHAPES))
    torch.testing.assert_close(found[CONV], base()[CONV] + update, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"hada_w1_a": W1[0], "hada_w1_b": W1[1]}, "do not fit"),
        (HADAMARD | {"hada_w2_b": draw(2, 7)}, "do not fit"),
        (KRONECKER | {"lokr_w1_a": SQUARE}, "do not fit"),
        (HADAMARD | {"diff": draw(6, 8)}, "do not fit"),
        ({"lora_up.weight": W1[0], "lora_down.weight": W1[1], "diff": draw(6, 8)}, "in two ways at once"),
        ({"lora_up.weight": W1[0], "lora_down.weight": W1[1], "lora_mid.weight": draw(2, 2)}, "rank 2"),
        ({"lora_mid.weight": T1}, "form that is not known"),
        (HADAMARD | {"dora_scale": draw(6, 1)}, "beside tensors that are none"),
        ({"lora_up.weight": W1[0], "lora_down.weight": W1[1], "dora_scale": draw(7, 1)}, "norms by output"),
    ],
)
def test_what_is_refused(tensors: State, message: str, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=message):
        opened(tmp_path, "to_q", tensors)


def test_products_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"of the shape \[6, 8\], but the base has \[6, 9\]"):
        fit_adapter(opened(tmp_path, "to_q", HADAMARD), {Q: (6, 9)})


def test_two_scales_of_whole_matrices(tmp_path: Path) -> None:
    """LyCORIS writes the rank as alpha where it does not count; another alpha may have been trained with."""
    assert opened(tmp_path, "to_q", KRONECKER | {"alpha": torch.tensor(32.0)}, ss_network_dim="32").parts
    with pytest.raises(RequestError, match="alpha is 1 and the rank 32, but LoKr with whole matrices"):
        opened(tmp_path, "to_q", KRONECKER | ALPHA, ss_network_dim="32")


def test_a_table_with_the_whole_update_in_it(tmp_path: Path) -> None:
    """So it is read where rows of it move: with what was trained of it, and nothing beside it."""
    save_file(base(), tmp_path / "base.safetensors")
    table = open_model("base.safetensors", root=tmp_path)
    assert isinstance(table, Checkpoint)
    adapter = fit_adapter(opened(tmp_path, "to_q", HADAMARD), SHAPES)
    folded = with_folded_table(replace(table, adapter=adapter), Q)
    assert folded.adapter is not None
    assert Q not in folded.adapter.parts
    with FileTable() as files:
        found = torch.empty(6 * 8)
        for start, stop in ((0, 13), (13, 48)):
            folded.source(Q, files).read(start, stop - start, byte_view(found[start:stop]))
        update = adapter.tensor(Q, files)
    torch.testing.assert_close(found.view(6, 8), base()[Q] + update)
