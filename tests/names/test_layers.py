from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submerge.names import depths, is_before_layers, layer_of, layer_stacks, with_layer


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("model.layers.3.mlp.up_proj.weight", ("model.layers", 3)),
        ("model.layers.3.mlp.experts.17.w1", ("model.layers", 3)),
        ("0.auto_model.encoder.layer.1.w", ("", 0)),
        ("lm_head.weight", None),
        ("block3.weight", None),
        ("a.²", None),
        ("a." + "9" * 5000, None),
        ("", None),
    ],
)
def test_layer_of(name: str, place: tuple[str, int] | None) -> None:
    assert layer_of(name) == place


def test_depths() -> None:
    names = [f"model.layers.{index}.w" for index in range(5)] + ["vision.blocks.0.w", "lm_head.weight"]
    found = depths(names)
    assert [found[name] for name in names] == [0, 0.25, 0.5, 0.75, 1, 1.0, 0.0]
    assert list(found) == names
    assert depths([]) == {}


@given(st.lists(st.text(alphabet="ab.019", max_size=10)))
def test_depths_lie_between_zero_and_one(names: list[str]) -> None:
    assert all(0 <= depth <= 1 for depth in depths(names).values())


@pytest.mark.parametrize(
    ("names", "stacks"),
    [
        (["h.0.a", "h.1.a", "wte.weight"], {"h": 2}),
        (["encoder.block.0.layer.0.q", "encoder.block.1.layer.1.q", "decoder.block.0.q"],
         {"encoder.block": 2, "decoder.block": 1}),
        (["model.layers.0.a", "visual.merger.mlp.0.a", "visual.merger.mlp.2.a"], {"model.layers": 1}),
        (["model.layers.1.a"], {}),
        (["0.a", "0.b", "1.a", "head.0.a"], {"head": 1}),
        (["a.weight"], {}),
    ],
)  # fmt: skip
def test_layer_stacks(names: list[str], stacks: dict[str, int]) -> None:
    assert layer_stacks(names) == stacks


@given(
    st.lists(st.sampled_from(["model", "layers", "h", "w"]), max_size=3),
    st.integers(0, 300),
    st.integers(0, 300),
    st.lists(st.sampled_from(["mlp", "experts", "7", "w"]), min_size=1, max_size=3),
)
def test_a_name_is_renumbered_in_its_layer_alone(
    before: list[str], old: int, new: int, behind: list[str]
) -> None:
    stack, name = ".".join(before), ".".join([*before, str(old), *behind])
    renumbered = with_layer(name, stack, new)
    assert renumbered == ".".join([*before, str(new), *behind])
    assert layer_of(renumbered) == (stack, new)
    assert with_layer(renumbered, stack, old) == name
    with pytest.raises(ValueError, match="is in no layer of"):
        with_layer(name, f"{stack}.other", new)


def architectures() -> Iterator[tuple[str, dict]]:
    """Yield the modules with layers of mergekit's architectures, each with the prefix of its tensors."""
    folder = importlib.resources.files("mergekit._data.architectures")
    for file in folder.iterdir():
        if file.name.endswith(".json"):
            content = json.loads(file.read_text())
            modules = content.get("modules") or {"": {"architecture": content}}
            for name, module in modules.items():
                if name != "multi_modal_projector":
                    yield module.get("weight_prefix") or "", module["architecture"]


def test_tensors_lie_before_and_behind_layers_as_in_the_architectures_of_mergekit() -> None:
    pytest.importorskip("mergekit")
    found = list(architectures())
    assert len(found) > 50
    for prefix, module in found:
        before = [prefix + weight["name"] for weight in module.get("pre_weights", ())]
        behind = [prefix + weight["name"] for weight in module.get("post_weights", ())]
        assert [name for name in before if not is_before_layers(name)] == []
        assert [name for name in behind if is_before_layers(name)] == []
        layers = [prefix + weight["name"] for weight in module["layer_templates"]["weights"]]
        numbered = [name.replace("${layer_index}", str(i)) for name in layers for i in range(2)]
        assert list(layer_stacks(numbered).values()) == ([2] if layers else [])
